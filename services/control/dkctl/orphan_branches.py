"""Orphan branches, what fenced writers had written beyond the main line: the parts of ``dkctl branch`` and ``dkctl diff``
that show them, take them over and drop them.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from dkctl import client, confirm, exits, options, output
from dkctl.output import Column

COLUMNS = [
    Column("BRANCH", "name"),
    Column("SITE", "site"),
    Column("EPOCH", "epoch"),
    Column("PARENT", "parent"),
    Column("END", "end"),
    Column("FRAMES", "frames"),
    Column("PATHS", "paths"),
    Column("SIZE", "size"),
    Column("SINCE", "since"),
    Column("STATE", "state"),
    Column("WHY", "why", wide=True),
    Column("PATH", "path", wide=True),
]
CHANGE_COLUMNS = [
    Column("PATH", "path"),
    Column("CHANGE", "kind"),
    Column("BRANCH", "size"),
    Column("MAIN", "main"),
    Column("DIFFERS", "differs"),
    Column("RANGES", "ranges"),
    Column("MAIN CHANGED", "main_changed"),
]
_HEX_A_LINE = 16


def show_comparison(
    control: client.Control,
    volume: str,
    branch: str,
    path: str | None,
    *,
    stat: bool,
    exit_code: bool,
    form: str,
) -> exits.Exit:
    """An orphan branch beside the main line as the branch's site shows it now, byte for byte."""
    found = control.branch(volume, branch, path, content=not stat)
    differ = exits.Exit.ATTENTION if exit_code and found["changes"] else exits.Exit.DONE
    code = output.show(of_comparison(found, differ), form)
    if form in ("table", "wide") and not stat:
        for change in found["changes"]:
            for line in lines(change):
                print(line)
        sys.stdout.flush()
    return code


@click.command()
@click.argument("volume")
@click.argument("branch")
@click.argument("paths", nargs=-1)
@click.option("--to", type=click.Path(file_okay=False), help="A new directory; else the main line.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask before the main line is written to.")
@options.directory
@options.form
def merge(
    volume: str,
    branch: str,
    paths: tuple[str, ...],
    to: str | None,
    yes: bool,
    directory: Path,
    form: str,
) -> exits.Exit:
    """Take BRANCH's version of PATHS (all it changes without any).

    Into the main line only while no program runs on VOLUME, and only where nothing else changed these files since the
    branch began; otherwise it refuses with the list, and --to DIR puts them beside.
    """
    if to is None:
        what = ", ".join(paths) if paths else "every file it changes"
        statement = f"{volume}: {what} becomes what branch {branch} has, in the main line and at every site."
        confirm.traffic(statement, yes=yes)
    target = str(Path(to).absolute()) if to is not None else None
    found = client.Control.of(directory).merge_branch(volume, branch, list(paths), target)
    where = found["to"] or f"the main line, durable at {found['position']}"
    answer = output.Answer(
        f"{len(found['written'])} paths of branch {branch} are in {where}.",
        found,
        names=found["written"],
    )
    return output.show(answer, form)


def drop_for_good(
    control: client.Control, volume: str, branch: str, *, accepted: bool, form: str
) -> exits.Exit:
    known = {one["name"]: one for one in control.branches(volume)["branches"]}
    kept = known.get(branch, {})
    size = output.size(kept.get("bytes")) or "an unknown amount"
    statement = (
        f"Branch {branch} of {volume} goes for good: {size} in {kept.get('paths') or 'unknown'} paths."
    )
    if branch in known:
        confirm.loss(statement, branch, accepted=accepted)
    found = control.drop_branch(volume, branch)
    return output.show(output.Answer(f"Branch {branch} of {volume} is gone.", found, names=[branch]), form)


def rows_of(branches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        one | {"size": output.size(one["bytes"]), "since": output.moment(one["made_us"])} for one in branches
    ]


def is_one(control: client.Control, volume: str, name: str) -> bool:
    return any(one["name"] == name for one in control.branches(volume)["branches"])


def of_comparison(found: dict[str, Any], code: exits.Exit) -> output.Answer:
    branch, changes = found["branch"], found["changes"]
    rows = [
        one
        | {
            "size": output.size(one["size"])
            if one["node"] == "file" and one["kind"] != "removed"
            else one["node"],
            "main": output.size(one["main_size"]),
            "differs": output.size(one["bytes"]),
            "ranges": len(one["ranges"]),
        }
        for one in changes
    ]
    total = output.size(sum(one["bytes"] for one in changes))
    where = f"main at {found['position']}" if found["position"] else "the leader's directory"
    return output.Answer(
        f"Branch {branch['name']} (from {branch['parent']}) and {where}: {len(changes)} paths, {total} differ.",
        found,
        tables=[output.Table(CHANGE_COLUMNS, rows)],
        items=changes,
        names=[one["path"] for one in changes],
        exit=code,
    )


def lines(change: dict[str, Any]) -> Iterator[str]:
    """The ranges of one file, as text where both sides are text."""
    if not change["ranges"]:
        return
    yield ""
    yield f"{_shown(change['path'])}: {len(change['ranges'])} ranges"
    for found in change["ranges"]:
        yield f"@ {found['offset']:#x}, {found['length']} bytes"
        if "branch_b64" not in found:
            yield "  … name the path to see its bytes"
            continue
        ours, theirs = base64.b64decode(found["branch_b64"]), base64.b64decode(found["main_b64"])
        as_text = _is_text(ours) and _is_text(theirs)
        for sign, data in (("-", theirs), ("+", ours)):
            yield from (_text if as_text else _hex)(sign, found["offset"], data)


def _is_text(data: bytes) -> bool:
    try:
        return all(sign.isprintable() or sign in "\t\n\r" for sign in data.decode())
    except UnicodeDecodeError:
        return False


def _text(sign: str, _offset: int, data: bytes) -> Iterator[str]:
    for line in data.decode().splitlines():
        yield f"{sign} {_shown(line)}"


def _hex(sign: str, offset: int, data: bytes) -> Iterator[str]:
    for at in range(0, len(data), _HEX_A_LINE):
        part = data[at : at + _HEX_A_LINE]
        readable = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        yield f"{sign} {offset + at:012x}  {part.hex(' '):<47}  {readable}"


def _shown(text: str) -> str:
    """A terminal shows what a file holds, and does not obey it."""
    return "".join(sign if sign.isprintable() or sign == "\t" else repr(sign)[1:-1] for sign in text)
