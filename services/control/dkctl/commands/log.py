"""``dkctl log``: the frames of a volume, oldest first."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from diffkeeper.domain import positions
from dkctl import client, exits, options, output
from dkctl.output import Column

COLUMNS = [
    Column("POSITION", "position"),
    Column("TIME", "time"),
    Column("ORIGIN", "origin"),
    Column("DELTAS", "count"),
    Column("SIZE", "size"),
    Column("FIDELITY", "fidelity"),
    Column("FLAGS", "flags"),
    Column("HASH", "hash", wide=True),
    Column("PARENT", "parent", wide=True),
]
FOLLOW_INTERVAL_S = 0.5


@click.command()
@click.argument("volume")
@click.option("--after", metavar="POSITION", help="Only what comes after this position, such as 7.1042.")
@click.option(
    "-n",
    "--limit",
    type=click.IntRange(1, 10_000),
    default=20,
    show_default=True,
    help="How many frames: the newest, or with --after the next.",
)
@click.option("-f", "--follow", is_flag=True, help="Go on with new frames as they come, until interrupted.")
@options.directory
@options.form
def log(volume: str, after: str | None, limit: int, follow: bool, directory: Path, form: str) -> exits.Exit:
    """Show the frames of VOLUME: when, how much, and where the program asked for durability."""
    if after is not None:
        positions.parse(after)
    control = client.Control.of(directory)
    page = control.log(volume, after, limit)
    code = output.show(of_page(page), form)
    while follow:
        if page["frames"]:
            after = page["frames"][-1]["position"]
        time.sleep(FOLLOW_INTERVAL_S)
        page = control.log(volume, after, limit)
        if page["frames"]:
            output.show(of_page(page), form)
    return code


def of_page(page: dict[str, Any]) -> output.Answer:
    frames = page["frames"]
    if frames:
        span = (
            f"{len(frames)} frames of {page['volume']}, {frames[0]['position']} to {frames[-1]['position']}"
        )
    else:
        span = f"No frames of {page['volume']}"
    return output.Answer(
        f"{span}, as {page['source']} has them.",
        page,
        tables=[output.Table(COLUMNS, [_row(frame) for frame in frames])],
        items=frames,
        names=[frame["position"] for frame in frames],
    )


def _row(frame: dict[str, Any]) -> dict[str, Any]:
    return {
        "position": frame["position"],
        "time": output.moment(frame.get("last_us")),
        "origin": frame.get("origin"),
        "count": frame.get("count"),
        "size": output.size(frame.get("bytes")),
        "fidelity": frame.get("fidelity"),
        "flags": ", ".join(frame.get("flags") or []),
        "hash": frame.get("hash"),
        "parent": frame.get("parent"),
    }
