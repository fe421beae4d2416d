"""Any file: the whole of it, the last writer by clock, and what lost kept for a conflict copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffkeeper_replicator.merging import merger, registers, wire
from diffkeeper_replicator.merging.causal import CausalDocument, Origin, Vector

CONTENT_MAX_BYTES = 256 * 1024 * 1024
_WHOLE = ""


class OpaqueDocument(CausalDocument):
    strategy = "opaque"
    content_max_bytes = CONTENT_MAX_BYTES

    def __init__(self, site: str) -> None:
        super().__init__(site)
        self._versions = registers.Registers()

    def content(self) -> bytes:
        return bytes(self._versions.get(_WHOLE)) if self._versions.cells else b""

    def take(self, content: bytes, origin: Origin, changed: Sequence[tuple[int, int]] | None) -> Any:
        if self._versions.cells and self.content() == content:
            return None
        self._versions.write(_WHOLE, content, origin)
        return content

    def check(self, payload: Any) -> None:
        wire.expect(isinstance(payload, bytes) and len(payload) <= CONTENT_MAX_BYTES, "content")

    def apply(self, payload: Any, origin: Origin) -> list[merger.Conflict]:
        left = self._versions.write(_WHOLE, payload, origin)
        if not left or left[max(left)] == payload:
            return []
        return [self._conflict(left[max(left)], payload, origin.site, origin.stamp)]

    def dump(self) -> Any:
        return self._versions.dump()

    def join(self, dumped: Any, theirs: Vector) -> list[merger.Conflict]:
        other = registers.load(
            dumped, lambda key: bool(key == _WHOLE), lambda _, value: isinstance(value, bytes), theirs
        )
        before = set(self._versions.cells.get(_WHOLE, {}))
        met = self._versions.join(other, self.seen, theirs)
        if not met:
            return []
        writes = self._versions.cells[_WHOLE]
        ours = max(dot for dot in writes if dot in before)
        new = max(dot for dot in writes if dot not in before)
        return (
            [self._conflict(writes[ours], writes[new], new[1], new[0])] if writes[ours] != writes[new] else []
        )

    def losers(self) -> list[merger.Loser]:
        whole = self.content()
        return [
            merger.Loser(dot[1], dot[0], bytes(value))
            for _, dot, value in self._versions.losers()
            if value != whole
        ]

    def compact(self) -> None:
        self._versions.forget_losers()

    def blame(self) -> list[merger.Blame]:
        return [merger.Blame("whole file", dot[1], dot[0]) for _, dot, _ in self._versions.items()]

    def _conflict(self, ours: bytes, theirs: bytes, site: str, stamp: int) -> merger.Conflict:
        shown = merger.CONFLICT_SHOWN_BYTES
        return merger.Conflict(self.strategy, ours[:shown], theirs[:shown], site, stamp, automatic=False)


class OpaqueMerger:
    name = "opaque"

    def accepts(self, path: str, content: bytes) -> bool:
        return True

    def new(self, site: str) -> OpaqueDocument:
        return OpaqueDocument(site)

    def load(self, state: bytes, site: str) -> OpaqueDocument:
        document = OpaqueDocument(site)
        document.resume(state)
        return document
