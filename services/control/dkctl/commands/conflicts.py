"""``dkctl conflicts``: what met in a shared volume, and what somebody decided about it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import click

from dkctl import client, exits, options, output
from dkctl.output import Column

SHOWN_CHARS = 32
COLUMNS = [
    Column("CONFLICT", "name"),
    Column("PATH", "path"),
    Column("KIND", "kind"),
    Column("TIME", "time"),
    Column("BY", "site"),
    Column("STATE", "state"),
    Column("OURS", "ours", wide=True),
    Column("THEIRS", "theirs", wide=True),
]


@click.command()
@click.argument("volume")
@click.option("--all", "every", is_flag=True, help="Also what was merged or decided already.")
@click.option("--site", metavar="SITE", help="As this site has them; any that answers otherwise.")
@click.option("--resolve", "conflict", metavar="CONFLICT", help="Decide this one; needs --keep.")
@click.option(
    "--keep",
    type=click.Choice(["ours", "theirs", "both"]),
    help="Which version has the file; both: the file and its conflict copy stay as they are.",
)
@options.directory
@options.form
def conflicts(
    volume: str,
    every: bool,
    site: str | None,
    conflict: str | None,
    keep: str | None,
    directory: Path,
    form: str,
) -> exits.Exit:
    """List what sites changed at the same time in the shared VOLUME, or decide one of them.

    What merged by itself is shown with --all only. A decision reaches every site. `ours` and `theirs` are as the
    asked site saw them: name it with --site when you decide.
    """
    control = client.Control.of(directory)
    if (conflict is None) != (keep is None):
        raise click.UsageError("--resolve and --keep go together.")
    if conflict is not None and keep is not None:
        return _resolve(control, volume, conflict, keep, site, form)
    found = control.conflicts(volume, site)
    shown = [one for one in found["conflicts"] if every or one["resolved"] is None]
    waiting = sum(one["resolved"] is None for one in found["conflicts"])
    verdict = f"{waiting} conflicts of {volume} wait for a decision, as {found['site']} has them."
    if not waiting:
        verdict = f"No conflict of {volume} waits for a decision."
    bad = (found.get("rules") or {}).get("trouble")
    if bad is not None:
        verdict += f" Needs attention: {bad['message']} ({bad['hint']})."
    answer = output.Answer(
        verdict,
        found,
        tables=[output.Table(COLUMNS, [_row(one) for one in shown])],
        items=shown,
        names=[one["id"] for one in shown],
        exit=exits.Exit.ATTENTION if waiting or bad is not None else exits.Exit.DONE,
        hints=[f"dkctl conflicts {volume} --site {found['site']} --resolve CONFLICT --keep both"]
        if waiting
        else [],
    )
    return output.show(answer, form)


def _resolve(
    control: client.Control, volume: str, conflict: str, keep: str, site: str | None, form: str
) -> exits.Exit:
    names = [one["id"] for one in control.conflicts(volume, site)["conflicts"]]
    matching = [name for name in names if name.startswith(conflict)]
    if len(matching) > 1:
        raise click.UsageError(f"{conflict} is the beginning of {len(matching)} conflicts.")
    done = control.resolve(volume, matching[0] if matching else conflict, keep, site)
    verdict = f"{done['path']} keeps {keep}; the other sites hear of it."
    return output.show(output.Answer(verdict, {"volume": volume, **done}, names=[done["id"]]), form)


def _row(one: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": one["id"][:12],
        "path": one["path"],
        "kind": one["kind"],
        "time": output.moment(one["at_us"]),
        "site": one["site"],
        "state": one["resolved"] or "waits",
        "ours": _shown(one["ours_b64"]),
        "theirs": _shown(one["theirs_b64"]),
    }


def _shown(packed: str) -> str:
    text = base64.b64decode(packed).decode("utf-8", "backslashreplace")
    plain = "".join(char if char.isprintable() else " " for char in text)
    return plain if len(plain) <= SHOWN_CHARS else plain[: SHOWN_CHARS - 3] + "..."
