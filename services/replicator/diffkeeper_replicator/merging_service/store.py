"""What a site knows of a shared volume, on its disk: one SQLite database, changed in whole transactions.

Invariant: a record is in here before it is published, and the place in another site's log only together with
what was taken from there. ``commit`` is durable when it returns. The tree lives in memory; here is what it is
made of again (``shared_trees.SharedTree.of``).
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack

from diffkeeper.domain import errors, shared_ops, shared_trees, trees
from diffkeeper_replicator.merging_service.block_store import BlockStore

_SCHEMA = """
create table if not exists facts (key text primary key, value blob) without rowid;
create table if not exists entries (id blob primary key, packed blob) without rowid;
create table if not exists objects (id blob primary key, packed blob) without rowid;
create table if not exists claims (stamp integer, site text, number integer, packed blob,
  primary key (site, number)) without rowid;
create table if not exists documents (id blob primary key, merger text, state blob, base blob,
  unseen blob);
create table if not exists disk (entry blob primary key, packed blob) without rowid;
create table if not exists intents (entry blob primary key, packed blob) without rowid;
create table if not exists outbox (number integer primary key, packed blob);
create table if not exists peers (site text primary key, sequence integer, number integer, stamp integer,
  seen blob) without rowid;
create table if not exists conflicts (id blob primary key, packed blob, choice text) without rowid;
"""
_VERSION = 1
# Before a record in the outbox that is not there itself: no record begins like that.
_IN_BLOCKS = b"\xc1"


@dataclass(slots=True)
class Peer:
    """How far the log of a site was taken in: the stream's number, the record's, its stamp; and what it has seen."""

    sequence: int = 0
    number: int = 0
    stamp: int = 0
    seen: dict[str, int] | None = None


@dataclass(slots=True)
class Document:
    """``made``: its state, or what gives it when it is needed, at the latest for the commit: of a row of edits each of
    which could be the last, one state is made.
    """

    merger: str
    made: bytes | Callable[[], bytes]
    # Of what is in the site's directory, where that is not ``state`` yet.
    base: bytes | None
    # By site: the number before the first edit that is in ``state`` and not in ``base``. A program of this site that
    # removes the file has not seen those.
    unseen: dict[str, int] = field(default_factory=dict)
    # While ``made`` is none yet: the state before, and the updates taken since.
    before: bytes = b""
    taken: list[bytes] = field(default_factory=list)

    @property
    def state(self) -> bytes:
        if not isinstance(self.made, bytes):
            self.made, self.taken = self.made(), []
        return self.made

    @property
    def is_made(self) -> bool:
        return isinstance(self.made, bytes)


class Store:
    """One thread at a time."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(path.with_suffix(".lock"))
        try:
            self._open(path)
        except BaseException:
            os.close(self._lock)
            raise

    def _open(self, path: Path) -> None:
        # Documents whose states are still to be made.
        self._unmade: dict[bytes, Document] = {}
        self.blocks = BlockStore(path.parent / "blocks")
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._db.execute("pragma journal_mode=wal")
            self._db.execute("pragma synchronous=full")
            self._db.executescript(_SCHEMA)
            version = self.fact("version")
        except sqlite3.DatabaseError as error:
            raise errors.Corrupt(
                f"the state {path} of a shared volume cannot be read ({error}); it was left as it is",
                reason="merge-state-damaged",
                hint="put back a copy of it, or have the site join under another name",
            ) from error
        if version is None:
            self.set_fact("version", _VERSION)
            self.commit()
        elif version != _VERSION:
            raise errors.Misconfigured(
                f"the state {path} has version {version} and this replicator reads {_VERSION}",
                reason="unknown-version",
                hint="start the version that wrote it",
            )

    def close(self) -> None:
        self._db.close()
        os.close(self._lock)

    def commit(self) -> None:
        """Durable from here on; a full disk is Transient and leaves the transaction as it is."""
        for object_id, document in self._unmade.items():
            self._put(object_id, document)
        self._unmade.clear()
        if not self._db.in_transaction:
            return
        try:
            self._db.execute("commit")
        except sqlite3.OperationalError as error:
            raise errors.Transient(
                f"the state of a shared volume cannot be written ({error}); it is tried again",
                reason="disk-full",
                hint="free space on the replicator's disk (df -h)",
            ) from error

    def _do(self, statement: str, *values: object) -> None:
        if not self._db.in_transaction:
            self._db.execute("begin immediate")
        self._db.execute(statement, values)

    # -- facts -----------------------------------------------------------------------------------------------

    def fact(self, key: str) -> Any:
        row = self._db.execute("select value from facts where key = ?", (key,)).fetchone()
        return None if row is None else msgpack.unpackb(row[0])

    def set_fact(self, key: str, value: Any) -> None:
        self._do("insert or replace into facts values (?, ?)", key, msgpack.packb(value))

    # -- the tree --------------------------------------------------------------------------------------------

    def tree(self) -> shared_trees.SharedTree:
        entries = ((key, _entry(packed)) for key, packed in self._db.execute("select * from entries"))
        objects = ((key, _object(packed)) for key, packed in self._db.execute("select * from objects"))
        claims = (_claim(packed) for (packed,) in self._db.execute("select packed from claims"))
        return shared_trees.SharedTree.of(list(entries), list(objects), list(claims))

    def put_entry(self, entry_id: bytes, entry: shared_trees.Entry) -> None:
        base = None if entry.base is None else list(entry.base)
        fields = [entry.object, int(entry.kind), entry.target, base]
        packed = msgpack.packb([*fields, entry.kept, entry.removed, entry.removed_by])
        self._do("insert or replace into entries values (?, ?)", entry_id, packed)

    def put_object(self, object_id: bytes, found: shared_trees.Object) -> None:
        packed = msgpack.packb([found.edited, found.mode, found.mtime_ns, list(found.attributes_at)])
        self._do("insert or replace into objects values (?, ?)", object_id, packed)

    def drop_entry(self, entry_id: bytes) -> None:
        self._do("delete from entries where id = ?", entry_id)
        self._do("delete from disk where entry = ?", entry_id)

    def drop_object(self, object_id: bytes) -> None:
        self._do("delete from objects where id = ?", object_id)
        self._unmade.pop(object_id, None)
        self._do("delete from documents where id = ?", object_id)
        self.drop_apart(object_id)

    def put_claim(self, claim: shared_trees.Claim) -> None:
        packed = msgpack.packb(list(claim))
        stamp = claim.stamp >> 12  # SQLite's integers have a sign; the stamp itself is in ``packed``
        self._do("insert or replace into claims values (?, ?, ?, ?)", stamp, claim.site, claim.number, packed)

    def drop_claims(self, claims: Iterable[shared_trees.Claim]) -> None:
        for claim in claims:
            self._do("delete from claims where site = ? and number = ?", claim.site, claim.number)

    # -- content ---------------------------------------------------------------------------------------------

    def document(self, object_id: bytes) -> Document | None:
        if object_id in self._unmade:
            return self._unmade[object_id]
        query = "select merger, state, base, unseen from documents where id = ?"
        row = self._db.execute(query, (object_id,)).fetchone()
        if row is None:
            return None
        merger, state, base, unseen = row
        return Document(merger, state, base, msgpack.unpackb(unseen))

    def put_document(self, object_id: bytes, document: Document) -> None:
        if document.is_made:
            self._unmade.pop(object_id, None)
            self._put(object_id, document)
        else:
            self._unmade[object_id] = document

    def _put(self, object_id: bytes, document: Document) -> None:
        self._do(
            "insert or replace into documents values (?, ?, ?, ?, ?)",
            object_id,
            document.merger,
            document.state,
            document.base,
            msgpack.packb(document.unseen if document.base is not None else {}),
        )

    def drop_apart(self, object_id: bytes) -> None:
        """Documents of kinds that the file had before: their ids are its own and more behind a slash."""
        assert not any(key.startswith(object_id + b"/") for key in self._unmade), "those are put as they are"
        self._do("delete from documents where id > ? and id < ?", object_id + b"/", object_id + b"0")

    def written(self, object_id: bytes) -> None:
        """The site's directory has what the document has."""
        if object_id in self._unmade:
            self._unmade[object_id].base, self._unmade[object_id].unseen = None, {}
            return
        self._do("update documents set base = null, unseen = ? where id = ?", msgpack.packb({}), object_id)

    def documents_of(self, kind: str) -> list[bytes]:
        """The ids of documents whose kind begins like this, those of former kinds too."""
        rows = self._db.execute("select id from documents where substr(merger, 1, ?) = ?", (len(kind), kind))
        found = {row[0] for row in rows if row[0] not in self._unmade}
        return sorted(found | {key for key, one in self._unmade.items() if one.merger.startswith(kind)})

    def document_bytes(self) -> int:
        query = "select coalesce(sum(length(state) + coalesce(length(base), 0)), 0) from documents"
        return int(self._db.execute(query).fetchone()[0])

    # -- the site's directory --------------------------------------------------------------------------------

    def disk(self) -> list[tuple[bytes, list[Any]]]:
        return [(key, msgpack.unpackb(packed)) for key, packed in self._db.execute("select * from disk")]

    def put_disk(self, entry_id: bytes, fields: list[Any]) -> None:
        self._do("insert or replace into disk values (?, ?)", entry_id, msgpack.packb(fields))

    def drop_disk(self, entry_id: bytes) -> None:
        self._do("delete from disk where entry = ?", entry_id)

    def intents(self) -> list[tuple[bytes, list[Any]]]:
        return [(key, msgpack.unpackb(packed)) for key, packed in self._db.execute("select * from intents")]

    def put_intent(self, entry_id: bytes, fields: list[Any]) -> None:
        self._do("insert or replace into intents values (?, ?)", entry_id, msgpack.packb(fields))

    def drop_intent(self, entry_id: bytes) -> None:
        self._do("delete from intents where entry = ?", entry_id)

    # -- logs ------------------------------------------------------------------------------------------------

    def put_outbox(self, number: int, packed: bytes) -> None:
        self._do("insert into outbox values (?, ?)", number, packed)

    def put_outbox_block(self, site: str, number: int, stamp: int, digest: bytes) -> None:
        """One that is in ``blocks`` already, and is read from there when it is published."""
        self.put_outbox(number, _IN_BLOCKS + msgpack.packb([site, number, stamp, digest]))

    def _whole(self, packed: bytes) -> bytes:
        if not packed.startswith(_IN_BLOCKS):
            return packed
        site, number, stamp, digest = msgpack.unpackb(packed[len(_IN_BLOCKS) :])
        block = shared_ops.Block(digest, self.blocks.get(digest))
        return shared_ops.encode(shared_ops.Record(shared_ops.Dot(site, number), stamp, block))

    def outbox_blocks(self) -> set[bytes]:
        """Digests of those that are not published."""
        query = "select packed from outbox where substr(packed, 1, 1) = ?"
        rows = self._db.execute(query, (_IN_BLOCKS,))
        return {msgpack.unpackb(packed[len(_IN_BLOCKS) :])[3] for (packed,) in rows}

    def outbox(self, most_bytes: int, *, blocks: bool = True) -> list[tuple[int, bytes]]:
        """The oldest records that are not published: as many as fit, one at least. ``blocks``: with those of files."""
        found: list[tuple[int, bytes]] = []
        size = 0
        for number, kept in self._db.execute("select number, packed from outbox order by number"):
            if not blocks and kept.startswith(_IN_BLOCKS):
                continue
            packed = self._whole(kept)
            size += len(packed)
            if found and size > most_bytes:
                break
            found.append((number, packed))
        return found

    def first_unpublished(self) -> int | None:
        number: int | None = self._db.execute("select min(number) from outbox").fetchone()[0]
        return number

    def outbox_size(self) -> int:
        return int(self._db.execute("select count(*) from outbox").fetchone()[0])

    def drop_outbox(self, up_to: int) -> None:
        self._do("delete from outbox where number <= ?", up_to)

    def peers(self) -> dict[str, Peer]:
        rows = self._db.execute("select site, sequence, number, stamp, seen from peers")
        return {
            site: Peer(seq, num, stamp << 12, msgpack.unpackb(seen)) for site, seq, num, stamp, seen in rows
        }

    def put_peer(self, site: str, peer: Peer) -> None:
        seen = msgpack.packb(peer.seen or {})
        values = (site, peer.sequence, peer.number, peer.stamp >> 12, seen)
        self._do("insert or replace into peers values (?, ?, ?, ?, ?)", *values)

    # -- conflicts -------------------------------------------------------------------------------------------

    def put_conflict(self, conflict_id: bytes, fields: dict[str, Any]) -> bool:
        """False: it is known already. A choice that came before it holds."""
        row = self._db.execute("select packed from conflicts where id = ?", (conflict_id,)).fetchone()
        if row is not None and row[0]:
            return False
        self._do(
            "insert into conflicts values (?, ?, null) on conflict do update set packed = excluded.packed",
            conflict_id,
            msgpack.packb(fields),
        )
        return True

    def conflicts(self) -> list[tuple[bytes, dict[str, Any], str | None]]:
        rows = self._db.execute("select id, packed, choice from conflicts where packed != x''")
        return [(key, msgpack.unpackb(packed), choice) for key, packed, choice in rows]

    def resolve(self, conflict_id: bytes, choice: str) -> None:
        """Also of one that is not known here yet: the choice waits for it."""
        self._do(
            "insert into conflicts values (?, x'', ?) on conflict do update set choice = excluded.choice",
            conflict_id,
            choice,
        )


def _lock(path: Path) -> int:
    """Held by the one process that keeps this site's share; an earlier one may still be ending."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise errors.Transient(
            f"another process keeps {path.parent}; it is probably ending", reason="merge-state-held"
        ) from error
    return fd


def _entry(packed: bytes) -> shared_trees.Entry:
    object_id, kind, target, base, kept, removed, removed_by = msgpack.unpackb(packed)
    claim = None if base is None else shared_trees.Claim(*base)
    return shared_trees.Entry(object_id, trees.Kind(kind), target, None, claim, kept, removed, removed_by)


def _object(packed: bytes) -> shared_trees.Object:
    edited, mode, mtime_ns, at = msgpack.unpackb(packed)
    return shared_trees.Object(set(), edited, mode, mtime_ns, (at[0], at[1]))


def _claim(packed: bytes) -> shared_trees.Claim:
    return shared_trees.Claim(*msgpack.unpackb(packed))
