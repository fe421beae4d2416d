"""``dkctl drill``: rehearses a failover on a clone of the replica; nothing moves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from dkctl import client, exits, options, output
from dkctl.output import Column

STEP_COLUMNS = [Column("STEP", "step"), Column("TOOK", "took"), Column("FROM", "source")]
OBJECTIVE_COLUMNS = [
    Column("OBJECTIVE", "objective"),
    Column("WANTED", "wanted"),
    Column("MEASURED", "measured"),
]
HISTORY_COLUMNS = [
    Column("WHEN", "when"),
    Column("TO", "to"),
    Column("POSITION", "position"),
    Column("RECOVERY", "recovery"),
    Column("BEHIND", "behind"),
    Column("RESULT", "result"),
]
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def _every(_context: click.Context, _parameter: click.Parameter, value: str | None) -> float | None:
    """Seconds; 0 for off."""
    if value is None or value == "off":
        return None if value is None else 0.0
    match = re.fullmatch(r"([1-9][0-9]{0,6})([smhd])", value)
    if match is None:
        raise click.BadParameter(f"{value!r} is neither an age such as 1h nor off")
    return float(int(match[1]) * _UNITS[match[2]])


@click.command()
@click.argument("volume")
@click.option("--to", "target", metavar="SITE", help="The site that would lead.")
@click.option(
    "--check",
    metavar="COMMAND",
    help="Shell command that succeeds once the program works; it finds $DIFFKEEPER_PATH and $DIFFKEEPER_PORT.",
)
@click.option("--rto-ms", type=click.FloatRange(min=0), help="Objective: how long recovery may take.")
@click.option("--rpo-ms", type=click.FloatRange(min=0), help="Objective: how far behind the replica may be.")
@click.option(
    "--every", "every_s", callback=_every, metavar="AGE", help="Hold it every 1h, say, from now on; or off."
)
@click.option("--list", "listed", is_flag=True, help="Show the drills that were held.")
@options.timeout(60.0)
@options.directory
@options.form
def drill(
    volume: str,
    target: str | None,
    check: str | None,
    rto_ms: float | None,
    rpo_ms: float | None,
    every_s: float | None,
    listed: bool,
    timeout_s: float,
    directory: Path,
    form: str,
) -> exits.Exit:
    """Rehearse a failover of VOLUME on a clone of the replica at a site, and measure it.

    The program is started on the clone, with $DIFFKEEPER_DRILL set and, behind a front door, with a port of
    its own; it is ended and the clone taken away afterwards. No traffic moves. Exit code 1 when the program
    did not work or an objective was missed.
    """
    control = client.Control.of(directory)
    if listed:
        return output.show(_history(volume, control.drills(volume)), form)
    if target is None:
        raise click.UsageError("Missing option '--to'.")
    body = {"to": target, "check": check, "rto_ms": rto_ms, "rpo_ms": rpo_ms, "timeout_s": timeout_s}
    if every_s is not None:
        answer = control.drill(volume, body | {"every_s": every_s})
        what = (
            f"A drill of {volume} is held every {every_s:g} s"
            if every_s
            else f"No drills of {volume} are held"
        )
        hints = [f"dkctl drill {volume} --list"]
        return output.show(output.Answer(f"{what} from now on.", answer, names=[volume], hints=hints), form)
    return output.show(_report(control.drill(volume, body)), form)


def _report(report: dict[str, Any]) -> output.Answer:
    steps = [
        {
            "step": step,
            "took": output.duration(ms),
            "source": "this drill" if step in ("catch_up", "program") else report["taken_from"],
        }
        for step, ms in report["steps_ms"].items()
    ]
    objectives = [
        {
            "objective": "recovery time",
            "wanted": output.duration(report["rto_ms"]),
            "measured": output.duration(report["recovery_ms"]),
        },
        {
            "objective": "recovery point",
            "wanted": output.duration(report["rpo_ms"]),
            "measured": output.duration(report["behind_ms"]),
        },
    ]
    if report["output"] and not report["ok"]:
        output.say(report["output"].rstrip())
    return output.Answer(
        f"{report['verdict']}.",
        report,
        tables=[output.Table(OBJECTIVE_COLUMNS, objectives), output.Table(STEP_COLUMNS, steps)],
        names=[str(report["position"])],
        exit=exits.Exit.DONE if report["ok"] else exits.Exit.ATTENTION,
        hints=[] if report["ok"] else [f"dkctl status {report['volume']}"],
    )


def _history(volume: str, answer: dict[str, Any]) -> output.Answer:
    drills = answer["drills"]
    rows = [
        {
            "when": output.moment(one["started_us"]),
            "to": one["to"],
            "position": one["position"],
            "recovery": output.duration(one["recovery_ms"]),
            "behind": output.duration(one["behind_ms"]),
            "result": "ok" if one["ok"] else "failed",
        }
        for one in drills
    ]
    return output.Answer(
        f"{len(drills)} drills of {volume} are known.",
        answer,
        tables=[output.Table(HISTORY_COLUMNS, rows)],
        items=drills,
        names=[str(one["started_us"]) for one in drills],
    )
