"""What stands where, as the nodes last said: an index in memory, made from their listings, lost without harm."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from diffkeeper.domain import manifests, segments, volumes
from diffkeeper.domain.shard_headers import MANIFEST, Key, Stripe


@dataclass(slots=True)
class Entry:
    """One stripe. ``where`` holds its shards and manifests, each with the nodes that say they have it."""

    stripe: Stripe
    where: dict[Key, set[str]] = field(default_factory=dict)
    # The newest one that was read and verified.
    manifest: manifests.Manifest | None = None
    # Counts the changes of ``where``.
    version: int = 0

    def copies(self, index: int) -> list[tuple[str, Key]]:
        """(node, key) of every copy of a shard, the newest placement first."""
        found = [(node, key) for key, nodes in self.where.items() if key.index == index for node in nodes]
        return sorted(found, key=lambda copy: (-copy[1].epoch, copy[0]))

    def shards(self) -> list[tuple[str, Key]]:
        return [copy for index in range(self.stripe.geometry.shards) for copy in self.copies(index)]

    def manifest_copies(self) -> list[tuple[str, Key]]:
        return self.copies(MANIFEST)

    @property
    def newest_epoch(self) -> int:
        return max((key.epoch for key in self.where), default=0)


class Catalogue:
    def __init__(self) -> None:
        self.entries: dict[Stripe, Entry] = {}
        # Stripes that another geometry of the same segment has replaced: on their way out.
        self.retired: set[Stripe] = set()
        # Those whose frames a larger segment holds, of which every shard stands: on their way out, too.
        self.merged: set[Stripe] = set()
        # Unreadable ones that claim places of a stream which holds other frames there: they protect nothing.
        self.strange: set[Stripe] = set()
        self._held: dict[str, set[Key]] = {}
        self.torn: dict[str, set[Key]] = {}

    def replace(self, node: str, whole: Iterable[Key], torn: Iterable[Key]) -> list[Key]:
        """Take a node's whole listing; gives what it had before and has no more."""
        now, before = set(whole), set(self._held.get(node, ()))
        for key in before - now:
            self.discard(node, key)
        for key in now - before:
            self.add(node, key)
        self.torn[node] = set(torn)
        return sorted(before - now)

    def add(self, node: str, key: Key) -> None:
        self._held.setdefault(node, set()).add(key)
        entry = self.entries.setdefault(key.stripe, Entry(key.stripe))
        entry.where.setdefault(key, set()).add(node)
        entry.version += 1

    def discard(self, node: str, key: Key) -> None:
        """The stripe stays known while its manifest is, even when nothing of it is left."""
        self._held.get(node, set()).discard(key)
        entry = self.entries.get(key.stripe)
        if entry is None:
            return
        nodes = entry.where.get(key, set())
        nodes.discard(node)
        entry.version += 1
        if not nodes:
            entry.where.pop(key, None)
        if not entry.where and entry.manifest is None:
            del self.entries[key.stripe]

    def forget(self, stripe: Stripe) -> None:
        """For a stripe that was replaced by another, and of which nothing stands any more."""
        self.entries.pop(stripe, None)
        self.retired.discard(stripe)
        self.merged.discard(stripe)

    def current(self) -> dict[Stripe, Entry]:
        """All stripes but those that others have replaced."""
        gone = self.retired | self.merged
        return {stripe: entry for stripe, entry in self.entries.items() if stripe not in gone}

    def held(self, node: str) -> set[Key]:
        return self._held.get(node, set())

    def finished(self) -> Iterator[Entry]:
        return (entry for entry in self.entries.values() if entry.manifest is not None)

    def spans(self, origin: volumes.Origin) -> list[tuple[segments.Span, Entry]]:
        """The finished stripes of an origin in the order of its stream."""
        return _placed(self.current().values(), origin)

    def merged_spans(self, origin: volumes.Origin) -> list[tuple[segments.Span, Entry]]:
        """The same of those that were merged into others, as far as something of them still stands."""
        return _placed((self.entries[stripe] for stripe in self.merged if stripe in self.entries), origin)

    def frontier(self, origin: volumes.Origin) -> int:
        """The last stream sequence up to which everything is sealed."""
        reached = 0
        for span, entry in self.spans(origin):
            if entry.stripe in self.strange:
                continue
            if span.first_sequence > reached + 1:
                break
            reached = max(reached, span.last_sequence)
        return reached

    def covering(self, origin: volumes.Origin, stream_sequence: int) -> list[Entry]:
        return [
            entry
            for span, entry in self.spans(origin)
            if span.first_sequence <= stream_sequence <= span.last_sequence
            and entry.stripe not in self.strange
        ]


def _placed(entries: Iterable[Entry], origin: volumes.Origin) -> list[tuple[segments.Span, Entry]]:
    found = [
        (entry.manifest.span, entry)
        for entry in entries
        if entry.manifest is not None and entry.manifest.span.stream == origin
    ]
    return sorted(found, key=lambda one: (one[0].first_sequence, -one[0].count))
