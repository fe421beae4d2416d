"""The port to the event log: streams of frames, appended by compare-and-set, mirrored between sites.

An origin stream holds the frames of one volume written at one site, numbered from 1 by the broker (the
*stream sequence*, which is not the frame's position). An adapter promises: an append is stored at exactly the
expected stream sequence or not at all; a time-out means *unknown*; a reader gets each stored message in
stream order and raises Corrupt at a gap instead of skipping it. What comes out is bytes nobody vouches for:
the reader of a frame verifies it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from diffkeeper.domain import errors, frames, positions, volumes


@dataclass(frozen=True, slots=True)
class Stored:
    """A message of a stream: where it stands, and its bytes as they are."""

    stream_sequence: int
    wire: bytes


@dataclass(frozen=True, slots=True)
class Confirmation:
    """A replicator's word that it has every frame up to ``position`` verified on its own disk."""

    site: str
    position: positions.Position
    frame_hash: bytes
    # What its tree shows: never ahead of ``position``.
    applied: positions.Position
    at_us: int


class EventLog(Protocol):
    """One site's view of the log. ``site`` is also the name of its JetStream domain."""

    site: str

    async def create_origin(self, origin: volumes.Origin) -> None:
        """Make the stream of an origin at this site, or check that it is as it must be; raises Misconfigured
        otherwise.
        """

    async def create_mirror(self, origin: volumes.Origin) -> None:
        """Make this site's mirror of an origin stream of another site, or check it."""

    async def origins(self) -> list[volumes.Origin]:
        """The origins whose streams this site holds, its own and the mirrored ones."""

    async def last(self, origin: volumes.Origin) -> Stored | None:
        """The last message of the origin's stream as seen at this site (own stream or mirror); None when
        empty.

        Raises NotFound without a stream, Unreachable or TimedOut when the broker does not answer.
        """

    async def get(self, origin: volumes.Origin, stream_sequence: int) -> Stored | None:
        """One message by its stream sequence; None when the stream does not hold it.

        One that this site's copy lost is asked for at other sites, where it stands at the same place.
        """

    def append(
        self,
        origin: volumes.Origin,
        frame: frames.Frame,
        expected_sequence: int,
        after: frames.Frame | None = None,
    ) -> asyncio.Future[int]:
        """Send a frame that must become ``expected_sequence + 1``; calls made in order are sent in order,
        without waiting.

        ``after`` is the frame before it when that one is not acknowledged yet: if another writer takes its
        place, this frame must not be stored behind the stranger's. The future resolves to the stream
        sequence; raises TimedOut when it is unknown whether the frame is stored, Fenced (reason
        ``wrong-last-sequence``) when the stream is elsewhere, Refused (reason ``log-full``) when it has no
        room, Unreachable when it was not sent because the connection is down.
        """

    def read(self, origin: volumes.Origin, first_sequence: int) -> AsyncGenerator[Stored, None]:
        """Messages from ``first_sequence`` on, then new ones as they come, without end. Resumes by itself
        after a lost connection, and takes what this site's copy lost from other sites.
        """

    async def confirm(self, origin: volumes.Origin, confirmation: Confirmation) -> None:
        """Tell the writer of ``origin``. Cumulative and lossy: say it again now and then."""

    def confirmations(self, origin: volumes.Origin) -> AsyncGenerator[Confirmation, None]:
        """What replicators of all sites say about ``origin``, as it comes. Senders are not
        authenticated by this port.
        """

    async def close(self) -> None: ...


def stream_gap(origin: volumes.Origin, expected: int, found: int | None) -> errors.Corrupt:
    instead = f"delivers {found} instead" if found is not None else "does not hold it"
    return errors.Corrupt(
        f"message {expected} of stream {origin.stream} is missing: the broker {instead}; nothing was skipped",
        reason="stream-gap",
        hint="the frame is asked for at another holder; check the broker's disk",
        stream=origin.stream,
        expected=expected,
        found=found,
    )
