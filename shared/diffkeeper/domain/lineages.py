"""Which of many frames, found anywhere and in any order, make up the history of a volume. Pure.

A frame names its parent by hash, so frames alone tell the log: its main line is the longest walk of the newest epoch
that leads back to the first frame. What is beside it is a tail that a fenced writer left, or stands behind a hole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from diffkeeper.domain import frames, positions


@dataclass(frozen=True, slots=True)
class Link:
    """What of a frame the history needs; ``origin`` and ``stream_sequence`` say where its bytes stand."""

    position: positions.Position
    hash: bytes
    parent: positions.Position
    parent_hash: bytes
    origin: str
    stream_sequence: int
    is_fence: bool
    closes_base: bool


def link_of(frame: frames.Frame, stream_sequence: int) -> Link:
    header = frame.header
    return Link(
        header.position,
        frame.hash,
        header.parent,
        header.parent_hash,
        header.origin,
        stream_sequence,
        frames.Flag.FENCE in header.flags,
        frames.Flag.BASE_END in header.flags,
    )


@dataclass(frozen=True, slots=True)
class Hole:
    """Frames that somebody continued and nobody has: those after ``after``, up to and with ``parent``."""

    after: positions.Position
    parent: positions.Position


@dataclass(frozen=True, slots=True)
class Lineage:
    main: Sequence[Link]
    # Frames that lead back to the first one and are not on the main line: tails of fenced writers.
    tails: Sequence[Link]
    # Frames behind a hole.
    cut_off: Sequence[Link]
    holes: Sequence[Hole]

    @property
    def tip(self) -> positions.Position:
        return self.main[-1].position if self.main else positions.START


def trace(found: Iterable[Link]) -> Lineage:
    by_hash = {link.hash: link for link in found if not link.is_fence}
    connected: dict[bytes, Link] = {frames.NO_HASH: _ROOT}
    cut_off: list[Link] = []
    for link in sorted(by_hash.values(), key=lambda link: (link.position.sequence, link.position)):
        parent = connected.get(link.parent_hash)
        if parent is not None and parent.position == link.parent:
            connected[link.hash] = link
        else:
            cut_off.append(link)
    main: list[Link] = []
    at = max(connected.values(), key=lambda link: link.position)
    while at is not _ROOT:
        main.append(at)
        at = connected[at.parent_hash]
    main.reverse()
    on_main = {link.hash for link in main}
    tails = sorted(
        (link for link in connected.values() if link is not _ROOT and link.hash not in on_main),
        key=lambda link: link.position,
    )
    return Lineage(main, tails, cut_off, _holes(cut_off, by_hash, connected))


def _holes(cut_off: Sequence[Link], by_hash: dict[bytes, Link], connected: dict[bytes, Link]) -> list[Hole]:
    missing = {link.parent for link in cut_off if link.parent_hash not in by_hash}
    known = sorted(link.position for link in [*by_hash.values(), *connected.values()])
    holes = []
    for parent in sorted(missing):
        before = [position for position in known if position < parent and position.sequence < parent.sequence]
        holes.append(Hole(before[-1] if before else positions.START, parent))
    return holes


_ROOT = Link(
    positions.START, frames.NO_HASH, positions.START, frames.NO_HASH, "", 0, is_fence=False, closes_base=False
)
