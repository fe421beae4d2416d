"""What changed, frame by frame and path by path: an index beside the journal for ``dkctl log`` and for WHEN.

A database with a row a frame, and a row a frame and path touched in it. It follows the log, is only added to
(but for a tail that the chain left behind), and can be made again from the log. A path is the one that the
file had at that delta.
"""

from __future__ import annotations

import fnmatch
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffkeeper.domain import clocks, deltas, frames, positions, trees
from diffkeeper.domain.deltas import ROOT_ID, Delta, Op
from diffkeeper.domain.moments import Point
from diffkeeper_replicator.archives import Step

_VERSION = 2
_SCHEMA = """
create table if not exists frame (
    sequence integer primary key, epoch integer, parent_epoch integer, parent integer, hash blob, origin text,
    flags integer, fidelity integer, deltas integer, bytes integer, first_us integer, last_us integer,
    successor text, kept integer
);
create index if not exists frame_by_time on frame (last_us);
create table if not exists path (id integer primary key, path blob unique);
create table if not exists touch (
    sequence integer, path integer, ops integer, deltas integer, bytes integer,
    primary key (sequence, path)
) without rowid;
create index if not exists touch_by_path on touch (path, sequence);
"""
_NAMING_BYTES = bytes(sorted(int(op) for op in deltas.NAMING))
# Of a file that had lost its last name.
NAMELESS = b"/nameless"


class Touch(NamedTuple):
    path: bytes
    ops: int  # one bit an operation
    deltas: int
    bytes: int


class Wanted(NamedTuple):
    """Which frames to list. ``path`` is a path, a directory, or a pattern with ``*``, ``?`` or ``[``."""

    after: int | None = None
    limit: int = 100
    path: bytes | None = None
    since_us: int | None = None
    until_us: int | None = None
    min_bytes: int | None = None


