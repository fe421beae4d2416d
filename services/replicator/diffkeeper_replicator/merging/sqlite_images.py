"""SQLite databases as bytes: what changed from one to the next, and rows put into one.

Changes are read with SQLite's own session extension. A database from another site is hostile: its triggers and
views never run, and work on it ends after a number of steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import apsw

from diffkeeper.domain import errors

MAGIC = b"SQLite format 3\0"
# Steps of SQLite's machine, some hundred million a second, for one reading or writing of a database.
STEPS_MAX = 500_000_000
_STEPS_AT_ONCE = 1_000_000
_ROWID = "_rowid_"
_VERSIONS = slice(18, 20)
_ROLLBACK_JOURNAL = b"\1\1"
_REPAIR_ROUNDS = 20

Value = None | int | float | str | bytes
Key = tuple[Value, ...]


@dataclass(frozen=True)
class RowChange:
    """``row`` is the whole row after the change, None when it is gone; ``columns`` those that changed."""

    table: str
    key: Key
    row: dict[str, Value] | None
    columns: frozenset[str]
    is_new: bool = False


@dataclass(frozen=True)
class Table:
    """``columns`` as the session extension counts them: with ``_rowid_`` first where there is no key."""

    name: str
    columns: tuple[str, ...]
    keys: tuple[str, ...]


@dataclass(frozen=True)
class RowWrite:
    """``values`` are the columns to write; ``whole`` is the row if it has to be made; None: delete it."""

    table: str
    key: Key
    values: dict[str, Value] | None
    whole: dict[str, Value]


@dataclass(frozen=True)
class Aside:
    """A row that the constraints of the database do not let in."""

    table: str
    key: Key
    row: dict[str, Value]
    why: str


class Unfit(ValueError):
    """The bytes are no database that can be merged by row; the text says why."""


class Image:
    """One database in memory. Closed by leaving its ``with`` block."""

    def __init__(self, content: bytes) -> None:
        if len(content) < 512 or not content.startswith(MAGIC):
            raise Unfit("the file is not an SQLite database")
        self._versions = content[_VERSIONS]
        self._db = apsw.Connection(":memory:")
        self._steps = 0
        try:
            self._guard()
            self._db.deserialize("main", _for_memory(content))
            found = self._db.execute("pragma quick_check(1)").fetchone()
            if found != ("ok",):
                raise Unfit(f"the database is damaged or half-written ({found})")
            self.schema = self._schema()
            self.tables = {table.name: table for table in self._tables()}
        except (apsw.Error, UnicodeDecodeError) as error:
            self._db.close()
            raise Unfit(f"SQLite cannot read the file ({error})") from error
        except Unfit:
            self._db.close()
            raise

    def __enter__(self) -> Image:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def _guard(self) -> None:
        self._db.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0)
        self._db.config(apsw.SQLITE_DBCONFIG_ENABLE_VIEW, 0)
        self._db.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
        self._db.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
        self._db.set_progress_handler(self._is_too_long, _STEPS_AT_ONCE)

    def _is_too_long(self) -> bool:
        self._steps += _STEPS_AT_ONCE
        return self._steps > STEPS_MAX

    def _rows(self, statement: str) -> list[Any]:
        return self._db.execute(statement).fetchall()

    def _schema(self) -> str:
        rows = self._rows("select type, name, sql from sqlite_master order by type, name")
        for _, name, sql in rows:
            if sql and " ".join(sql.lower().split()[:3]).startswith("create virtual table"):
                raise Unfit(f"the table {name} is virtual and has no rows of its own")
        return "\n".join(f"{kind} {name} {sql}" for kind, name, sql in rows)

    def _tables(self) -> Iterator[Table]:
        names = self._rows(
            "select name from sqlite_master where type = 'table' and name not like 'sqlite\\_%' escape '\\'"
        )
        for (name,) in names:
            columns, keys = [], []
            for row in self._rows(f"pragma table_xinfo({_quoted(name)})"):
                if row[6]:
                    raise Unfit(f"the table {name} has computed columns")
                columns.append(row[1])
                if row[5]:
                    keys.append(row[1])
            if not keys:
                columns, keys = [_ROWID, *columns], [_ROWID]
            # The session extension gives keys in the order of columns.
            yield Table(name, tuple(columns), tuple(keys))

    def changes_since(self, before: bytes) -> list[RowChange]:
        """Rows that differ, in tables that both have with the same columns."""
        with Image(before) as old:
            both = [name for name, table in self.tables.items() if old.tables.get(name) == table]
        self._db.execute("attach ':memory:' as before")
        self._db.deserialize("before", _for_memory(before))
        try:
            session = apsw.Session(self._db, "main")
            session.config(apsw.SQLITE_SESSION_OBJCONFIG_ROWID, 1)
            for name in both:
                session.attach(name)
                session.diff("before", name)
            found = [self._change(one) for one in apsw.Changeset.iter(session.changeset())]
            session.close()
            return found
        except (apsw.Error, UnicodeDecodeError) as error:
            raise Unfit(f"SQLite cannot compare the file with what it was ({error})") from error
        finally:
            self._db.execute("detach before")

    def _change(self, one: apsw.TableChange) -> RowChange:
        table = self.tables[one.name]
        source = one.old if one.old is not None else one.new
        assert source is not None, "a change has a row before or after it"
        key = tuple(
            value for column, value in zip(table.columns, source, strict=True) if column in table.keys
        )
        if one.new is None:
            return RowChange(one.name, _key(key), None, frozenset())
        changed = frozenset(
            column
            for column, value in zip(table.columns, one.new, strict=True)
            if value is not apsw.no_change
        )
        row = self.row(one.name, _key(key))
        assert row is not None, "a row that was inserted or updated is there"
        return RowChange(one.name, _key(key), row, changed, is_new=one.old is None)

    def row(self, table: str, key: Key) -> dict[str, Value] | None:
        known = self.tables[table]
        columns = ", ".join(map(_quoted, known.columns))
        found = self._db.execute(f"select {columns} from {_quoted(table)} where {_is(known)}", key).fetchone()
        return None if found is None else dict(zip(known.columns, found, strict=True))

    def put(self, writes: Sequence[RowWrite]) -> list[Aside]:
        """Apply the writes in their order; what constraints refuse is tried again behind the others, and
        then kept aside.
        """
        left = [one for one in writes if one.table in self.tables]
        aside = [
            Aside(one.table, one.key, one.whole, "there is no such table any more")
            for one in writes
            if one.table not in self.tables and one.values is not None
        ]
        try:
            with self._db:
                before = self._orphans()
                refused: list[tuple[RowWrite, str]] = []
                while left:
                    refused = [(one, why) for one in left if (why := self._write(one))]
                    if len(refused) == len(left):
                        break
                    left = [one for one, _ in refused]
                aside += [Aside(one.table, one.key, one.whole, why) for one, why in refused]
                aside += self._without_parents(before)
        except apsw.Error as error:
            raise Unfit(f"SQLite cannot write the merged rows ({error})") from error
        return aside

    def _write(self, one: RowWrite) -> str | None:
        """Why the write is refused."""
        table = self.tables[one.table]
        name = _quoted(one.table)
        try:
            if one.values is None:
                self._db.execute(f"delete from {name} where {_is(table)}", one.key)
            elif self.row(one.table, one.key) is None:
                row = {column: value for column, value in one.whole.items() if column in table.columns}
                columns = ", ".join(map(_quoted, row))
                places = ", ".join("?" * len(row))
                self._db.execute(f"insert into {name} ({columns}) values ({places})", tuple(row.values()))
            else:
                row = {column: value for column, value in one.values.items() if column in table.columns}
                if row:
                    sets = ", ".join(f"{_quoted(column)} = ?" for column in row)
                    self._db.execute(
                        f"update {name} set {sets} where {_is(table)}", (*row.values(), *one.key)
                    )
        except (apsw.ConstraintError, apsw.MismatchError) as error:
            return str(error)
        return None

    def _orphans(self) -> set[tuple[str, int, str]]:
        """Rows that point at none: (table, row number, table of the parent)."""
        found = self._rows("pragma foreign_key_check")
        return {(table, rowid, parent) for table, rowid, parent, _ in found if rowid is not None}

    def _without_parents(self, before: set[tuple[str, int, str]]) -> list[Aside]:
        """Rows whose parent another site deleted are taken out, as are then those that point at them."""
        aside: list[Aside] = []
        for _ in range(_REPAIR_ROUNDS):
            # Programs that do not switch foreign keys on have such rows of their own.
            rows = sorted(self._orphans() - before)
            if not rows:
                break
            for name, rowid, parent in rows:
                aside += self._take_out(name, rowid, parent)
        return aside

    def _take_out(self, name: str, rowid: int, parent: str) -> list[Aside]:
        table = self.tables[name]
        columns = ", ".join(map(_quoted, table.columns))
        found = self._db.execute(
            f"select {columns} from {_quoted(name)} where _rowid_ = ?", (rowid,)
        ).fetchone()
        if found is None:
            return []
        self._db.execute(f"delete from {_quoted(name)} where _rowid_ = ?", (rowid,))
        row = dict(zip(table.columns, found, strict=True))
        key = tuple(row[column] for column in table.columns if column in table.keys)
        return [Aside(name, key, row, f"the row of {parent} that it points at is gone")]

    def bytes(self) -> bytes:
        content = bytearray(self._db.serialize("main"))
        content[_VERSIONS] = self._versions
        return bytes(content)


def _for_memory(content: bytes) -> bytes:
    """A database in memory has no write-ahead log: the header says so while we hold it."""
    return content[: _VERSIONS.start] + _ROLLBACK_JOURNAL + content[_VERSIONS.stop :]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _is(table: Table) -> str:
    keys = [column for column in table.columns if column in table.keys]
    return " and ".join(f"{_quoted(column)} is ?" for column in keys)


def _key(values: Sequence[object]) -> Key:
    key: list[Value] = []
    for value in values:
        assert value is None or isinstance(value, int | float | str | bytes), "keys never change in place"
        key.append(value)
    return tuple(key)


@contextmanager
def opened(content: bytes) -> Iterator[Image]:
    """An image of a local file: Refused, with the reason, when it cannot be merged by row."""
    try:
        with Image(content) as image:
            yield image
    except Unfit as error:
        raise errors.Refused(
            f"{error}; it cannot be merged row by row and was left as it is",
            reason="not-sqlite",
            hint="it is kept as a whole from now on (strategy opaque)",
        ) from error
