"""``dkctl rebuild``: bring every stripe back to all of its shards, waiting for no node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dkctl import exits, options, output, repairs
from dkctl.commands import health


@click.command()
@options.directory
@options.form
def rebuild(directory: Path, form: str) -> exits.Exit:
    """Make missing and damaged shards anew, the most endangered segments first.

    This happens by itself, too; here nodes that are away get no grace. Exit code 9 when some could not be done.
    """
    return output.show(of_rebuild(repairs.Repair.of(directory).rebuild()), form)


def of_rebuild(done: dict[str, Any]) -> output.Answer:
    found = done["health"]
    verdict = (
        f"{done['shards_written']} shards were made anew ({output.size(done['bytes_written'])}) for "
        f"{done['stripes_total']} segments that needed it. {found['verdict']}"
    )
    failed = done["failed"]
    if done["homeless"]:
        verdict += f" {done['homeless']} shards have no node to go to."
    code = exits.Exit.PARTLY if failed else exits.Exit.DONE if found["ok"] else exits.Exit.ATTENTION
    return output.Answer(
        verdict,
        done,
        tables=[
            output.Table([output.Column("NOT DONE", "why")], [{"why": why} for why in failed]),
            output.Table(health.VOLUME_COLUMNS, [health.volume_row(one) for one in found["volumes"]]),
        ],
        items=found["volumes"],
        names=[one["volume"] for one in found["volumes"]],
        exit=code,
        hints=["dkctl nodes"] if code else [],
    )
