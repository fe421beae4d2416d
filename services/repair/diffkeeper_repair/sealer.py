"""From the event log into segments: each origin stream is read in order, verified, cut into runs, and sealed.

A run is sealed when it is large enough or its first frame has waited long enough. Where a stream ends or begins is
known from the stripes alone, so nothing here must survive a kill. A message that is missing or altered in the
stream that is read is asked of the other sites' streams, each of which is a copy; until one gives it, nothing
behind it is sealed, and it is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field

import structlog

from diffkeeper.domain import errors, frames, segments, stripes, volumes
from diffkeeper.log import event_log
from diffkeeper_repair.catalogue import Catalogue
from diffkeeper_repair.damages import DamageBook
from diffkeeper_repair.stripe_io import StripeIO

RETRY_S = 1.0
DISCOVER_EVERY_S = 2.0

# What a reader found: messages in order, and last of all its trouble.
Arrivals = asyncio.Queue[event_log.Stored | errors.DiffKeeperError]

_log = structlog.get_logger("sealer")


@dataclass(slots=True)
class Run:
    """Frames of one stream that wait to be sealed."""

    first_sequence: int
    wires: list[bytes] = field(default_factory=list)
    size: int = 0
    # When the first of them was taken, by the loop's clock.
    since: float = 0.0

    def add(self, wire: bytes, now: float) -> None:
        if not self.wires:
            self.since = now
        self.wires.append(wire)
        self.size += len(wire)


class StreamSealer:
    """One origin's. ``run`` ends only by being cancelled."""

    def __init__(
        self,
        origin: volumes.Origin,
        logs: Mapping[str, event_log.EventLog],
        catalogue: Catalogue,
        book: DamageBook,
        io: StripeIO,
        geometry: Callable[[], stripes.Geometry],
        age_s: float,
    ) -> None:
        self.origin = origin
        self._logs = logs
        self._catalogue = catalogue
        self._book = book
        self._io = io
        self._geometry = geometry
        self._age_s = age_s
        self._run = Run(1)
        self._before: frames.Frame | None = None
        self._flush = asyncio.Event()
        self._is_ahead = False
        # Everything up to here is to be sealed without waiting for its age.
        self._flush_to = 0
        self.trouble: errors.DiffKeeperError | None = None
        # The last message of the stream, as far as it is known here.
        self.seen = 0
        self.sealed_bytes = 0

    @property
    def sealed(self) -> int:
        return self._catalogue.frontier(self.origin)

    @property
    def waiting_bytes(self) -> int:
        return self._run.size

    def flush(self, stream_sequence: int) -> None:
        """Seal up to this message as soon as it has been read."""
        self._flush_to = max(self._flush_to, stream_sequence)
        self._flush.set()

    def look_back(self) -> None:
        """Begin again where a stripe that was counted on turned out to be of another log."""
        if self.sealed + 1 < self._run.first_sequence:
            self._is_ahead = True
            self._flush.set()

    async def run(self) -> None:
        while True:
            try:
                await self._follow()
            except (errors.Transient, errors.Corrupt, errors.Refused) as error:
                if self.trouble is None or self.trouble.message != error.message:
                    _log.warning(error.message, reason=error.reason, stream=self.origin.stream)
                self.trouble = error
            await asyncio.sleep(RETRY_S)

    async def _follow(self) -> None:
        """Read from the first message that is not sealed, for as long as each can be had somewhere."""
        first = self.sealed + 1
        self._run, self._before, self._is_ahead = Run(first), None, False
        if first > 1:
            self._before = frames.open_frame(await self._anywhere(first - 1))
        avoid = ""
        while True:
            log = await self._source(avoid)
            damage = await self._read_until_damage(log)
            sequence, avoid = self._expected, log.site
            self._book.report_stream(avoid, self.origin.stream, self.origin.volume, sequence, damage.message)
            await self._take(sequence, await self._anywhere(sequence))

    @property
    def _expected(self) -> int:
        return self._run.first_sequence + len(self._run.wires)

    async def _read_until_damage(self, log: event_log.EventLog) -> errors.Corrupt:
        """Seal what one site's stream gives; returns what is wrong with the message that is expected next."""
        arrived: Arrivals = asyncio.Queue(64)
        reader = asyncio.create_task(
            _read(log, self.origin, self._expected, arrived), name=f"seal-{self.origin.stream}"
        )
        try:
            while True:
                stored = await self._next(arrived)
                if self._is_ahead:
                    raise errors.Transient(
                        f"what stands on the nodes for {self.origin.stream} behind message {self.sealed} is of another "
                        "log; it is sealed from there again",
                        reason="strange-segment",
                        hint="dkctl health names it: a node came back with another disk",
                    )
                if isinstance(stored, errors.Corrupt):
                    return stored
                if isinstance(stored, errors.DiffKeeperError):
                    raise stored
                if stored is not None:
                    try:
                        await self._take(stored.stream_sequence, stored.wire)
                    except errors.Corrupt as error:
                        return error
                if self._is_due():
                    await self.seal()
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _next(self, arrived: Arrivals) -> event_log.Stored | errors.DiffKeeperError | None:
        """The next message; None when the run is due before one comes."""
        if not arrived.empty():
            return arrived.get_nowait()
        now = asyncio.get_running_loop().time()
        pause = max(0.0, self._run.since + self._age_s - now) if self._run.wires else None
        getting = asyncio.ensure_future(arrived.get())
        flushing = asyncio.ensure_future(self._flush.wait())
        try:
            await asyncio.wait({getting, flushing}, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            return getting.result() if getting.done() else None
        finally:
            flushing.cancel()
            if not getting.done():
                getting.cancel()

    async def _take(self, sequence: int, wire: bytes) -> None:
        """Verify a message and add it to the run, sealing the run before it when it is full."""
        frame = frames.open_frame(wire)
        segments.continues(self._before, frame, self.origin)
        if not segments.fits(len(self._run.wires), self._run.size, len(wire)):
            await self.seal()
        self._run.add(wire, asyncio.get_running_loop().time())
        self._before = frame
        self.seen = max(self.seen, sequence)

    def _is_due(self) -> bool:
        self._flush.clear()
        if not self._run.wires:
            return False
        aged = asyncio.get_running_loop().time() - self._run.since >= self._age_s
        asked = self._run.first_sequence <= self._flush_to < self._expected
        return aged or asked or self._run.size >= segments.TARGET_BYTES

    async def seal(self) -> None:
        """Seal the run and begin the next; it is kept when that fails."""
        run = self._run
        segment = segments.Segment(self.origin.volume, self.origin.site, run.first_sequence, tuple(run.wires))
        manifest = await self._io.write(segment, self._geometry())
        self.sealed_bytes += manifest.segment_bytes
        self._run = Run(segment.last_sequence + 1)
        self.trouble = None
        self._book.stream_sealed(self.origin.stream, segment.last_sequence)
        _log.info(
            "sealed",
            segment=manifest.name,
            span=manifest.span.words(),
            bytes=manifest.segment_bytes,
            shards=len(manifest.placed),
        )

    async def _source(self, avoid: str) -> event_log.EventLog:
        """The log of a site that answers for this stream: its own first, one that was found damaged last."""
        trouble: errors.DiffKeeperError | None = None
        for log in sorted(self._sites(), key=lambda log: log.site == avoid):
            try:
                last = await log.last(self.origin)
            except errors.NotFound as error:
                trouble = trouble or error
            except errors.Corrupt:
                return log  # its end is damaged; what is before it can be read
            except errors.Transient as error:
                trouble = error
            else:
                self.seen = last.stream_sequence if last is not None else 0
                return log
        raise trouble or errors.Unreachable(f"no site holds {self.origin.stream}", reason="no-log")

    def _sites(self) -> list[event_log.EventLog]:
        return sorted(self._logs.values(), key=lambda log: (log.site != self.origin.site, log.site))

    async def _anywhere(self, sequence: int) -> bytes:
        """A message that some site gives whole and in its place in the chain."""
        said = ""
        for log in self._sites():
            try:
                stored = await log.get(self.origin, sequence)
                if stored is None:
                    continue
                frame = frames.open_frame(stored.wire)
                if sequence == self._expected:
                    segments.continues(self._before, frame, self.origin)
                return stored.wire
            except (errors.Corrupt, errors.Transient, errors.Refused) as error:
                said = error.message
        raise errors.Corrupt(
            f"message {sequence} of stream {self.origin.stream} is whole at no site that answers"
            + (f" ({said})" if said else "")
            + "; nothing behind it is sealed",
            reason="stream-gap",
            hint="bring back the sites that hold the stream; the writer's spool may still have the frame",
            stream=self.origin.stream,
            sequence=sequence,
        )


async def _read(
    log: event_log.EventLog,
    origin: volumes.Origin,
    first: int,
    arrived: Arrivals,
) -> None:
    try:
        async with aclosing(log.read(origin, first)) as messages:
            async for stored in messages:
                await arrived.put(stored)
    except errors.DiffKeeperError as error:
        await arrived.put(error)
