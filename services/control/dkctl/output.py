"""How answers look: a verdict sentence, then columns; or the same facts as JSON, JSON lines, YAML or names.

A command builds an ``Answer`` and prints it once. The answer goes to stdout, everything else (progress,
questions, hints, errors) to stderr. The keys of ``data`` and ``items`` are a contract: keys are added,
never renamed or removed.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TextIO

import click

from diffkeeper.domain import errors
from dkctl import exits

FORMATS = ("table", "wide", "json", "jsonl", "yaml", "name")
_NONE = "-"
# A key that YAML 1.1 and 1.2 both read as this text.
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_YAML_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})


@dataclass(frozen=True, slots=True)
class Column:
    """``key`` of an item under ``title``; a wide column shows with ``-o wide`` only."""

    title: str
    key: str
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    columns: Sequence[Column]
    # Cells are text ready for people; a missing key or None shows as a dash.
    rows: Sequence[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Answer:
    verdict: str
    data: dict[str, Any]
    tables: Sequence[Table] = ()
    # What ``-o jsonl`` prints a line each; without items the data is the one line.
    items: Sequence[dict[str, Any]] = ()
    names: Sequence[str] = ()
    exit: exits.Exit = exits.Exit.DONE
    # Shown on stderr after a table: what to try next.
    hints: Sequence[str] = field(default=())


def render(answer: Answer, form: str) -> str:
    """The answer in one of ``FORMATS``, with its final newline."""
    match form:
        case "json":
            return json.dumps(answer.data, indent=2) + "\n"
        case "jsonl":
            return _lines(json.dumps(item) for item in (answer.items or [answer.data]))
        case "yaml":
            return "\n".join(_yaml(answer.data, 0)) + "\n"
        case "name":
            return _lines(answer.names)
        case _:
            blocks = [_table(table, wide=form == "wide") for table in answer.tables if table.rows]
            return "\n".join([answer.verdict + "\n", *blocks])


def show(answer: Answer, form: str) -> exits.Exit:
    sys.stdout.write(render(answer, form))
    sys.stdout.flush()
    if form in ("table", "wide"):
        for hint in answer.hints:
            say(f"try: {hint}")
    return answer.exit


def say(line: str) -> None:
    """A line for people, beside the answer."""
    print(line, file=sys.stderr, flush=True)


def complain(error: errors.DiffKeeperError) -> None:
    """An error in three parts: what failed, the cause, what to try."""
    say(f"dkctl: {error.message}")
    facts = ", ".join(f"{name}={value}" for name, value in error.facts.items() if value not in ("", None))
    say(f"  cause: {error.reason}" + (f" ({facts})" if facts else ""))
    if error.hint:
        say(f"  try:   {error.hint}")


def coloured(stream: TextIO) -> bool:
    return stream.isatty()


def paint(text: str, colour: str, stream: TextIO = sys.stdout) -> str:
    return click.style(text, fg=colour) if coloured(stream) else text


def size(count: int | None) -> str | None:
    """Bytes for people, in IEC units; machines get the integer."""
    if count is None:
        return None
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < 1024 or unit == "TiB":
            break
        amount /= 1024
    return f"{count} B" if unit == "B" else f"{amount:.1f} {unit}"


def duration(ms: float | None) -> str | None:
    if ms is None:
        return None
    if ms < 1000:
        return f"{ms:.0f} ms"
    if ms < 60_000:
        return f"{ms / 1000:.1f} s"
    return f"{int(ms // 60_000)}m{int(ms % 60_000 // 1000):02d}s"


def moment(at_us: int | None) -> str | None:
    """A time as RFC 3339 in UTC."""
    if at_us is None:
        return None
    return datetime.fromtimestamp(at_us / 1e6, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def path_fields(raw: bytes) -> dict[str, str]:
    """A path for JSON: ``path`` for people, and ``path_b64`` when its bytes are not UTF-8."""
    import base64

    fields = {"path": raw.decode("utf-8", "replace")}
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        fields["path_b64"] = base64.b64encode(raw).decode("ascii")
    return fields


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _table(table: Table, *, wide: bool) -> str:
    columns = [column for column in table.columns if wide or not column.wide]
    grid = [[column.title for column in columns]]
    grid += [[_cell(row.get(column.key)) for column in columns] for row in table.rows]
    widths = [max(len(line[index]) for line in grid) for index in range(len(columns))]
    return _lines(
        "   ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in grid
    )


def _cell(value: Any) -> str:
    if value is None or value == "":
        return _NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    # A name may hold a newline or an escape sequence: a table shows it, the terminal does not obey it.
    text = str(value)
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def _yaml(value: Any, indent: int) -> list[str]:
    """Block style for maps and lists, JSON for scalars (each JSON scalar is a YAML scalar)."""
    pad = "  " * indent
    lines: list[str] = []
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            lines += _yaml_entry(f"{pad}{_yaml_key(str(key))}:", inner, indent)
    elif isinstance(value, list | tuple) and value:
        for inner in value:
            nested = _yaml(inner, indent + 1)
            lines += [f"{pad}- {nested[0].lstrip()}", *nested[1:]]
    else:
        lines.append(pad + json.dumps(value))
    return lines


def _yaml_entry(head: str, inner: Any, indent: int) -> list[str]:
    if isinstance(inner, dict | list | tuple) and inner:
        return [head, *_yaml(inner, indent + 1)]
    return [f"{head} {json.dumps(inner)}"]


def _yaml_key(key: str) -> str:
    return key if _PLAIN_KEY.fullmatch(key) and key.lower() not in _YAML_WORDS else json.dumps(key)
