"""``dkctl verify``: the chain of hashes, the replicas and the source, compared to the byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dkctl import client, exits, options, output
from dkctl.output import Column

COLUMNS = [
    Column("CHECK", "check"),
    Column("SITE", "site"),
    Column("RESULT", "result"),
    Column("POSITION", "position"),
    Column("COMPARED", "compared"),
]
DIFFERENCE_COLUMNS = [
    Column("SITE", "site"),
    Column("PATH", "path"),
    Column("EXPECTED", "expected"),
    Column("FOUND", "found"),
]
# Each is one more line on a screen; the JSON has all of them.
MAX_DIFFERENCES_SHOWN = 50


@click.command()
@click.argument("volume")
@options.timeout(600.0)
@options.directory
@options.form
def verify(volume: str, timeout_s: float, directory: Path, form: str) -> exits.Exit:
    """Check the log of VOLUME from its first frame, and compare each replica and the source with it.

    Exit code 1 when anything differs.
    """
    return output.show(of_verification(client.Control.of(directory).verify(volume, timeout_s)), form)


def of_verification(found: dict[str, Any]) -> output.Answer:
    replicas = found["replicas"]
    source = found.get("source") or {}
    rows = [
        *(_row("chain", one, f"{one.get('frames')} frames, hash by hash") for one in found["chains"]),
        *(_row("replica", one, one.get("compared")) for one in replicas),
    ]
    if source:
        rows.append(_row("source", source, source.get("compared")))
    differences = [
        {"site": one["site"]} | difference
        for one in [*replicas, *([source] if source else [])]
        for difference in one.get("differences") or []
    ]
    return output.Answer(
        str(found["verdict"]),
        found,
        tables=[
            output.Table(COLUMNS, rows),
            output.Table(DIFFERENCE_COLUMNS, differences[:MAX_DIFFERENCES_SHOWN]),
        ],
        items=differences,
        names=[difference["path"] for difference in differences],
        exit=exits.Exit.DONE if found["ok"] else exits.Exit.ATTENTION,
    )


def _row(check: str, one: dict[str, Any], compared: str | None) -> dict[str, Any]:
    error = one.get("error")
    message = error.get("message") if isinstance(error, dict) else error
    result = {True: "ok", False: "DIFFERS", None: "not compared"}[one.get("ok")]
    return {
        "check": check,
        "site": one.get("site"),
        "result": "FAILED" if message and one.get("ok") is False else result,
        "position": one.get("position"),
        "compared": message or compared,
    }