class PathIndex:
    """Any thread; calls take turns."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        self._ids: dict[bytes, int] = {}
        try:
            self._db = _connect(path)
        except sqlite3.DatabaseError:
            for suffix in ("", "-wal", "-shm"):
                Path(f"{path}{suffix}").unlink(missing_ok=True)
            self._db = _connect(path)

    # -- adding ----------------------------------------------------------------------------------------------

    def add(self, step: Step, tree: trees.Tree) -> None:
        """A step of the log, with the tree before it. Durable after ``commit``."""
        touches: list[Touch] = []
        if len(step.bodies) == 1:
            touches = _touches(step.bodies[0], tree)
        elif step.bodies:
            touches = _touches_in_order((delta for body in step.bodies for delta in body), tree)
        position, parent = step.tip.position, step.parent.position
        with self._lock:
            self._db.execute(
                "insert or replace into frame values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1)",
                (
                    position.sequence,
                    position.epoch,
                    parent.epoch,
                    parent.sequence,
                    step.tip.hash,
                    step.origin,
                    step.flags,
                    step.fidelity,
                    sum(map(len, step.bodies)),
                    step.body_bytes,
                    clocks.to_micros(step.first),
                    clocks.to_micros(step.last),
                    step.successor,
                ),
            )
            self._db.executemany(
                "insert or replace into touch values (?, ?, ?, ?, ?)",
                (
                    (position.sequence, self._id(touch.path), touch.ops, touch.deltas, touch.bytes)
                    for touch in touches
                ),
            )

    def commit(self) -> None:
        with self._lock:
            self._db.commit()

    def cut_after(self, sequence: int) -> None:
        """Forget a tail that is not of the chain any more."""
        with self._lock:
            self._db.execute("delete from frame where sequence > ?", (sequence,))
            self._db.execute("delete from touch where sequence > ?", (sequence,))
            self._db.commit()

    def mark_kept(self, first: int, last: int, kept: Iterable[int]) -> None:
        """From ``first`` to ``last`` only these sequences can be gone back to from now on."""
        with self._lock:
            self._db.execute("update frame set kept = 0 where sequence between ? and ?", (first, last))
            self._db.executemany("update frame set kept = 1 where sequence = ?", ((one,) for one in kept))
            self._db.commit()

    def close(self) -> None:
        with self._lock:
            self._db.commit()
            self._db.close()

    def _id(self, path: bytes) -> int:
        found = self._ids.get(path)
        if found is None:
            self._db.execute("insert or ignore into path (path) values (?)", (path,))
            found = int(self._db.execute("select id from path where path = ?", (path,)).fetchone()[0])
            if len(self._ids) > 100_000:
                self._ids.clear()
            self._ids[path] = found
        return found

    # -- asking ----------------------------------------------------------------------------------------------

    def tip(self) -> frames.Tip:
        """The last frame indexed."""
        row = self._one("select epoch, sequence, hash from frame order by sequence desc limit 1")
        return frames.Tip(positions.Position(row[0], row[1]), row[2]) if row else frames.ORIGIN_TIP

    def hash_of(self, sequence: int) -> bytes | None:
        row = self._one("select hash from frame where sequence = ?", sequence)
        return None if row is None else bytes(row[0])

    def first(self) -> Point | None:
        return self._point("kept = 1 order by sequence limit 1")

    def last(self) -> Point | None:
        return self._point("kept = 1 order by sequence desc limit 1")

    def at(self, position: positions.Position) -> Point | None:
        return self._point("sequence = ? and epoch = ? and kept = 1", position.sequence, position.epoch)

    def below(self, position: positions.Position) -> Point | None:
        return self._point("sequence < ? and kept = 1 order by sequence desc limit 1", position.sequence)

    def above(self, position: positions.Position) -> Point | None:
        return self._point("sequence > ? and kept = 1 order by sequence limit 1", position.sequence)

    def until(self, unix_us: int) -> Point | None:
        return self._point("last_us <= ? and kept = 1 order by last_us desc, sequence desc limit 1", unix_us)

    def rows(self, wanted: Wanted) -> list[dict[str, Any]]:
        """Frames as ``GET …/log`` tells them, each with ``paths``; oldest first: the next after ``after``, or
        else the last.
        """
        with self._lock:
            where, values = self._where(wanted)
            order = "asc" if wanted.after is not None else "desc"
            found = self._db.execute(
                f"select * from frame where {where} order by sequence {order} limit ?",
                (*values, wanted.limit),
            ).fetchall()
            if order == "desc":
                found.reverse()
            paths = self._paths([row[0] for row in found], only_wanted=wanted.path is not None)
            return [_row(row) | {"paths": paths.get(row[0], [])} for row in found]

    def activity(self, wanted: Wanted, buckets: int) -> dict[str, Any] | None:
        """Deltas and bytes over time, in so many steps; None when nothing was found."""
        with self._lock:
            where, values = self._where(wanted._replace(after=None))
            low, high = self._one(f"select min(last_us), max(last_us) from frame where {where}", *values)
            if low is None:
                return None
            step = max(1, -(-(high - low + 1) // buckets))
            counts, sizes = [0] * buckets, [0] * buckets
            for bucket, count, size in self._db.execute(
                f"select (last_us - ?) / ?, sum(deltas), sum(bytes) from frame where {where} group by 1",
                (low, step, *values),
            ):
                counts[bucket], sizes[bucket] = count, size
        return {"from_us": low, "to_us": high, "step_us": step, "deltas": counts, "bytes": sizes}

    def totals(self, wanted: Wanted) -> dict[str, int]:
        """How much is found altogether."""
        with self._lock:
            where, values = self._where(wanted._replace(after=None))
            row = self._one(
                f"select count(*), coalesce(sum(deltas), 0), coalesce(sum(bytes), 0) from frame where {where}",
                *values,
            )
        return {"frames": row[0], "deltas": row[1], "bytes": row[2]}

    def counts(self) -> tuple[int, int]:
        """Frames known, and those that can be gone back to."""
        row = self._one("select count(*), coalesce(sum(kept), 0) from frame")
        return int(row[0]), int(row[1])

    def last_with(self, flag: int) -> int | None:
        """The last sequence whose frame carries a flag."""
        found = self._one("select max(sequence) from frame where flags & ?", flag)[0]
        return None if found is None else int(found)

    def first_sequence(self) -> int:
        return int(self._one("select coalesce(min(sequence), 0) from frame")[0])

    def position_of(self, sequence: int) -> positions.Position | None:
        row = self._one("select epoch, sequence from frame where sequence = ?", sequence)
        return None if row is None else positions.Position(row[0], row[1])

    def sizes(self, first: int, last: int) -> list[tuple[int, int]]:
        """(sequence, bytes) of frames, in order."""
        return self._all(
            "select sequence, bytes from frame where sequence between ? and ? order by sequence", first, last
        )

    def middle(self, first: positions.Position, last: positions.Position) -> tuple[Point | None, int]:
        """The kept point half-way between two others, and how many lie between them."""
        between = "sequence > ? and sequence < ? and kept = 1"
        bounds = (first.sequence, last.sequence)
        count = int(self._one(f"select count(*) from frame where {between}", *bounds)[0])
        half = self._point(f"{between} order by sequence limit 1 offset ?", *bounds, count // 2)
        return half, count

    def kept(self, first: int, last: int) -> list[tuple[int, int, int]]:
        """(sequence, when captured, flags) of the points kept between two sequences."""
        return self._all(
            "select sequence, last_us, flags from frame where sequence between ? and ? and kept = 1 "
            "order by sequence",
            first,
            last,
        )

    def _where(self, wanted: Wanted) -> tuple[str, list[Any]]:
        terms, values = ["1"], []
        bounds = (
            ("sequence > ?", wanted.after),
            ("last_us >= ?", wanted.since_us),
            ("first_us <= ?", wanted.until_us),
            ("bytes >= ?", wanted.min_bytes),
        )
        for term, value in bounds:
            if value is not None:
                terms.append(term)
                values.append(value)
        if wanted.path is not None:
            self._db.execute("create temp table if not exists wanted (id integer primary key)")
            self._db.execute("delete from temp.wanted")
            self._db.executemany("insert into temp.wanted values (?)", self._matching(wanted.path))
            terms.append(
                "sequence in (select sequence from touch where path in (select id from temp.wanted))"
            )
        return " and ".join(terms), values

    def _matching(self, path: bytes) -> Sequence[tuple[int]]:
        if any(sign in path for sign in b"*?["):
            return [
                (row[0],)
                for row in self._db.execute("select id, path from path")
                if fnmatch.fnmatchcase(row[1].decode("latin-1"), path.decode("latin-1"))
            ]
        if path in (b"", b"."):
            return self._db.execute("select id from path").fetchall()
        path = path.strip(b"/")
        return self._db.execute(
            "select id from path where path = ? or (path > ? and path < ?)",
            (path, path + b"/", path + b"0"),  # "0" comes after "/"
        ).fetchall()

    def _paths(self, sequences: list[int], *, only_wanted: bool) -> dict[int, list[Touch]]:
        """What each of these frames touched, largest first."""
        self._db.execute("create temp table if not exists found (sequence integer primary key)")
        self._db.execute("delete from temp.found")
        self._db.executemany("insert into temp.found values (?)", ((one,) for one in sequences))
        only = "and touch.path in (select id from temp.wanted)" if only_wanted else ""
        touched: dict[int, list[Touch]] = {}
        for sequence, *touch in self._db.execute(
            "select touch.sequence, path.path, ops, deltas, bytes from temp.found cross join touch "
            f"on touch.sequence = found.sequence {only} join path on path.id = touch.path "
            "order by touch.sequence, bytes desc, path.path"
        ):
            touched.setdefault(sequence, []).append(Touch(*touch))
        return touched

    def _point(self, where: str, *values: Any) -> Point | None:
        row = self._one(f"select epoch, sequence, last_us from frame where {where}", *values)
        return None if row is None else Point(positions.Position(row[0], row[1]), row[2])

    def _one(self, query: str, *values: Any) -> Any:
        with self._lock:
            return self._db.execute(query, values).fetchone()

    def _all(self, query: str, *values: Any) -> list[Any]:
        with self._lock:
            return self._db.execute(query, values).fetchall()


def _touches(columns: deltas.Columns, tree: trees.Tree) -> list[Touch]:
    if len(columns.ops.translate(None, _NAMING_BYTES)) < len(columns.ops):
        return _touches_in_order(columns, tree)
    return _touches_of_content(columns, tree)


def _touches_of_content(columns: deltas.Columns, tree: trees.Tree) -> list[Touch]:
    """No name changes in this frame, so a file's deltas count together."""
    if not len(columns):
        return []
    ops = np.frombuffer(bytes(columns.ops), dtype=np.uint8)
    ids = np.frombuffer(columns.file_ids.tobytes(), dtype=np.uint64)
    sizes = np.where(ops == 2, np.frombuffer(columns.lengths.tobytes(), dtype=np.uint64), 0)
    distinct, place = np.unique(ids, return_inverse=True)
    counts = np.bincount(place)
    totals = np.bincount(place, weights=sizes.astype(np.float64))
    bits = np.zeros(len(distinct), dtype=np.int64)
    np.bitwise_or.at(bits, place, np.int64(1) << ops.astype(np.int64))
    made = []
    for file_id, bit, count, total in zip(
        distinct.tolist(), bits.tolist(), counts.tolist(), totals.tolist(), strict=True
    ):
        if bit & ~_NO_FILE:
            path = tree.path(file_id)
            made.append(Touch(NAMELESS if path is None else path, bit, count, int(total)))
    return _merged(made)


