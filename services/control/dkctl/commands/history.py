"""``dkctl history``: what is kept of a volume's past, what it costs, and how long it is kept."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click

from diffkeeper.domain import errors, moments, retention
from dkctl import client, exits, options, output, when
from dkctl.output import Column

COST_COLUMNS = [Column("WHAT", "what"), Column("SIZE", "size"), Column("COUNT", "count")]
_STEP = re.compile(r"(?P<every>[^:]+):(?P<until>.+)")


def _age_s(text: str) -> int:
    return moments.parse_age(text) // 1_000_000


def _policy(every_write: str | None, every_barrier: str | None, thin: tuple[str, ...]) -> dict[str, Any]:
    """The ladder as the history takes it; raises Refused for what is no age."""
    steps = []
    for text in thin:
        match = _STEP.fullmatch(text)
        if match is None:
            raise errors.Refused(
                f"{text!r} is not a step",
                reason="bad-policy",
                hint="EVERY:UNTIL, such as 1h:30d: one point an hour up to an age of 30 days",
            )
        steps.append({"every_s": _age_s(match["every"]), "until_s": _age_s(match["until"])})
    return {
        "every_write_s": None if every_write in (None, "forever") else _age_s(str(every_write)),
        "every_barrier_s": None if every_barrier in (None, "forever") else _age_s(str(every_barrier)),
        "steps": steps,
    }


@click.command()
@click.argument("volume")
@click.option("--every-write", metavar="AGE", help="Keep every write up to this age, or forever.")
@click.option("--every-barrier", metavar="AGE", help="Then every barrier up to this age, or forever.")
@click.option(
    "--thin",
    metavar="EVERY:UNTIL",
    multiple=True,
    help="Then one point in every so long, up to an age; may be repeated.",
)
@click.option(
    "--set", "set_", is_flag=True, help="Make this ladder the policy, instead of only telling its effect."
)
@click.option("--prune", is_flag=True, help="Apply the policy now; otherwise it is applied as the log grows.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@options.directory
@options.form
def history(
    volume: str,
    every_write: str | None,
    every_barrier: str | None,
    thin: tuple[str, ...],
    set_: bool,
    prune: bool,
    yes: bool,
    directory: Path,
    form: str,
) -> exits.Exit:
    """Show what is kept of VOLUME's history and what it costs; with a ladder, what that would keep and free.

    Until another is set: every write for 7 days, then every barrier for 30 days, one point an hour for a year, one a day
    for ever. What has a tag or a branch always stays; --every-write forever --set keeps everything.
    """
    control = client.Control.of(directory)
    asked = every_write is not None or every_barrier is not None or bool(thin)
    query: list[tuple[str, str]] = []
    if asked:
        query.append(("what_if", json.dumps(_policy(every_write, every_barrier, thin))))
    elif set_:
        raise errors.Refused(
            "--set without a ladder", reason="bad-policy", hint="name it with --every-write AGE"
        )
    found = control.history(volume, "", query)
    if set_:
        _confirm(found, yes=yes)
        control.history(volume, "policy", method="PUT", body=found["what_if"]["policy"])
    if prune:
        found["pruned"] = control.history(volume, "prune", method="POST", body={})
        found = {**control.history(volume, ""), "pruned": found["pruned"]}
    elif set_:
        found = control.history(volume, "")
    return output.show(of_report(found), form)


def _confirm(found: dict[str, Any], *, yes: bool) -> None:
    from dkctl import confirm

    what_if = found["what_if"]
    confirm.traffic(
        f"{ladder(what_if['policy'])}: of {found['points']['kept']} points {what_if['thinned']} could not be gone "
        f"back to any more, which frees about {output.size(what_if['frees_bytes'])}.",
        yes=yes,
    )


def of_report(found: dict[str, Any]) -> output.Answer:
    volume, points, sizes = found["volume"], found["points"], found["bytes"]
    if found["first"] is None:
        verdict = f"Nothing of {volume} is kept yet."
    else:
        first, last = (
            when.resolved(found[end]["position"], found[end]["at_us"]) for end in ("first", "last")
        )
        verdict = (
            f"{points['kept']} moments of {volume} are kept, {first} to {last}, in {output.size(sum(sizes.values()))}; "
            f"{ladder(found['policy'])}{' (the default)' if found.get('policy_is_default') else ''}."
        )
    if found.get("what_if"):
        other = found["what_if"]
        verdict += (
            f"\nWith another policy ({ladder(other['policy'])}) {other['kept']} of them would stay, and about "
            f"{output.size(other['frees_bytes'])} would be freed."
        )
    if found.get("pruned"):
        done = found["pruned"]
        verdict += (
            f"\n{done['folded']} moments were folded away, {output.size(done.get('journal_bytes', 0))} of the journal "
            f"and {output.size(done['freed_bytes'])} of chunks freed."
        )
    damaged = [f"{one['what']}: {one['why']}" for one in found["damaged"]]
    if found["chunks"]["lost"]:
        damaged.append(f"{found['chunks']['lost']} reads of chunks that are good nowhere")
    verdict += "".join(f"\nDamaged: {one}" for one in damaged)
    counts = {"checkpoints": found["checkpoints"], "archives": found["archives"]}
    rows = [
        {"what": what, "size": output.size(size), "count": counts.get(what)} for what, size in sizes.items()
    ]
    return output.Answer(
        verdict,
        found,
        tables=[output.Table(COST_COLUMNS, rows)],
        names=[found["last"]["position"]] if found["last"] else [],
        exit=exits.Exit.ATTENTION if damaged else exits.Exit.DONE,
    )


def ladder(policy: dict[str, Any]) -> str:
    """A policy in words."""
    if policy["every_write_s"] is None:
        return "every write is kept for ever"
    told = [f"every write for {_age(policy['every_write_s'])}"]
    if policy["every_barrier_s"] is None:
        return f"{told[0]}, then every barrier for ever"
    if policy["every_barrier_s"] > policy["every_write_s"]:
        told.append(f"every barrier for {_age(policy['every_barrier_s'])}")
    told += [f"one each {_age(step['every_s'])} for {_age(step['until_s'])}" for step in policy["steps"]]
    return ", then ".join(told)


def _age(seconds: int) -> str:
    if seconds >= retention.EVER_S:
        return "ever"
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
