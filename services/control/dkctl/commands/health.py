"""``dkctl health``: what could be lost now without loss of data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dkctl import client, exits, lost_files, options, output, repairs
from dkctl.output import Column

VOLUME_COLUMNS = [
    Column("VOLUME", "volume"),
    Column("GEOMETRY", "geometry"),
    Column("SEGMENTS", "segments"),
    Column("SIZE", "size"),
    Column("MAY LOSE", "spare"),
    Column("NOT SEALED YET", "unsealed"),
    Column("LOST", "lost_segments"),
    Column("REBUILDING", "rebuilding"),
    Column("AWAITED", "waiting"),
    Column("NO ROOM", "homeless", wide=True),
    Column("RECODING", "recoding", wide=True),
]
LOST_COLUMNS = [
    Column("LOST SEGMENT", "segment"),
    Column("FROM", "first_at"),
    Column("TO", "last_at"),
    Column("WHAT", "words"),
    Column("FILES", "files_named"),
]
DAMAGE_COLUMNS = [
    Column("DAMAGED", "item"),
    Column("NODE", "node"),
    Column("CAUSE", "cause"),
    Column("STATE", "state"),
    Column("FOUND", "found"),
    Column("DETAIL", "detail", wide=True),
]
MAX_SHOWN = 50


@click.command()
@click.option("--seal", is_flag=True, help="First seal everything that the streams hold now.")
@options.timeout(30.0)
@options.directory
@options.form
def health(seal: bool, timeout_s: float, directory: Path, form: str) -> exits.Exit:
    """Show how many storage nodes can still be lost, and what is damaged.

    Of what cannot be read the positions, times and files are named.

    Exit code 1 when anything is damaged, lost, or less protected than its geometry says.
    """
    repair = repairs.Repair.of(directory)
    found = repair.seal(timeout_s) if seal else repair.health()
    lost_files.add_to(found, client.Control.of(directory))
    return output.show(of_health(found), form)


def of_health(found: dict[str, Any]) -> output.Answer:
    lost = [one for volume in found["volumes"] for one in volume["lost"]]
    return output.Answer(
        f"{found['verdict']} The geometry {found['geometry']} {found['words']}.",
        found,
        tables=[
            output.Table(VOLUME_COLUMNS, [volume_row(volume) for volume in found["volumes"]]),
            output.Table(LOST_COLUMNS, [_lost_row(one) for one in lost[:MAX_SHOWN]]),
            damages(found["damages"]),
        ],
        items=found["volumes"],
        names=[volume["volume"] for volume in found["volumes"]],
        exit=exits.Exit.DONE if found["ok"] else exits.Exit.ATTENTION,
        hints=[] if found["ok"] else ["dkctl nodes", "dkctl rebuild"],
    )


def volume_row(volume: dict[str, Any]) -> dict[str, Any]:
    behind = sum(max(0, stream["seen"] - stream["sealed"]) for stream in volume["streams"])
    spare = volume["spare"]
    return {
        **volume,
        "size": output.size(volume["bytes"]),
        "spare": None if spare is None else f"any {spare}" if spare else "none",
        "unsealed": f"{behind} frames" if behind else "0",
    }


def damages(found: list[dict[str, Any]]) -> output.Table:
    rows = [damage | {"found": output.moment(damage["found_us"])} for damage in found[:MAX_SHOWN]]
    return output.Table(DAMAGE_COLUMNS, rows)


def _lost_row(one: dict[str, Any]) -> dict[str, Any]:
    return one | {
        "first_at": output.moment(one.get("first_us")),
        "last_at": output.moment(one.get("last_us")),
        "files_named": lost_files.in_words(one),
    }
