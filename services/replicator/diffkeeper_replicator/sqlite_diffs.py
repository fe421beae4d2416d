"""Two SQLite databases compared by table and row: rows are known by their key, tables by their name.

The databases are copies that nobody else uses; what they hold is not trusted: no triggers, views or
extensions run, and a comparison that takes too long is given up.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROWS_MAX = 200
TIME_MAX_S = 20.0
_TEXT_MAX_CHARS = 200
_ROWS_AT_ONCE = 1000


def compare(before: Path, after: Path) -> dict[str, Any] | None:
    """``tables``: each with what was added, removed and changed; None when it is no database after all, or
    cannot be compared in time.
    """
    deadline = time.monotonic() + TIME_MAX_S
    try:
        db = sqlite3.connect(after)
        try:
            db.execute("pragma trusted_schema = off")
            # A WAL is recovered as the program's next start would do it.
            db.execute("select count(*) from sqlite_master").fetchone()
            db.execute("attach ? as old", (str(before),))
            db.execute("select count(*) from old.sqlite_master").fetchone()
            db.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
            return _compared(db)
        finally:
            db.close()
    except sqlite3.Error:
        return None


def _compared(db: sqlite3.Connection) -> dict[str, Any]:
    old, new = _tables(db, "old"), _tables(db, "main")
    tables = []
    for name in sorted(old.keys() | new.keys()):
        if name not in new:
            tables.append({"table": name, "change": "removed", "rows": _count(db, "old", name)})
        elif name not in old:
            tables.append({"table": name, "change": "added", "rows": _count(db, "main", name)})
        elif old[name] != new[name]:
            tables.append({"table": name, "change": "redefined", "schema": [old[name], new[name]]})
        else:
            found = _rows(db, name)
            if found["added"] or found["removed"] or found["changed"]:
                tables.append({"table": name, "change": "changed", **found})
    return {"tables": tables}


def _tables(db: sqlite3.Connection, schema: str) -> dict[str, str]:
    return dict(
        db.execute(
            f"select name, sql from {schema}.sqlite_master where type = 'table' and name not like 'sqlite_%' "
            "and sql not like 'create virtual%'"
        ).fetchall()
    )


def _count(db: sqlite3.Connection, schema: str, table: str) -> int:
    return int(db.execute(f"select count(*) from {schema}.{_quoted(table)}").fetchone()[0])


def _rows(db: sqlite3.Connection, table: str) -> dict[str, Any]:
    """Both tables are read side by side in the order of their key."""
    columns = [row[1] for row in db.execute(f"pragma main.table_info({_quoted(table)})")]
    key = [
        row[1]
        for row in sorted(
            db.execute(f"pragma main.table_info({_quoted(table)})").fetchall(), key=lambda r: r[5]
        )
        if row[5]
    ]
    by = key or ["rowid"]
    told: dict[str, Any] = {"key": by, "columns": columns, "added": 0, "removed": 0, "changed": 0, "rows": []}
    for change, one, other in _merged(
        _read(db, "old", table, by, columns), _read(db, "main", table, by, columns)
    ):
        told[change] += 1
        if len(told["rows"]) < ROWS_MAX:
            told["rows"].append(_told(change, by, columns, one, other))
    return told


Row = tuple[Any, ...]


def _read(
    db: sqlite3.Connection, schema: str, table: str, by: list[str], columns: list[str]
) -> Iterator[Row]:
    """(sort key, key, values), in the order of the key as SQLite sorts without collations."""
    names = ", ".join(_quoted(name) for name in by)
    values = ", ".join(_quoted(name) for name in columns)
    order = ", ".join(f"{_quoted(name)} collate binary" for name in by)
    cursor = db.cursor()
    cursor.execute(f"select {names}, {values} from {schema}.{_quoted(table)} order by {order}")
    while rows := cursor.fetchmany(_ROWS_AT_ONCE):
        for row in rows:
            key = row[: len(by)]
            yield tuple(_sortable(value) for value in key), key, row[len(by) :]


def _merged(old: Iterator[Row], new: Iterator[Row]) -> Iterator[tuple[str, Row | None, Row | None]]:
    one, other = next(old, None), next(new, None)
    while one is not None or other is not None:
        if other is None or (one is not None and one[0] < other[0]):
            yield "removed", one, None
            one = next(old, None)
        elif one is None or other[0] < one[0]:
            yield "added", None, other
            other = next(new, None)
        else:
            if one[2] != other[2]:
                yield "changed", one, other
            one, other = next(old, None), next(new, None)


def _sortable(value: Any) -> tuple[int, Any]:
    """As SQLite orders values of different types."""
    if value is None:
        return (0, 0)
    if isinstance(value, int | float):
        return (1, value)
    if isinstance(value, str):
        return (2, value.encode("utf-8", "surrogatepass"))
    return (3, value)


def _told(
    change: str, by: list[str], columns: list[str], one: Row | None, other: Row | None
) -> dict[str, Any]:
    row = other if other is not None else one
    assert row is not None, "a change has a side"
    told: dict[str, Any] = {
        "change": change,
        "key": {name: _plain(value) for name, value in zip(by, row[1], strict=True)},
    }
    if one is not None and other is not None:
        told["columns"] = {
            name: [_plain(left), _plain(right)]
            for name, left, right in zip(columns, one[2], other[2], strict=True)
            if left != right
        }
    else:
        told["values"] = {name: _plain(value) for name, value in zip(columns, row[2], strict=True)}
    return told


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        shown = value[: _TEXT_MAX_CHARS // 2].hex()
        return f"x'{shown}'" + ("…" if len(value) > _TEXT_MAX_CHARS // 2 else "")
    if isinstance(value, str) and len(value) > _TEXT_MAX_CHARS:
        return value[:_TEXT_MAX_CHARS] + "…"
    return value


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
