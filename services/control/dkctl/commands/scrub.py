"""``dkctl scrub``: read and verify everything that the storage nodes hold, now and as fast as it goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dkctl import exits, options, output, repairs
from dkctl.commands import health
from dkctl.output import Column

COLUMNS = [
    Column("TOUR", "tour"),
    Column("RUNNING", "running"),
    Column("STRIPES", "stripes"),
    Column("READ", "read"),
    Column("BUDGET", "budget"),
    Column("STILL TAKES", "remaining"),
    Column("LAST ENDED", "last_ended"),
]


@click.command()
@click.option("--show", is_flag=True, help="Only show how far the tour is that goes on by itself.")
@options.directory
@options.form
def scrub(show: bool, directory: Path, form: str) -> exits.Exit:
    """Verify every shard and manifest on the storage nodes; what is damaged is then made anew.

    A tour goes on all the time within its budget; this one starts at once and has none. Exit code 1 when
    damage is known.
    """
    repair = repairs.Repair.of(directory)
    if show:
        return output.show(of_progress(repair.status()), form)
    return output.show(of_scrub(repair.scrub()), form)


def of_scrub(found: dict[str, Any]) -> output.Answer:
    damaged, read = found["damages"], output.size(found["bytes_done"])
    verdict = f"{found['stripes_total']} stripes were read and verified ({read})"
    verdict += f": {found['found']} new damages." if found["found"] else "; nothing new is damaged."
    return output.Answer(
        verdict,
        found,
        tables=[health.damages(damaged)],
        items=damaged,
        names=[damage["item"] for damage in damaged],
        exit=exits.Exit.ATTENTION if damaged else exits.Exit.DONE,
        hints=["dkctl rebuild"] if damaged else [],
    )


def of_progress(status: dict[str, Any]) -> output.Answer:
    tour, last = status["scrub"], status["last_tour"]
    row = tour | {
        "stripes": f"{tour['stripes_done']} of {tour['stripes_total']}",
        "read": output.size(tour["bytes_done"]),
        "budget": f"{output.size(tour['bytes_per_s'])}/s",
        "remaining": output.duration(tour["remaining_s"] * 1000) if tour["remaining_s"] is not None else None,
        "last_ended": output.moment(last["ended_us"]),
    }
    verdict = f"Tour {tour['tour']} {'is under way' if tour['running'] else 'has not begun yet'}."
    return output.Answer(verdict, {"scrub": tour, "last_tour": last}, tables=[output.Table(COLUMNS, [row])])
