"""SQLite databases row by row: the last writer of each cell by clock; what constraints refuse is kept aside.

The document holds the latest database as a whole (``image``) and, for rows that were changed since, a cell for
each changed column. The file is the latest image with the cells put in that its writer had not seen. So a
database that one site writes is byte for byte what that site wrote, and where several write, all make the same
bytes of the same image and cells. A row that is changed at one site and deleted at another stays.

Only the main file counts: what a program has in its write-ahead log is merged when it is checkpointed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import msgpack
import zstandard

from diffkeeper.domain import clocks
from diffkeeper_replicator.merging import merger, registers, sqlite_images, wire
from diffkeeper_replicator.merging.causal import Origin, Vector
from diffkeeper_replicator.merging.keyed import Change, KeyedDocument
from diffkeeper_replicator.merging.sqlite_images import Aside, RowWrite

CONTENT_MAX_BYTES = 64 * 1024 * 1024
_LEVEL = 3
_KEY_MAX_COLUMNS = 2000

# Keys. A row's own cell holds the whole row as its writer left it, or None when it was deleted.
_IMAGE = ("image",)
_SCHEMA = ("schema",)
_ROW = "row"
_CELL = "cell"
_ASIDE = "aside"


class SqliteDocument(KeyedDocument):
    strategy = "sqlite"
    content_max_bytes = CONTENT_MAX_BYTES

    def __init__(self, site: str) -> None:
        super().__init__(site)
        self._aside: list[Aside] = []

    def changes(self, content: bytes, origin: Origin) -> list[Change]:
        before = self.content()
        if content == before:
            return []
        changes: list[Change] = []
        with sqlite_images.opened(content) as image:
            if _SCHEMA not in self.cells.cells or self.cells.get(_SCHEMA) != image.schema:
                changes.append((_SCHEMA, image.schema))
            for one in image.changes_since(before) if before else ():
                row = (_ROW, one.table, one.key)
                changes.append((row, None if one.row is None else [one.is_new, list(one.row.items())]))
                if one.row is not None:
                    changes += [((_CELL, one.table, one.key, name), one.row[name]) for name in one.columns]
        # What is aside is not in the new image, so from now on it has to be held.
        changes += [
            (_aside_key(one), [one.why, list(one.row.items())])
            for one in self._aside
            if _aside_key(one) not in self.cells.cells
        ]
        packed = zstandard.ZstdCompressor(level=_LEVEL).compress(content)
        changes.append((_IMAGE, [dict(origin.saw), packed]))
        return changes

    def render(self) -> bytes:
        self._aside = []
        dot, saw, content = self._image()
        writes = self._unseen(dot, saw)
        if not writes:
            return content
        try:
            with sqlite_images.Image(content) as image:
                self._aside = self._doubles(writes) + image.put(writes)
                return image.bytes()
        except sqlite_images.Unfit as error:
            raise wire.damaged(f"the merged database cannot be made: {error}") from error

    def _image(self) -> tuple[registers.Dot, Vector, bytes]:
        """The latest image, among those that have the latest schema."""
        images = self.cells.cells.get(_IMAGE)
        if not images:
            return (0, ""), {}, b""
        site_of_schema = self.cells.dot(_SCHEMA)
        fitting = [dot for dot, (saw, _) in images.items() if _covers(dot, saw, site_of_schema)]
        dot = max(fitting or images)
        saw, packed = images[dot]
        return dot, saw, _unpacked(packed)

    def _unseen(self, dot: registers.Dot, saw: Vector) -> list[RowWrite]:
        """The rows with a write that the writer of the image had not seen, in one order everywhere."""
        rows = self._unseen_rows(dot, saw)
        return [self._write(table, key) for table, key in sorted(rows, key=msgpack.packb)]

    def _unseen_rows(self, dot: registers.Dot, saw: Vector) -> set[Any]:
        rows: set[Any] = set()
        for key, writes in self.cells.cells.items():
            kind = key[0] if isinstance(key, tuple) else None
            if kind in (_ROW, _CELL) and not all(_covers(dot, saw, one) for one in writes):
                rows.add(key[1:3])  # type: ignore[index]
        return rows

    def _write(self, table: str, key: sqlite_images.Key) -> RowWrite:
        marks = self.cells.cells.get((_ROW, table, key), {})
        alive = [dot for dot, row in marks.items() if row is not None]
        if not alive:
            return RowWrite(table, key, None, {})
        whole = dict(marks[max(alive)][1])
        values = {}
        for column in whole:
            cell = (_CELL, table, key, column)
            if cell in self.cells.cells:
                values[column] = self.cells.get(cell)
        return RowWrite(table, key, values, {**whole, **values})

    def _doubles(self, writes: list[RowWrite]) -> list[Aside]:
        """Rows that were new at two sites under one key: the later one has it."""
        found = []
        for one in writes:
            marks = self.cells.cells.get((_ROW, one.table, one.key), {})
            new = [dot for dot, row in sorted(marks.items()) if row is not None and row[0]]
            rows = [dict(marks[dot][1]) for dot in new]
            found += [
                Aside(one.table, one.key, row, "another site put a row under the same key")
                for row in rows[:-1]
                if row != rows[-1]
            ]
        return found

    def apply(self, payload: Any, origin: Origin) -> list[merger.Conflict]:
        for change in payload:
            if change[0] == _IMAGE and len(change) == 2:
                _expect_database(change[1])
        first = bool(self.cells.cells.get(_IMAGE)) and not origin.saw
        conflicts = super().apply(payload, origin)
        if first:
            conflicts.append(self._unrelated(origin.site, origin.stamp))
        return conflicts + self._newly_aside(origin)

    def _unrelated(self, site: str, stamp: clocks.Stamp) -> merger.Conflict:
        return merger.Conflict(
            self.strategy, b"a database", b"another database of the same name", site, stamp, automatic=False
        )

    def _newly_aside(self, origin: Origin) -> list[merger.Conflict]:
        before = set(map(repr, self._aside))
        self.content()
        return [
            merger.Conflict(
                "sqlite-constraint",
                one.why.encode()[: merger.CONFLICT_SHOWN_BYTES],
                f"{one.table}: {one.row}".encode(errors="backslashreplace")[: merger.CONFLICT_SHOWN_BYTES],
                origin.site,
                origin.stamp,
                automatic=False,
            )
            for one in self._aside
            if repr(one) not in before
        ]

    def join(self, dumped: Any, theirs: Vector) -> list[merger.Conflict]:
        other = registers.load(dumped, self.is_key, self.is_value, theirs)
        for value in other.cells.get(_IMAGE, {}).values():
            _expect_database(value)
        return super().join(dumped, theirs)

    def adopt(self, dumped: Any, seen: Vector) -> None:
        super().join(dumped, seen)

    def compact(self) -> None:
        """Drop the rows whose every write is in every image."""
        images = [(dot, saw) for dot, (saw, _) in self.cells.cells.get(_IMAGE, {}).items()]
        needed: set[Any] = set()
        for dot, saw in images:
            needed |= self._unseen_rows(dot, saw)
        for key in list(self.cells.cells):
            if isinstance(key, tuple) and key[0] in (_ROW, _CELL) and key[1:3] not in needed:
                del self.cells.cells[key]

    def losers(self) -> list[merger.Loser]:
        """A database made at one site while another was made under the same name elsewhere."""
        images = self.cells.cells.get(_IMAGE, {})
        winner = self._image()[0]
        unrelated = [(dot, packed) for dot, (saw, packed) in images.items() if dot != winner and not saw]
        return [merger.Loser(site, stamp, _unpacked(packed)) for (stamp, site), packed in unrelated]

    def aside(self) -> list[Aside]:
        """Rows that constraints keep out, now and in former merges."""
        self.content()
        held = [
            Aside(key[1], key[2], dict(row), why)  # type: ignore[index]
            for key, _, (why, row) in (item for item in self.cells.items() if item[0][0] == _ASIDE)  # type: ignore[index]
        ]
        return held + [one for one in self._aside if one not in held]

    def is_key(self, key: Any) -> bool:
        if key in (_IMAGE, _SCHEMA):
            return True
        if not isinstance(key, tuple) or len(key) < 3 or not isinstance(key[1], str):
            return False
        if not isinstance(key[2], tuple) or len(key[2]) > _KEY_MAX_COLUMNS or not all(map(_is_plain, key[2])):
            return False
        return (key[0] == _ROW and len(key) == 3) or (
            key[0] in (_CELL, _ASIDE) and len(key) == 4 and isinstance(key[3], str)
        )

    def is_value(self, key: Any, value: Any) -> bool:
        match key[0]:
            case "image":
                return isinstance(value, tuple | list) and len(value) == 2 and _is_image(*value)
            case "schema":
                return isinstance(value, str)
            case "row":
                return value is None or (
                    isinstance(value, tuple | list)
                    and len(value) == 2
                    and type(value[0]) is bool
                    and _is_row(value[1])
                )
            case "aside":
                return isinstance(value, tuple) and len(value) == 2 and _is_row(value[1])
        return _is_plain(value)

    def name_key(self, key: Any) -> str | None:
        if key[0] != _CELL:
            return None
        return f"{key[1]} {', '.join(map(str, key[2]))}: {key[3]}"

    def show(self, key: Any, value: Any) -> bytes:
        return value if isinstance(value, bytes) else str(value).encode(errors="backslashreplace")


def _aside_key(one: Aside) -> tuple[Any, ...]:
    row = msgpack.packb(sorted(one.row.items()))
    return (_ASIDE, one.table, one.key, hashlib.blake2b(row, digest_size=8).hexdigest())


def _covers(dot: registers.Dot, saw: Vector, other: registers.Dot) -> bool:
    """Whether the image written as ``dot`` holds the write ``other``."""
    return other == dot or other[0] <= saw.get(other[1], 0)


def _is_plain(value: Any) -> bool:
    return value is None or (isinstance(value, int | float | str | bytes) and not isinstance(value, bool))


def _is_row(value: Any) -> bool:
    return isinstance(value, tuple) and all(
        isinstance(one, tuple) and len(one) == 2 and isinstance(one[0], str) and _is_plain(one[1])
        for one in value
    )


def _is_image(saw: Any, packed: Any) -> bool:
    if not isinstance(saw, dict) or not isinstance(packed, bytes):
        return False
    try:
        size = zstandard.get_frame_parameters(packed).content_size
    except zstandard.ZstdError:
        return False
    return 0 < size <= CONTENT_MAX_BYTES and wire.vector(saw) == saw


def _unpacked(packed: bytes) -> bytes:
    try:
        return zstandard.ZstdDecompressor().decompress(packed, max_output_size=CONTENT_MAX_BYTES)
    except zstandard.ZstdError as error:
        raise wire.damaged("a database cannot be decompressed") from error


def _expect_database(value: Iterable[Any]) -> None:
    _, packed = value
    try:
        with sqlite_images.Image(_unpacked(packed)):
            pass
    except sqlite_images.Unfit as error:
        raise wire.damaged(f"an update holds no database: {error}") from error


class SqliteMerger:
    name = "sqlite"

    def accepts(self, path: str, content: bytes) -> bool:
        if len(content) > CONTENT_MAX_BYTES:
            return False
        try:
            with sqlite_images.Image(content):
                return True
        except sqlite_images.Unfit:
            return False

    def new(self, site: str) -> SqliteDocument:
        return SqliteDocument(site)

    def load(self, state: bytes, site: str) -> SqliteDocument:
        document = SqliteDocument(site)
        document.resume(state)
        return document
