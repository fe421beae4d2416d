"""The event log as a replicator of a deployment with storage nodes sees it: what its own stream lost is asked for.

A message that the site's stream does not give, or gives altered, is fetched from the repair service, which looks in the
other sites' streams and then decodes a segment. Whatever comes is verified by its reader like everything else, and
must continue what the journal holds; this side believes nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import aiohttp
import structlog

from diffkeeper.domain import errors, frames, limits, volumes
from diffkeeper.log import event_log

ASK_TIMEOUT_S = 30.0

_log = structlog.get_logger("healing")


class HealingEventLog:
    """A log in front of another. ``repair`` is the address of the repair service."""

    def __init__(self, log: event_log.EventLog, repair: str, token: str) -> None:
        self.site = log.site
        self.healed_total = 0
        self._log = log
        self._repair = repair
        self._token = token
        self._session: aiohttp.ClientSession | None = None

    async def create_origin(self, origin: volumes.Origin) -> None:
        await self._log.create_origin(origin)

    async def create_mirror(self, origin: volumes.Origin) -> None:
        await self._log.create_mirror(origin)

    async def origins(self) -> list[volumes.Origin]:
        return await self._log.origins()

    async def last(self, origin: volumes.Origin) -> event_log.Stored | None:
        try:
            return await self._log.last(origin)
        except errors.Corrupt as error:
            expected = error.facts.get("expected")
            if error.reason != "stream-gap" or not isinstance(expected, int):
                raise
            return await self._ask(origin, expected, error)

    async def get(self, origin: volumes.Origin, stream_sequence: int) -> event_log.Stored | None:
        stored = await self._log.get(origin, stream_sequence)
        if stored is not None:
            try:
                frames.open_frame(stored.wire)
            except errors.Corrupt as error:
                return await self._ask(origin, stream_sequence, error)
            return stored
        last = await self._log.last(origin)
        if last is None or stream_sequence < 1 or stream_sequence > last.stream_sequence:
            return None  # not lost: not there yet
        return await self._ask(origin, stream_sequence, event_log.stream_gap(origin, stream_sequence, None))

    def append(
        self,
        origin: volumes.Origin,
        frame: frames.Frame,
        expected_sequence: int,
        after: frames.Frame | None = None,
    ) -> asyncio.Future[int]:
        return self._log.append(origin, frame, expected_sequence, after)

    async def read(
        self, origin: volumes.Origin, first_sequence: int
    ) -> AsyncGenerator[event_log.Stored, None]:
        following = first_sequence
        while True:
            try:
                async with aclosing(self._log.read(origin, following)) as messages:
                    async for stored in messages:
                        following = stored.stream_sequence + 1
                        yield stored
            except errors.Corrupt as error:
                if error.reason != "stream-gap":
                    raise
                healed = await self._ask(origin, following, error)
                following += 1
                yield healed

    async def confirm(self, origin: volumes.Origin, confirmation: event_log.Confirmation) -> None:
        await self._log.confirm(origin, confirmation)

    def confirmations(self, origin: volumes.Origin) -> AsyncGenerator[event_log.Confirmation, None]:
        return self._log.confirmations(origin)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
        await self._log.close()

    async def _ask(
        self, origin: volumes.Origin, stream_sequence: int, damage: errors.Corrupt
    ) -> event_log.Stored:
        """The message from the repair service; raises ``damage`` when that has none either."""
        try:
            wire = await self._fetch(
                f"/v1/volumes/{origin.volume}/frames/{origin.site}/{stream_sequence}?site={self.site}"
            )
            frame = frames.open_frame(wire)
        except (errors.DiffKeeperError, aiohttp.ClientError, TimeoutError, OSError) as error:
            _log.warning(
                "a frame that the stream lost could not be had elsewhere",
                stream=origin.stream,
                sequence=stream_sequence,
                error=str(error),
            )
            raise damage from error
        self.healed_total += 1
        _log.warning(
            "a frame that the stream lost was fetched from the repair service",
            stream=origin.stream,
            sequence=stream_sequence,
            position=str(frame.position),
        )
        return event_log.Stored(stream_sequence, wire)

    async def _fetch(self, path: str) -> bytes:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ASK_TIMEOUT_S))
        headers = {"Authorization": f"Bearer {self._token}"}
        async with self._session.get(self._repair + path, headers=headers) as answer:
            wire = bytearray()
            async for part in answer.content.iter_chunked(64 * 1024):
                wire += part
                if len(wire) > limits.FRAME_MAX_BYTES:
                    raise errors.Corrupt("the answer is larger than any frame", reason="answer-too-large")
            if answer.status != 200:
                raise errors.NotFound(
                    f"the repair service answered {answer.status}: {bytes(wire[:500]).decode(errors='replace')}",
                    reason="no-frame",
                )
            return bytes(wire)
