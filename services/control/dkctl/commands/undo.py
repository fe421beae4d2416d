"""``dkctl undo``: take back what one site did to a file of a shared volume, and leave what the others did."""

from __future__ import annotations

import os
from pathlib import Path

import click

from dkctl import client, exits, options, output


@click.command()
@click.argument("volume")
@click.argument("path")
@click.option("--by", required=True, metavar="SITE", help="Whose edits are taken back.")
@click.option("--since", metavar="WHEN", help="Only those from then on: a time with a zone, or an age (5m).")
@click.option("--dry-run", is_flag=True, help="Say what would be taken back, and do nothing.")
@click.option("--site", metavar="SITE", help="Do it at this site; any that answers otherwise.")
@options.directory
@options.form
def undo(
    volume: str,
    path: str,
    by: str,
    since: str | None,
    dry_run: bool,
    site: str | None,
    directory: Path,
    form: str,
) -> exits.Exit:
    """Take back the edits of one site to PATH in the shared VOLUME, and no others.

    What the site wrote goes, what it deleted comes again; what others wrote stays, also what they wrote since. For
    files merged as text, json, lines, set or counter. It is an edit like any other: it reaches every site, and can be
    taken back by `dkctl undo` with the site that did it.
    """
    done = client.Control.of(directory).undo(volume, os.fsencode(path), by, since, dry_run, site)
    what = "would be taken back" if dry_run else "were taken back"
    verdict = (
        f"{done['edits']} edits of {path} by {by} {what} at {done['site']}: {done['bytes_taken_out']} bytes out, "
        f"{done['bytes_put_back']} bytes in."
    )
    if done["former_edits"]:
        verdict += f" {done['former_edits']} from before it was merged as {done['merger']} stay."
    return output.show(output.Answer(verdict, done, names=[done["path"]]), form)