_NO_FILE = 1 << int(Op.BARRIER)


def _touches_in_order(run: Iterable[Delta], tree: trees.Tree) -> list[Touch]:
    """Names change: each delta counts for the path that its file has at that moment."""
    # Entries that this frame has made so far, in the place of those of the tree.
    moved: dict[int, tuple[int, bytes] | None] = {}

    def path(file_id: int) -> bytes:
        parts: list[bytes] = []
        while file_id != ROOT_ID:
            entry = moved[file_id] if file_id in moved else _entry(tree, file_id)
            if entry is None:
                return NAMELESS
            file_id, name = entry
            parts.append(name)
        return b"/".join(reversed(parts))

    def below(parent: int, name: bytes) -> bytes:
        above = path(parent)
        return above + b"/" + name if above else name

    made = []
    for delta in run:
        bit = 1 << int(delta.op)
        if delta.op is Op.BARRIER:
            continue
        if delta.op not in deltas.NAMING:
            made.append(Touch(path(delta.file_id), bit, 1, len(delta.data)))
            continue
        made.append(Touch(below(delta.args[0], delta.args[1]), bit, 1, 0))
        if delta.op is Op.RENAME:
            made.append(Touch(below(delta.args[2], delta.args[3]), bit, 1, 0))
        _move(moved, tree, delta)
    return _merged(made)


