"""``dkctl blame``: which site wrote which line of a file of a shared volume, and when."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from dkctl import client, exits, options, output
from dkctl.output import Column

COLUMNS = [Column("WHERE", "where"), Column("SITE", "site"), Column("TIME", "time")]


@click.command()
@click.argument("volume")
@click.argument("path")
@click.option("--site", metavar="SITE", help="As this site has the file; any that answers otherwise.")
@options.directory
@options.form
def blame(volume: str, path: str, site: str | None, directory: Path, form: str) -> exits.Exit:
    """Show who wrote each line, or key, of PATH in the shared VOLUME, and when."""
    found = client.Control.of(directory).blame(volume, os.fsencode(path), site)
    lines: list[dict[str, Any]] = found["lines"]
    rows = [{**line, "time": output.moment(line["at_us"]) if line["at_us"] else "at first"} for line in lines]
    answer = output.Answer(
        f"{found['path']} of {volume}, merged as {found['merger']}, as {found['site']} has it.",
        found,
        tables=[output.Table(COLUMNS, rows)],
        items=lines,
        names=[f"{line['where']}:{line['site']}" for line in lines],
    )
    return output.show(answer, form)
