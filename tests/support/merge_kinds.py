"""For each merge strategy what a program does to such a file, and how to see that nothing of it was lost.

Every edit adds items that nobody added before, or takes items out, so that in the end there must be exactly
what was added and not taken out.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass

import apsw

Items = frozenset[object]


@dataclass(frozen=True)
class Edited:
    content: bytes
    added: Items = frozenset()
    removed: Items = frozenset()


@dataclass(frozen=True)
class Kind:
    """``edit(rng, content, number)``: a program's edit; ``number`` is new each time. ``items``: what of it is
    in a file; None where the file is taken as a whole.
    """

    strategy: str
    path: str
    first: bytes
    edit: Callable[[random.Random, bytes, int], Edited]
    items: Callable[[bytes], Items] | None
    garbage: bytes | None = None
    # Whether an item that is changed at one site and taken out at another stays.
    edits_beat_deletes: bool = False


def _mark(number: int) -> str:
    """A character of its own: of one, two, or (in UTF-16) a pair of units, and of two to four bytes."""
    return chr((0x0400, 0x4E00, 0x20000)[number % 3] + number)


def _edit_text(rng: random.Random, content: bytes, number: int) -> Edited:
    text = content.decode()
    at = rng.randint(0, len(text))
    if text and rng.random() < 0.3:
        end = min(len(text), at + rng.randint(1, 6))
        return Edited((text[:at] + text[end:]).encode(), removed=_marks(text[at:end]))
    word = rng.choice(["", "x", "word ", "\n", "é"]) + _mark(number)
    return Edited((text[:at] + word + text[at:]).encode(), added=_marks(word))


def _marks(text: str) -> Items:
    return frozenset(character for character in text if ord(character) >= 0x0400)


def _edit_lines(rng: random.Random, content: bytes, number: int) -> Edited:
    lines = content.splitlines(keepends=True)
    roll = rng.random()
    if lines and roll < 0.15:
        gone = lines.pop(rng.randrange(len(lines)))
        return Edited(b"".join(lines), removed=_lines(gone))
    new = [b"%d.%d\n" % (number, part) for part in range(rng.randint(1, 3))]
    if lines and not lines[-1].endswith(b"\n"):
        lines[-1] += b"\n"
    at = len(lines) if roll < 0.7 else rng.randint(0, len(lines))
    ended = new if at < len(lines) or roll < 0.6 else [*new[:-1], new[-1].rstrip(b"\n")]
    return Edited(b"".join([*lines[:at], *ended, *lines[at:]]), added=_lines(b"".join(new)))


def _lines(content: bytes) -> Items:
    return frozenset(content.split())


def _edit_set(rng: random.Random, content: bytes, number: int) -> Edited:
    lines = content.split()
    if lines and rng.random() < 0.3:
        gone = lines.pop(rng.randrange(len(lines)))
        return Edited(b"".join(line + b"\n" for line in lines), removed=_lines(gone))
    lines.insert(rng.randint(0, len(lines)), b"%d" % number)
    return Edited(b"".join(line + b"\n" for line in lines), added=frozenset([b"%d" % number]))


def _edit_counter(rng: random.Random, content: bytes, number: int) -> Edited:
    step = rng.choice([1, 1, 5, -2, 10**12])
    return Edited(b"%d\n" % (int(content or b"0") + step), added=frozenset([(number, step)]))


def _edit_json(rng: random.Random, content: bytes, number: int) -> Edited:
    value = json.loads(content)
    roll = rng.random()
    value["hot"] = number
    if roll < 0.3:
        value["map"][f"k{number}"] = {"value": f"m{number}", "more": [number]}
        added, removed = {f"m{number}"}, set[object]()
    elif roll < 0.6:
        value["list"].insert(rng.randint(0, len(value["list"])), f"l{number}")
        added, removed = {f"l{number}"}, set()
    elif roll < 0.8 and value["map"]:
        gone = value["map"].pop(rng.choice(sorted(value["map"])))
        added, removed = set(), {gone["value"]}
    elif value["list"]:
        added, removed = set(), {value["list"].pop(rng.randrange(len(value["list"])))}
    else:
        added, removed = set(), set()
    indent = rng.choice([2, 2, 2, None])
    return Edited(json.dumps(value, indent=indent).encode(), frozenset(added), frozenset(removed))


def _json_items(content: bytes) -> Items:
    value = json.loads(content)
    return frozenset([*value["list"], *(one["value"] for one in value["map"].values())])


def _edit_opaque(rng: random.Random, content: bytes, number: int) -> Edited:
    return Edited(bytes([number % 256, number // 256]) + rng.randbytes(rng.randint(0, 20)))


def _database(content: bytes, *statements: tuple[str, tuple[int, ...]]) -> bytes:
    database = apsw.Connection(":memory:")
    try:
        if content:
            database.deserialize("main", content)
        for statement, bindings in statements:
            database.execute(statement, bindings)
        return database.serialize("main")
    finally:
        database.close()


def _edit_sqlite(rng: random.Random, content: bytes, number: int) -> Edited:
    rows = sorted(int(str(row)) for row in _rows(content))
    if rows and rng.random() < 0.25:
        gone = rng.choice(rows)
        return Edited(_database(content, ("delete from t where id = ?", (gone,))), removed=frozenset([gone]))
    update = ("update t set hits = hits + 1, seen = ? where id = ?", (number, rng.choice([*rows, 0])))
    insert = ("insert into t values (?, 0, ?)", (number, number))
    return Edited(_database(content, update, insert), added=frozenset([number]))


def _rows(content: bytes) -> Items:
    database = apsw.Connection(":memory:")
    try:
        database.deserialize("main", content)
        return frozenset(row[0] for row in database.execute("select id from t").fetchall())
    finally:
        database.close()


KINDS = [
    Kind("text", "notes.md", b"", _edit_text, lambda content: _marks(content.decode()), b"\xff\xfe"),
    Kind("lines", "app.log", b"", _edit_lines, _lines, edits_beat_deletes=True),
    Kind("set", "members", b"", _edit_set, _lines),
    Kind("counter", "visits", b"0\n", _edit_counter, None, b"many\n"),
    Kind(
        "json",
        "settings.json",
        b'{"hot": 0, "list": [], "map": {}}',
        _edit_json,
        _json_items,
    ),
    Kind("opaque", "image.png", b"", _edit_opaque, None),
    Kind(
        "sqlite",
        "state.db",
        _database(b"", ("create table t (id integer primary key, hits, seen)", ())),
        _edit_sqlite,
        _rows,
        b"SQLite format 3\0 and nothing behind it",
        edits_beat_deletes=True,
    ),
]
