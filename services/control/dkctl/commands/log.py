"""``dkctl log``: what changed in a volume, oldest first."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from diffkeeper.domain import errors, moments, positions
from dkctl import client, exits, options, output, when
from dkctl.output import Column

COLUMNS = [
    Column("POSITION", "position"),
    Column("TIME", "time"),
    Column("ORIGIN", "origin", wide=True),
    Column("DELTAS", "count"),
    Column("SIZE", "size"),
    Column("FIDELITY", "fidelity"),
    Column("FLAGS", "flags"),
    Column("CHANGED", "changed"),
    Column("HASH", "hash", wide=True),
    Column("PARENT", "parent", wide=True),
]
FOLLOW_INTERVAL_S = 0.5
SPARKS = "▁▂▃▄▅▆▇█"
SPARK_CELLS = 60
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


class _Size(click.ParamType[int]):
    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value).lower().removesuffix("ib").removesuffix("b")
        unit = text[-1:] if text[-1:] in ("k", "m", "g") else ""
        digits = text.removesuffix(unit) if unit else text
        if not digits.isdigit():
            self.fail(f"{value!r} is not a size, such as 4096 or 64k", param, ctx)
        return int(digits) * _UNITS[unit]


@click.command()
@click.argument("volume")
@click.argument("path", required=False)
@click.option("--after", metavar="POSITION", help="Only what comes after this position, such as 7.1042.")
@click.option("--since", type=when.WHEN, help="Only from this moment on.")
@click.option("--until", type=when.WHEN, help="Only up to this moment.")
@click.option("--min-size", type=_Size(), help="Only frames of at least this size, such as 64k.")
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
def log(
    volume: str,
    path: str | None,
    after: str | None,
    since: str | None,
    until: str | None,
    min_size: int | None,
    limit: int,
    follow: bool,
    directory: Path,
    form: str,
) -> exits.Exit:
    """Show what changed in VOLUME: when, which files, how much, and where the program asked for durability.

    PATH is a file, a directory, or a pattern with * and ?.
    """
    if after is not None:
        positions.parse(after)
    control = client.Control.of(directory)
    filters: list[tuple[str, str] | tuple[str, bytes]] = [("limit", str(limit))]
    if path is not None:
        filters.append(("path", when.raw(path)))
    filters += [
        (name, str(_micros(control, volume, moment)))
        for name, moment in (("since_us", since), ("until_us", until))
        if moment is not None
    ]
    if min_size is not None:
        filters.append(("min_bytes", str(min_size)))
    sparks = sys.stdout.isatty() and form in ("table", "wide")
    page = _page(control, volume, after, limit, filters, sparks=sparks)
    code = output.show(of_page(page), form)
    while follow:
        if page["frames"]:
            after = page["frames"][-1]["position"]
        time.sleep(FOLLOW_INTERVAL_S)
        page = _page(control, volume, after, limit, filters, sparks=False)
        if page["frames"]:
            output.show(of_page(page), form)
    return code


def _page(
    control: client.Control,
    volume: str,
    after: str | None,
    limit: int,
    filters: list[tuple[str, str] | tuple[str, bytes]],
    *,
    sparks: bool,
) -> dict[str, Any]:
    """The log with its paths from a history; bare frames where no site has one, if nothing else is asked."""
    query = [
        *filters,
        *([("after", after)] if after else []),
        ("activity", str(SPARK_CELLS if sparks else 0)),
    ]
    try:
        return {"volume": volume, "source": "the history", **control.history(volume, "log", query)}
    except errors.DiffKeeperError as error:
        if len(filters) > 1 or error.reason not in ("no-history", "no-such-route", "unknown-volume"):
            raise
        return control.log(volume, after, limit)


def _micros(control: client.Control, volume: str, text: str) -> int:
    """A moment as a time: times and ages need nobody, the others are asked for."""
    match moments.parse(text):
        case moments.AtTime(unix_us):
            return unix_us
        case moments.Ago(micros):
            return time.time_ns() // 1000 - micros
        case _:
            return int(control.history(volume, "moment", [("when", text)])["at_us"])


def of_page(page: dict[str, Any]) -> output.Answer:
    frames = page["frames"]
    if frames:
        span = (
            f"{len(frames)} frames of {page['volume']}, {frames[0]['position']} to {frames[-1]['position']}"
        )
    else:
        span = f"No frames of {page['volume']}"
    found = page.get("found") or {}
    if found.get("frames", 0) > len(frames):
        span += f" (of {found['frames']} with {found['deltas']} deltas, {output.size(found['bytes'])})"
    verdict = f"{span}, as {page['source']} has them."
    if page.get("activity"):
        verdict += f"\n{sparkline(page['activity'])}"
    return output.Answer(
        verdict,
        page,
        tables=[output.Table(COLUMNS, [_row(frame, page.get("tags") or {}) for frame in frames])],
        items=frames,
        names=[frame["position"] for frame in frames],
    )


def sparkline(activity: dict[str, Any]) -> str:
    """Bytes over time in one line, on a square-root scale so that small things show beside large ones."""
    most = max(activity["bytes"]) or 1
    cells = [
        SPARKS[min(len(SPARKS) - 1, int((size / most) ** 0.5 * len(SPARKS)))] if size else " "
        for size in activity["bytes"]
    ]
    return (
        f"{output.moment(activity['from_us'])} {''.join(cells)} {output.moment(activity['to_us'])}, "
        f"at most {output.size(most)} in {output.duration(activity['step_us'] / 1000)}"
    )


def _row(frame: dict[str, Any], tags: dict[str, str]) -> dict[str, Any]:
    flags = list(frame.get("flags") or [])
    flags += [f"tag:{name}" for name, position in tags.items() if position == frame["position"]]
    if frame.get("kept") is False:
        flags.append("thinned")
    return {
        "position": frame["position"],
        "time": output.moment(frame.get("last_us")),
        "origin": frame.get("origin"),
        "count": frame.get("count"),
        "size": output.size(frame.get("bytes")),
        "fidelity": frame.get("fidelity"),
        "flags": ", ".join(flags),
        "changed": changed(frame),
        "hash": frame.get("hash"),
        "parent": frame.get("parent"),
    }


def changed(frame: dict[str, Any]) -> str:
    """The paths of a frame in a few words, largest first."""
    paths = frame.get("paths") or []
    told = [f"{_verb(one['ops'])}{one['path'] or '.'}" for one in paths[:2]]
    more = frame.get("paths_total", len(paths)) - len(told)
    return ", ".join(told) + (f" and {more} more" if more > 0 else "")


def _verb(ops: list[str]) -> str:
    for op, sign in (("create", "+"), ("mkdir", "+"), ("symlink", "+"), ("unlink", "-"), ("rmdir", "-")):
        if op in ops:
            return sign
    return "→" if "rename" in ops else ""