def _move(moved: dict[int, tuple[int, bytes] | None], tree: trees.Tree, delta: Delta) -> None:
    if delta.op in (Op.UNLINK, Op.RMDIR):
        node = tree.nodes.get(delta.file_id)
        others = sorted(node.entries - {delta.args[:2]}) if node is not None else []
        moved[delta.file_id] = others[0] if others else None
    elif delta.op is Op.RENAME:
        if delta.args[4]:
            other = tree.child(delta.args[2], delta.args[3])
            if other is not None:
                moved[other] = delta.args[:2]
        moved[delta.file_id] = delta.args[2:4]
    elif delta.op is not Op.LINK:
        moved[delta.file_id] = delta.args[:2]


def _entry(tree: trees.Tree, file_id: int) -> tuple[int, bytes] | None:
    node = tree.nodes.get(file_id)
    return min(node.entries) if node is not None and node.entries else None


def _merged(touches: list[Touch]) -> list[Touch]:
    merged: dict[bytes, Touch] = {}
    for touch in touches:
        before = merged.get(touch.path)
        if before is not None:
            touch = Touch(
                touch.path, touch.ops | before.ops, touch.deltas + before.deltas, touch.bytes + before.bytes
            )
        merged[touch.path] = touch
    return list(merged.values())


def _row(row: Sequence[Any]) -> dict[str, Any]:
    (
        sequence,
        epoch,
        parent_epoch,
        parent,
        digest,
        origin,
        flags,
        fidelity,
        count,
        size,
        first,
        last,
        to,
        kept,
    ) = row
    return {
        "position": f"{epoch}.{sequence}",
        "parent": f"{parent_epoch}.{parent}",
        "hash": bytes(digest).hex(),
        "origin": origin,
        "flags": [flag.name.lower() for flag in frames.Flag if flag & flags and flag.name],
        "fidelity": frames.Fidelity(fidelity).name.lower(),
        "count": count,
        "bytes": size,
        "first_us": first,
        "last_us": last,
        "successor": to,
        "kept": bool(kept),
    }


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False)
    try:
        connection.execute("pragma journal_mode = wal")
        # It can be made again: it must be whole after a crash, and need not have the last moment.
        connection.execute("pragma synchronous = normal")
        if connection.execute("pragma user_version").fetchone()[0] not in (0, _VERSION):
            raise sqlite3.DatabaseError("another version's index: it is made again")
        connection.executescript(_SCHEMA)
        connection.execute(f"pragma user_version = {_VERSION}")
        connection.execute("select max(sequence) from frame").fetchone()
        connection.execute("select max(path) from touch").fetchone()
    except sqlite3.DatabaseError:
        connection.close()
        raise
    return connection
