"""The event log in memory, for tests.

A ``MemoryBroker`` holds the origin streams and each site's mirrors of them. Mirrors follow at once unless a
test sets ``partitioned`` or ``mirror_lag``; ``down`` makes a site's broker unreachable. The promises are
those of the port.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from diffkeeper.domain import errors, frames, volumes
from diffkeeper.log import confirmations, event_log


@dataclass(slots=True)
class _Stream:
    """Messages by stream sequence minus one; None stands for one that the broker lost."""

    mirror: bool
    messages: list[bytes | None] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)


class MemoryBroker:
    """The brokers of all sites."""

    def __init__(self) -> None:
        self.partitioned: set[frozenset[str]] = set()  # pairs of sites between which nothing passes
        self.down: set[str] = set()
        self.mirror_lag: dict[str, int] = {}  # site: how many messages its mirrors stay behind
        self.max_bytes: dict[str, int] = {}  # site: room of its broker
        self.streams: dict[tuple[str, volumes.Origin], _Stream] = {}
        self._listeners: dict[volumes.Origin, list[tuple[str, asyncio.Queue[bytes]]]] = defaultdict(list)
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """Let mirrors follow and readers look again; to be called after changing one of the fields above."""
        for (site, origin), stream in self.streams.items():
            source = self.streams.get((origin.site, origin))
            if stream.mirror and source is not None and self.are_joined(site, origin.site):
                until = max(len(source.messages) - self.mirror_lag.get(site, 0), 0)
                stream.messages += source.messages[len(stream.messages) : until]
        event, self._changed = self._changed, asyncio.Event()
        event.set()

    def next_change(self) -> asyncio.Event:
        return self._changed

    def are_joined(self, one: str, other: str) -> bool:
        return frozenset({one, other}) not in self.partitioned and not self.down & {one, other}

    def stream(self, site: str, origin: volumes.Origin) -> _Stream:
        self.check_up(site)
        stream = self.streams.get((site, origin))
        if stream is None:
            raise errors.NotFound(f"there is no stream {origin.stream} at {site}", reason="no-stream")
        return stream

    def check_up(self, site: str) -> None:
        if site in self.down:
            raise errors.Unreachable(f"the broker of {site} is down", reason="nats-unreachable")

    def tell(self, site: str, origin: volumes.Origin, data: bytes) -> None:
        for listener, queue in self._listeners[origin]:
            if self.are_joined(site, listener):
                queue.put_nowait(data)

    def listen(self, site: str, origin: volumes.Origin) -> asyncio.Queue[bytes]:
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._listeners[origin].append((site, queue))
        return queue

    def forget(self, site: str, origin: volumes.Origin, queue: asyncio.Queue[bytes]) -> None:
        self._listeners[origin].remove((site, queue))


class MemoryEventLog:
    """One site's view of a ``MemoryBroker``."""

    def __init__(self, broker: MemoryBroker, site: str) -> None:
        self.site = site
        self.garbage_confirmations = 0
        self._broker = broker

    async def create_origin(self, origin: volumes.Origin) -> None:
        self._create(origin, mirror=False)

    async def create_mirror(self, origin: volumes.Origin) -> None:
        self._create(origin, mirror=True)

    def _create(self, origin: volumes.Origin, *, mirror: bool) -> None:
        self._broker.check_up(self.site)
        stream = self._broker.streams.setdefault((self.site, origin), _Stream(mirror))
        if stream.mirror != mirror:
            raise errors.Misconfigured(
                f"stream {origin.stream} has mirror = {stream.mirror}, not {mirror}; it was not touched",
                reason="stream-config",
                stream=origin.stream,
                field="mirror",
            )
        self._broker.changed()

    async def origins(self) -> list[volumes.Origin]:
        self._broker.check_up(self.site)
        held = [origin for site, origin in self._broker.streams if site == self.site]
        return sorted(held, key=lambda origin: origin.stream)

    async def last(self, origin: volumes.Origin) -> event_log.Stored | None:
        count = len(self._broker.stream(self.site, origin).messages)
        if not count:
            return None
        stored = await self.get(origin, count)
        if stored is None:
            raise event_log.stream_gap(origin, count, None)
        return stored

    async def get(self, origin: volumes.Origin, stream_sequence: int) -> event_log.Stored | None:
        messages = self._broker.stream(self.site, origin).messages
        wire = messages[stream_sequence - 1] if 0 < stream_sequence <= len(messages) else None
        return event_log.Stored(stream_sequence, wire) if wire is not None else None

    def append(
        self,
        origin: volumes.Origin,
        frame: frames.Frame,
        expected_sequence: int,
        after: frames.Frame | None = None,
    ) -> asyncio.Future[int]:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        try:
            sequence = self._append(origin, frame, expected_sequence, after)
        except errors.DiffKeeperError as error:
            future.set_exception(error)
        else:
            asyncio.get_running_loop().call_soon(_resolve, future, sequence)
        return future

    def _append(
        self, origin: volumes.Origin, frame: frames.Frame, expected: int, after: frames.Frame | None
    ) -> int:
        self._broker.check_up(self.site)
        stream = self._broker.streams.get((self.site, origin))
        if stream is None or stream.mirror:
            raise errors.Unreachable(f"nobody answers on {origin.subject}", reason="no-responders")
        last_id = stream.ids[-1] if stream.ids else ""
        if len(stream.messages) != expected or (after is not None and after.message_id != last_id):
            raise errors.Fenced(
                f"stream {origin.stream} is at {len(stream.messages)}, not at {expected}",
                reason="wrong-last-sequence",
            )
        kept = sum(len(wire or b"") for wire in stream.messages)
        if kept + len(frame.wire) > self._broker.max_bytes.get(self.site, 1 << 62):
            raise errors.Refused(f"stream {origin.stream} has no room", reason="log-full")
        stream.messages.append(frame.wire)
        stream.ids.append(frame.message_id)
        self._broker.changed()
        return expected + 1

    async def read(
        self, origin: volumes.Origin, first_sequence: int
    ) -> AsyncGenerator[event_log.Stored, None]:
        following = first_sequence
        while True:
            change = self._broker.next_change()
            if self.site not in self._broker.down:
                messages = self._broker.stream(self.site, origin).messages
                while following <= len(messages):
                    wire = messages[following - 1]
                    if wire is None:
                        raise event_log.stream_gap(origin, following, None)
                    following += 1
                    yield event_log.Stored(following - 1, wire)
            await change.wait()

    async def confirm(self, origin: volumes.Origin, confirmation: event_log.Confirmation) -> None:
        self._broker.check_up(self.site)
        self._broker.tell(self.site, origin, confirmations.encode(confirmation))

    async def confirmations(self, origin: volumes.Origin) -> AsyncGenerator[event_log.Confirmation, None]:
        queue = self._broker.listen(self.site, origin)
        try:
            while True:
                try:
                    confirmation = confirmations.decode(await queue.get())
                except errors.Corrupt:
                    self.garbage_confirmations += 1
                else:
                    yield confirmation
        finally:
            self._broker.forget(self.site, origin, queue)

    async def close(self) -> None:
        """Nothing to end."""


def _resolve(future: asyncio.Future[int], sequence: int) -> None:
    if not future.done():
        future.set_result(sequence)
