"""Makes one segment of many small neighbours, in the background and within a budget.

A volume that is written little is sealed by age, so its segments are small and each costs a header, a manifest on every node
and a decode of its own. The neighbours are read and believed, sealed again as one run, and removed when every shard of that
stands. What may be removed is decided by content alone: the frames of the large segment, cut as the small one was,
have the hash that is the small one's name. So whoever is killed between leaves both, and the next round removes what is
covered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog
from blake3 import blake3

from diffkeeper.domain import errors, segments, stripes, volumes
from diffkeeper_repair import planner
from diffkeeper_repair.catalogue import Catalogue, Entry
from diffkeeper_repair.rebuilder import Rebuilder
from diffkeeper_repair.stripe_io import StripeIO

LOOK_EVERY_S = 60.0
# Fewer are left alone: what is rewritten is at most so much more often read than it was written.
AT_LEAST = 8

Placed = tuple[segments.Span, Entry]

_log = structlog.get_logger("merger")


class Merger:
    def __init__(
        self,
        catalogue: Catalogue,
        rebuilder: Rebuilder,
        io: StripeIO,
        geometry_of: Callable[[str], stripes.Geometry],
        bytes_per_s: int,
    ) -> None:
        self._catalogue = catalogue
        self._rebuilder = rebuilder
        self._io = io
        self._geometry_of = geometry_of
        self._bytes_per_s = bytes_per_s
        self.segments_total = 0

    async def run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self.round()

    async def round(self) -> None:
        """Each stream once; what cannot be merged now is left for the next round."""
        for origin in sorted({span.stream for span in self._spans()}, key=lambda one: one.stream):
            try:
                await self._clear_covered(origin)
                for run in runs(self._whole(origin)):
                    await self._merge(run)
            except errors.DiffKeeperError as error:
                _log.warning("small segments stay as they are", stream=origin.stream, error=error.message)

    def _spans(self) -> list[segments.Span]:
        return [
            entry.manifest.span
            for entry in self._catalogue.current().values()
            if entry.manifest is not None and entry.stripe not in self._catalogue.strange
        ]

    def _whole(self, origin: volumes.Origin) -> list[Placed]:
        """Stripes of the wanted geometry of which every shard stands, in the order of the stream."""
        return [(span, entry) for span, entry in self._catalogue.spans(origin) if self._is_whole(entry)]

    def _is_whole(self, entry: Entry) -> bool:
        geometry = entry.stripe.geometry
        return (
            entry.stripe not in self._catalogue.strange
            and geometry == self._geometry_of(entry.stripe.volume)
            and planner.spare(geometry, self._rebuilder.plan(entry, patient=True)) == geometry.parity
        )

    async def _merge(self, run: Sequence[Placed]) -> None:
        wires: list[bytes] = []
        for _, entry in run:
            wires += (await self._io.read(entry)).segment.wires
        span, first = run[0]
        merged = segments.Segment(span.volume, span.origin, span.first_sequence, tuple(wires))
        manifest = await self._io.write(merged, first.stripe.geometry)
        self.segments_total += len(run)
        _log.info("merged", segments=len(run), span=manifest.span.words(), bytes=manifest.segment_bytes)
        await asyncio.sleep(2 * manifest.segment_bytes / self._bytes_per_s)
        await self._clear(self._catalogue.entries[manifest.stripe], [entry for _, entry in run])

    async def _clear_covered(self, origin: volumes.Origin) -> None:
        """What an earlier run left: small segments beside the large one that holds their frames."""
        left = [*self._catalogue.spans(origin), *self._catalogue.merged_spans(origin)]
        for span, large in self._whole(origin):
            covered = [entry for other, entry in left if entry is not large and _holds(span, other)]
            if covered:
                await self._clear(large, covered)

    async def _clear(self, large: Entry, covered: Sequence[Entry]) -> None:
        """Remove what the large segment holds, as far as every shard of it stands and its frames are the same."""
        if not self._is_whole(large):
            return
        segment = (await self._io.read(large)).segment
        for entry in covered:
            if entry.manifest is not None and _is_cut_of(segment, entry.manifest.span, entry.stripe.segment):
                self._catalogue.merged.add(entry.stripe)
                await self._io.drop(entry)


def runs(placed: Sequence[Placed]) -> list[list[Placed]]:
    """Neighbours that fit into one segment together, where they are enough."""
    found: list[list[Placed]] = []
    run: list[Placed] = []
    for one in placed:
        if run and not _fits(run, one):
            found.append(run)
            run = []
        run.append(one)
    return [run for run in [*found, run] if len(run) >= AT_LEAST]


def _fits(run: Sequence[Placed], following: Placed) -> bool:
    span, entry = following
    size = sum(_size(one) for _, one in run)
    frames = sum(one.count for one, _ in run)
    return (
        span.first_sequence == run[-1][0].last_sequence + 1
        and segments.fits(frames + span.count - 1, size, _size(entry))
        and entry.stripe.volume == run[0][1].stripe.volume
    )


def _size(entry: Entry) -> int:
    return entry.manifest.segment_bytes if entry.manifest is not None else segments.MAX_BYTES


def _holds(span: segments.Span, other: segments.Span) -> bool:
    return (
        span.first_sequence <= other.first_sequence
        and other.last_sequence <= span.last_sequence
        and other.count < span.count
    )


def _is_cut_of(segment: segments.Segment, span: segments.Span, name: str) -> bool:
    """Whether these frames of a segment, sealed alone, are the segment of this name."""
    if span.stream != volumes.Origin(segment.volume, segment.origin):
        return False
    begin = span.first_sequence - segment.first_sequence
    wires = segment.wires[begin : begin + span.count]
    if begin < 0 or len(wires) != span.count:
        return False
    cut = segments.Segment(segment.volume, segment.origin, span.first_sequence, wires)
    return segments.name_of(blake3(segments.encode(cut)).digest()) == name
