"""``dkctl diff``: what is different between two moments."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from dkctl import client, exits, options, orphan_branches, output, when
from dkctl.output import Column

COLUMNS = [
    Column("CHANGE", "change"),
    Column("KIND", "kind"),
    Column("CHANGED", "bytes"),
    Column("PATH", "path"),
    Column("FROM", "from"),
    Column("ATTRIBUTES", "attributes"),
]
_COLOURS = {"+": "green", "-": "red", "@": "cyan"}
_HEX_A_LINE = 16
MAIN = "main"


class _ToType(when.WhenType):
    """Also ``main``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return MAIN if value == MAIN else super().convert(value, param, ctx)


@click.command()
@click.argument("volume")
@click.argument("from_", metavar="FROM", type=when.WHEN)
@click.argument("to", type=_ToType())
@click.argument("paths", metavar="[PATH]...", nargs=-1)
@click.option("--stat", is_flag=True, help="Which paths and how many bytes, without the content.")
@click.option("--exit-code", is_flag=True, help="Exit code 1 when there are differences.")
@options.directory
@options.form
def diff(
    volume: str,
    from_: str,
    to: str,
    paths: tuple[str, ...],
    stat: bool,
    exit_code: bool,
    directory: Path,
    form: str,
) -> exits.Exit:
    """Show what changed in VOLUME between two moments.

    Text is shown line by line, SQLite databases by table and row, other files by ranges. TO may be main, the main line
    as it is: an orphan branch (branch:NAME) is compared with it byte for byte.
    """
    control = client.Control.of(directory)
    if to == MAIN:
        name = from_.removeprefix("branch:")
        if name != from_ and orphan_branches.is_one(control, volume, name):
            path = paths[0] if paths else None
            return orphan_branches.show_comparison(
                control, volume, name, path, stat=stat, exit_code=exit_code, form=form
            )
        to = "latest"
    query: client.Query = [
        ("from", from_),
        ("to", to),
        *(("path", when.raw(path)) for path in paths),
        ("stat", "1" if stat else "0"),
    ]
    found = control.history(volume, "diff", query)
    code = exits.Exit.ATTENTION if exit_code and found["changes"] else exits.Exit.DONE
    answer = of_diff(found, code)
    shown = output.show(answer, form)
    if form in ("table", "wide") and not stat:
        for change in found["changes"]:
            for line in lines(change):
                print(output.paint(line, _COLOURS[line[0]]) if line[:1] in _COLOURS else line)
        sys.stdout.flush()
    return shown


def of_diff(found: dict[str, Any], code: exits.Exit) -> output.Answer:
    span = (
        f"{when.resolved(found['from'], found['from_us'])} and {when.resolved(found['to'], found['to_us'])}"
    )
    counts = found["counts"]
    if not found["changes"]:
        verdict = f"{found['volume']} is the same at {span}."
    else:
        told = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
        verdict = f"{found['volume']} between {span}: {told}."
    return output.Answer(
        verdict,
        found,
        tables=[output.Table(COLUMNS, [_row(change) for change in found["changes"]])],
        items=found["changes"],
        names=[change["path"] for change in found["changes"]],
        exit=code,
        hints=["name a path: there are more changes than are shown"] if found["truncated"] else [],
    )


def _row(change: dict[str, Any]) -> dict[str, Any]:
    changed = [f"{name} {_attribute(name, *both)}" for name, both in (change.get("attributes") or {}).items()]
    return {
        "change": change["change"],
        "kind": change["kind"],
        "bytes": output.size(change["bytes"]),
        "path": change["path"],
        "from": change.get("from"),
        "attributes": ", ".join(changed),
    }


def _attribute(name: str, old: int, new: int) -> str:
    return f"{old:04o} to {new:04o}" if name == "mode" else f"{old} to {new}"


def lines(change: dict[str, Any]) -> Iterator[str]:
    """The content of one change, ready to be printed."""
    if change.get("text"):
        yield ""
        yield from map(_shown, change["text"])
        if change.get("text_truncated"):
            yield "  … more lines than are shown"
    elif change.get("sqlite") is not None:
        yield from _database(change["path"], change["sqlite"]["tables"])
    elif change.get("ranges"):
        yield ""
        yield f"{_shown(change['path'])}: {change['ranges_total']} ranges"
        for found in change["ranges"]:
            yield f"@ {found['offset']:#x}, {found['length']} bytes"
            yield from _hex("-", found["offset"], found["before"])
            yield from _hex("+", found["offset"], found["after"])
        if change["ranges_total"] > len(change["ranges"]):
            yield f"  … and {change['ranges_total'] - len(change['ranges'])} ranges more"


def _database(path: str, tables: list[dict[str, Any]]) -> Iterator[str]:
    yield ""
    if not tables:
        yield f"{_shown(path)}: the same tables and rows; only their place in the file changed"
    for table in tables:
        if table["change"] != "changed":
            yield f"@ {_shown(path)}, table {_shown(table['table'])}: {table['change']}"
            continue
        yield (
            f"@ {_shown(path)}, table {_shown(table['table'])}: {table['added']} added, "
            f"{table['removed']} removed, {table['changed']} changed"
        )
        for row in table["rows"]:
            key = _pairs(row["key"])
            match row["change"]:
                case "added":
                    yield f"+ {_pairs(row['values'])}"
                case "removed":
                    yield f"- {_pairs(row['values'])}"
                case _:
                    yield f"- {key}: {_pairs({name: both[0] for name, both in row['columns'].items()})}"
                    yield f"+ {key}: {_pairs({name: both[1] for name, both in row['columns'].items()})}"
        told = table["added"] + table["removed"] + table["changed"]
        if told > len(table["rows"]):
            yield f"  … and {told - len(table['rows'])} rows more"


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{_shown(name)}={_shown(repr(value))}" for name, value in values.items())


def _hex(sign: str, offset: int, text: str) -> Iterator[str]:
    data = bytes.fromhex(text)
    for at in range(0, len(data), _HEX_A_LINE):
        part = data[at : at + _HEX_A_LINE]
        readable = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        yield f"{sign} {offset + at:012x}  {part.hex(' '):<47}  {readable}"


def _shown(text: str) -> str:
    """A terminal shows what a file holds, and does not obey it."""
    return "".join(sign if sign.isprintable() or sign == "\t" else repr(sign)[1:-1] for sign in text)
