"""What all strategies share: each update is taken in once, and after everything its writer had seen.

An update names its site, its stamp and what its writer had seen of each site (a version vector, exact because
nobody takes in an update before those it rests on). So a strategy never meets a change to something it does
not know, needs no tombstones to recognise what was deleted, and can tell concurrent from later for certain.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diffkeeper.domain import clocks, errors
from diffkeeper_replicator.merging import merger, wire

Vector = dict[str, clocks.Stamp]

# Updates that wait for others. A site whose updates are missing is asked for its state instead.
HELD_MAX_BYTES = 64 * 1024 * 1024
HELD_MAX_UPDATES = 100_000

_UPDATE = "u"
_STATE = "s"


@dataclass(slots=True)
class Origin:
    """Where a change comes from. Invariant: ``saw`` holds nothing of this update's own stamp."""

    site: str
    stamp: clocks.Stamp
    saw: Vector

    def knew(self, site: str, stamp: clocks.Stamp) -> bool:
        return stamp <= self.saw.get(site, 0)


@dataclass(slots=True)
class _Held:
    origin: Origin
    payload: Any
    raw: bytes


class CausalDocument(ABC):
    """A ``merger.Document``; a strategy says what a payload is and what it does."""

    strategy: str
    content_max_bytes: int

    def __init__(self, site: str) -> None:
        self.site = site
        self.seen: Vector = {}
        self._held: dict[tuple[str, clocks.Stamp], _Held] = {}
        self._held_bytes = 0
        self._skips = False

    # What a strategy does.

    @abstractmethod
    def take(self, content: bytes, origin: Origin, changed: Sequence[tuple[int, int]] | None) -> Any:
        """The local edit, applied; its payload, or None when nothing changed. Refused leaves all as it was."""

    @abstractmethod
    def check(self, payload: Any) -> None:
        """Corrupt unless ``payload`` is of the shape that ``apply`` takes."""

    @abstractmethod
    def apply(self, payload: Any, origin: Origin) -> list[merger.Conflict]:
        """A remote edit whose causes are all here."""

    def pass_over(self, payload: Any, origin: Origin) -> list[merger.Conflict]:
        """A remote edit that is to leave nothing, though others rest on it; see ``skip``."""
        return []

    @abstractmethod
    def dump(self) -> Any:
        """The strategy's part of the state."""

    @abstractmethod
    def join(self, dumped: Any, theirs: Vector) -> list[merger.Conflict]:
        """Another document's ``dump``, checked here, together with what that document had seen."""

    @abstractmethod
    def content(self) -> bytes: ...

    @abstractmethod
    def blame(self) -> list[merger.Blame]: ...

    def adopt(self, dumped: Any, seen: Vector) -> None:
        """The ``dump`` of an empty document's own former self."""
        self.join(dumped, seen)

    @abstractmethod
    def compact(self) -> None: ...

    # The port.

    def edit(
        self,
        content: bytes,
        stamp: clocks.Stamp,
        site: str,
        changed: Sequence[tuple[int, int]] | None = None,
    ) -> bytes:
        if site != self.site:
            raise errors.Refused(
                f"a document of {self.site} cannot take an edit of {site}", reason="wrong-site"
            )
        if len(content) > self.content_max_bytes:
            raise errors.Refused(
                f"{len(content)} bytes are too many to merge as {self.strategy}"
                f" (at most {self.content_max_bytes})",
                reason="too-large",
                hint="give the file the strategy opaque in the rules of the volume",
            )
        # A clock that fell behind what this document has seen would lose its own edit.
        stamp = max(stamp, max(self.seen.values(), default=0) + 1)
        origin = Origin(site, stamp, dict(self.seen))
        payload = self.take(content, origin, changed)
        if payload is None:
            return b""
        self.seen[site] = stamp
        return wire.pack([wire.FORMAT, self.strategy, _UPDATE, site, stamp, origin.saw, payload])

    def merge(self, update: bytes) -> Sequence[merger.Conflict]:
        message = wire.unpack(update)
        wire.expect(isinstance(message, tuple) and len(message) >= 3, "frame")
        wire.expect(message[0] == wire.FORMAT, "format")
        wire.expect(message[1] == self.strategy, f"a file merged as {self.strategy}")
        match message[2:]:
            case (kind, site, stamp, saw, payload) if kind == _UPDATE:
                return self._merge_update(site, stamp, wire.vector(saw), payload, update)
            case (kind, seen, dumped, held) if kind == _STATE:
                return self._merge_state(wire.vector(seen), dumped, held)
        raise wire.damaged("an update is of no known kind")

    def skip(self, update: bytes) -> None:
        """Take in an update as one that was seen, without what it did (``undo``). Such a document is no replica."""
        self._skips = True
        try:
            self.merge(update)
        finally:
            self._skips = False

    @property
    def is_waiting(self) -> bool:
        """Whether updates are here that rest on others that are not."""
        return bool(self._held)

    def state(self) -> bytes:
        held = [one.raw for _, one in sorted(self._held.items())]
        message = [wire.FORMAT, self.strategy, _STATE, self.seen, self.dump(), held]
        return wire.pack(message, compressed=True)

    def resume(self, state: bytes) -> None:
        """Become the document whose ``state`` this is. Invariant: nothing was taken in before."""
        message = wire.unpack(state)
        wire.expect(isinstance(message, tuple) and len(message) == 6, "state")
        version, strategy, kind, seen, dumped, held = message
        wire.expect((version, strategy, kind) == (wire.FORMAT, self.strategy, _STATE), "state")
        vector = wire.vector(seen)
        _check_held(held)
        self.adopt(dumped, vector)
        self.seen = vector
        self._merge_held(held)

    # Order.

    def _merge_update(
        self, site: Any, stamp: Any, saw: Vector, payload: Any, raw: bytes
    ) -> list[merger.Conflict]:
        wire.expect(wire.is_site(site) and wire.is_stamp(stamp), "origin")
        wire.expect(saw.get(site, 0) < stamp, "an update that saw itself")
        if stamp <= self.seen.get(site, 0) or (site, stamp) in self._held:
            return []
        self.check(payload)
        one = _Held(Origin(site, stamp, saw), payload, raw)
        if not self._is_due(one.origin):
            self._hold(one)
            return []
        conflicts = self._take_in(one)
        return conflicts + self._release() if self._held else conflicts

    def _merge_state(self, theirs: Vector, dumped: Any, held: Any) -> list[merger.Conflict]:
        _check_held(held)
        conflicts = self.join(dumped, theirs)
        for site, stamp in theirs.items():
            self.seen[site] = max(stamp, self.seen.get(site, 0))
        conflicts += self._release()
        return conflicts + self._merge_held(held)

    def _merge_held(self, held: tuple[bytes, ...]) -> list[merger.Conflict]:
        return [conflict for raw in held for conflict in self.merge(raw)]

    def _is_due(self, origin: Origin) -> bool:
        seen = self.seen
        for site, stamp in origin.saw.items():  # noqa: SIM110 - for each key pressed somewhere: a loop is faster
            if stamp > seen.get(site, 0):
                return False
        return True

    def _take_in(self, one: _Held) -> list[merger.Conflict]:
        take = self.pass_over if self._skips else self.apply
        conflicts = take(one.payload, one.origin)
        self.seen[one.origin.site] = one.origin.stamp
        return conflicts

    def _hold(self, one: _Held) -> None:
        if self._held_bytes + len(one.raw) > HELD_MAX_BYTES or len(self._held) >= HELD_MAX_UPDATES:
            raise errors.Refused(
                f"too much waits for updates that are missing; one of {one.origin.site} was not taken in",
                reason="updates-missing",
                hint="merge the state of a site that has them",
            )
        self._held[(one.origin.site, one.origin.stamp)] = one
        self._held_bytes += len(one.raw)

    def _release(self) -> list[merger.Conflict]:
        conflicts: list[merger.Conflict] = []
        progress = True
        while progress:
            progress = False
            for key, one in sorted(self._held.items(), key=lambda item: item[0][1]):
                if one.origin.stamp <= self.seen.get(one.origin.site, 0):
                    self._drop(key)
                elif self._is_due(one.origin):
                    self._drop(key)
                    conflicts += self._take_in(one)
                    progress = True
        return conflicts

    def _drop(self, key: tuple[str, clocks.Stamp]) -> None:
        self._held_bytes -= len(self._held.pop(key).raw)


def _check_held(held: Any) -> None:
    wire.expect(isinstance(held, tuple) and len(held) <= HELD_MAX_UPDATES, "held updates")
    # Updates are plain; a state within a state could nest without end.
    wire.expect(all(isinstance(raw, bytes) and raw[:1] == b"U" for raw in held), "held updates")
