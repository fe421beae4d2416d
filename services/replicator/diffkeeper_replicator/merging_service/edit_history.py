"""All edits of one file, out of the merge logs of all sites: what a document was made of, in the order of the stamps.

A record's stamp is later than those of all records its site had taken in, so that order puts each edit behind those
it rests on.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, field

from diffkeeper.domain import clocks, errors, frames, shared_ops, volumes
from diffkeeper.domain.shared_ops import Vector
from diffkeeper.log import event_log
from diffkeeper_replicator.merging_service import merge_log

EDITS_MAX = 200_000
READ_TIMEOUT_S = 45.0
EDITS_MAX_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True, order=True)
class PastEdit:
    stamp: clocks.Stamp
    site: str
    number: int
    merger: str
    update: bytes


@dataclass(slots=True)
class EditHistory:
    """``read``: the last record of each site that was looked at."""

    object: bytes
    edits: list[PastEdit] = field(default_factory=list)
    read: Vector = field(default_factory=dict)
    # Of whose edits which were taken back before: from the first stamp to the last.
    undone: list[tuple[str, clocks.Stamp, clocks.Stamp]] = field(default_factory=list)
    sites: tuple[str, ...] = ()
    _bytes: int = 0

    def take(self, record: shared_ops.Record) -> None:
        """The next record of a site; one that is known already changes nothing."""
        site, number = record.dot
        if number <= self.read.get(site, 0):
            return
        self.read[site] = number
        op = record.op
        if isinstance(op, shared_ops.Resolve):
            self._take_undone(op)
        if not isinstance(op, shared_ops.Edit) or op.object != self.object:
            return
        self.edits.append(PastEdit(record.stamp, site, number, op.merger, op.update))
        self._bytes += len(op.update)
        if len(self.edits) > EDITS_MAX or self._bytes > EDITS_MAX_BYTES:
            raise errors.Refused(
                f"the file has more than {EDITS_MAX} edits or {EDITS_MAX_BYTES // 1048576} MiB of them; nothing was "
                "taken back",
                reason="too-many-edits",
                hint="take the version you want out of the history (dkctl cat VOLUME--SITE PATH --at WHEN)",
            )

    def _take_undone(self, op: shared_ops.Resolve) -> None:
        for site in self.sites:
            if op.conflict == undone_id(self.object, site):
                first, _, last = op.choice.partition("-")
                try:
                    self.undone.append((site, int(first, 16), int(last, 16)))
                except ValueError as error:
                    raise errors.Corrupt(
                        f"a record of what was taken back of {site} is malformed; nothing was taken back",
                        reason="malformed-record",
                        hint="look at the replicators of the volume",
                    ) from error

    def is_undone(self, edit: PastEdit) -> bool:
        return any(site == edit.site and first <= edit.stamp <= last for site, first, last in self.undone)


def undone_id(object_id: bytes, site: str) -> bytes:
    """Under which it is said that edits of a site were taken back: once is enough."""
    return shared_ops.derived_id(b"undone", object_id, site.encode())


async def read(log: event_log.EventLog, origin: volumes.Origin, into: EditHistory, upto: int) -> None:
    """The log of a site from its first frame to this record, which this site has taken in: so it is there. Transient
    where it does not come.
    """
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            await _read(log, origin, into, upto)
    except TimeoutError as error:
        raise errors.TimedOut(
            f"the merge log of {origin.site} could not be read in {READ_TIMEOUT_S:g} s; nothing was taken back",
            reason="log-slow",
            hint="try again; dkctl status tells whether a log is held up",
        ) from error


async def _read(log: event_log.EventLog, origin: volumes.Origin, into: EditHistory, upto: int) -> None:
    tip: frames.Tip | None = frames.ORIGIN_TIP
    assembler = merge_log.Assembler(origin)
    async with aclosing(log.read(origin, 1)) as arriving:
        async for stored in arriving:
            frame = frames.open_frame(stored.wire)
            merge_log.check(origin, tip, frame)
            tip = merge_log.tip_of(frame)
            for record in assembler.take(frame):
                into.take(record)
            if into.read.get(origin.site, 0) >= upto:
                return
