"""``dkctl rescue``: volumes back from shards found anywhere, on an empty machine, with no index and no deployment."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from diffkeeper.domain import errors
from dkctl import exits, options, output
from dkctl.output import Column

RESCUE = "diffkeeper_repair.rescue"
MATERIALISE = "diffkeeper_replicator.materialise"
VOLUME_COLUMNS = [
    Column("VOLUME", "volume"),
    Column("RESULT", "result"),
    Column("UP TO", "position"),
    Column("FRAMES", "frames"),
    Column("SEGMENTS", "segments"),
    Column("LOST", "lost"),
    Column("TREE", "tree"),
    Column("LOG", "log", wide=True),
]
LOST_COLUMNS = [
    Column("LOST OF", "volume"),
    Column("POSITIONS", "positions"),
    Column("FROM", "first_at"),
    Column("TO", "last_at"),
    Column("WHY", "why"),
]
DAMAGE_COLUMNS = [Column("DAMAGED", "item"), Column("WHERE", "where"), Column("WHY", "why")]
MAX_SHOWN = 50


@click.command()
@click.option(
    "--from",
    "sources",
    multiple=True,
    required=True,
    metavar="DIR|URL",
    help="Directory of a dead node or of shard files, of several of them, or nats://HOST:PORT. May be repeated.",
)
@click.option(
    "--to",
    "target",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="An empty directory.",
)
@click.option(
    "--secret-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The secret of the nodes, for URLs (control/broker-secret of their deployment).",
)
@click.option("--tree/--no-tree", default=True, help="Also make the files at the last position.")
@options.form
def rescue(
    sources: tuple[str, ...], target: Path, secret_file: Path | None, tree: bool, form: str
) -> exits.Exit:
    """Give volumes back from any sufficient set of shards, wherever they are found.

    Stores of dead nodes are read from a copy and never changed. Below the target each volume has its log
    (`VOLUME/log`), byte for byte, and its files as of the last position (`VOLUME/tree`). Exit code 1 when
    something could not be given back, 9 when a tree could not be made.
    """
    argv = [*(part for source in sources for part in ("--from", source)), "--to", str(target)]
    if secret_file is not None:
        argv += ["--secret-file", str(secret_file)]
    found = _run(RESCUE, argv)
    for volume in found["volumes"]:
        volume["tree"] = _make_tree(volume, target) if tree and volume["main_frames"] else None
    return output.show(of_rescue(found), form)


def _make_tree(volume: dict[str, Any], target: Path) -> dict[str, Any]:
    name = volume["volume"]
    argv = ["--volume", name, "--log", volume["log"], "--into", str(target / name / "tree")]
    try:
        return _run(MATERIALISE, argv)
    except errors.DiffKeeperError as error:
        return {"error": error.to_dict()}


def _run(module: str, argv: list[str]) -> dict[str, Any]:
    """A part of a service as a process of its own: dkctl imports none of them."""
    done = subprocess.run([sys.executable, "-m", module, *argv], stdout=subprocess.PIPE, check=False)
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError as error:
        raise errors.DiffKeeperError(
            f"{module} ended with code {done.returncode} and no answer", reason="no-answer"
        ) from error
    if "error" in answer:
        raise errors.from_dict(answer["error"])
    return answer


def of_rescue(found: dict[str, Any]) -> output.Answer:
    volumes = found["volumes"]
    whole = [volume for volume in volumes if volume["whole"]]
    failed = [volume for volume in volumes if volume["tree"] and "error" in volume["tree"]]
    if not volumes:
        verdict = "No shard of any volume was found."
    else:
        verdict = f"{len(whole)} of {len(volumes)} volumes were given back whole from {len(found['sources'])} places."
    if found["unusable"]:
        verdict += f" {len(found['unusable'])} places could not be used."
    code = exits.Exit.DONE
    if failed:
        code = exits.Exit.PARTLY
    elif not volumes or len(whole) < len(volumes):
        code = exits.Exit.ATTENTION
    return output.Answer(
        verdict,
        found,
        tables=[
            output.Table(VOLUME_COLUMNS, [_volume_row(volume) for volume in volumes]),
            output.Table(LOST_COLUMNS, _lost_rows(volumes)[:MAX_SHOWN]),
            output.Table(DAMAGE_COLUMNS, [*_unusable(found), *found["damaged"]][:MAX_SHOWN]),
        ],
        items=volumes,
        names=[volume["volume"] for volume in volumes],
        exit=code,
    )


def _volume_row(volume: dict[str, Any]) -> dict[str, Any]:
    made = volume["tree"]
    place = None if made is None else made["error"]["message"] if "error" in made else made["path"]
    return volume | {
        "result": "whole" if volume["whole"] else "PARTLY",
        "lost": len(volume["lost"]),
        "tree": place,
    }


def _lost_rows(volumes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = [
        {
            "volume": volume["volume"],
            "positions": f"{one['first']} to {one['last']}" if "first" in one else None,
            "first_at": output.moment(one.get("first_us")),
            "last_at": output.moment(one.get("last_us")),
            "why": one["why"],
        }
        for volume in volumes
        for one in volume["lost"]
    ]
    holes = [
        {
            "volume": volume["volume"],
            "positions": f"after {hole['after']} up to {hole['up_to']}",
            "why": "frames that later ones continue were not found",
        }
        for volume in volumes
        for hole in volume["holes"]
    ]
    return rows + holes


def _unusable(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"item": None, "where": one["where"], "why": one["why"]} for one in found["unusable"]]
