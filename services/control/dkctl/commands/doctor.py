"""``dkctl doctor``: what of this machine a deployment needs, line by line, each with its remedy."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from dkctl import checks, exits, options, output
from dkctl.output import Column

COLUMNS = [
    Column("CHECK", "check"),
    Column("RESULT", "result"),
    Column("FOUND", "found"),
    Column("REMEDY", "remedy"),
]
COLOURS = {checks.Outcome.PASS: "green", checks.Outcome.WARN: "yellow", checks.Outcome.FAIL: "red"}


@click.command()
@options.directory
@options.form
def doctor(directory: Path, form: str) -> exits.Exit:
    """Check this machine: kernel, BTF, seccomp, rights, servers, disk, clock. Exit code 1 when a check
    fails.
    """
    return output.show(answer_of(list(checks.all_checks(directory.absolute()))), form)


def answer_of(findings: list[checks.Finding]) -> output.Answer:
    items = [
        {"check": one.check, "result": one.outcome.value, "found": one.found, "remedy": one.remedy or None}
        for one in findings
    ]
    failed = [one.check for one in findings if one.outcome is checks.Outcome.FAIL]
    warned = [one.check for one in findings if one.outcome is checks.Outcome.WARN]
    if failed:
        verdict = f"A deployment will not work here: {', '.join(failed)}."
    elif warned:
        verdict = f"A deployment works here, with limits: {', '.join(warned)}."
    else:
        verdict = "A deployment works here."
    # The last cells may be long, so colour, which has a width of its own, is kept to the verdict.
    colour = COLOURS[
        checks.Outcome.FAIL if failed else checks.Outcome.WARN if warned else checks.Outcome.PASS
    ]
    return output.Answer(
        output.paint(verdict, colour, sys.stdout),
        {"ok": not failed, "checks": items},
        tables=[output.Table(COLUMNS, items)],
        items=items,
        names=failed + warned,
        exit=exits.Exit.ATTENTION if failed else exits.Exit.DONE,
    )
