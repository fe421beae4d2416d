"""A document that is made of registers: what lines, counters, sets, JSON and SQLite share.

A strategy reads the content as keys and values and writes keys and values as content; what a site changed is
the difference between what it saw and what it left.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from diffkeeper_replicator.merging import merger, registers, wire
from diffkeeper_replicator.merging.causal import CausalDocument, Origin, Vector

# A write (key, value) or a delete (key,).
Change = tuple[Any, ...]


class KeyedDocument(CausalDocument):
    def __init__(self, site: str) -> None:
        super().__init__(site)
        self.cells = registers.Registers()
        self._rendered: bytes | None = None

    @abstractmethod
    def changes(self, content: bytes, origin: Origin) -> list[Change]:
        """What the edit wrote and deleted; nothing of the document changes. Refused for unfit content."""

    @abstractmethod
    def render(self) -> bytes:
        """The cells as a file: the same for the same cells."""

    @abstractmethod
    def is_key(self, key: Any) -> bool: ...

    @abstractmethod
    def is_value(self, key: Any, value: Any) -> bool: ...

    @abstractmethod
    def name_key(self, key: Any) -> str | None:
        """How people call the key; None for what they never see."""

    def show(self, key: Any, value: Any) -> bytes:
        """One side of a conflict."""
        return value if isinstance(value, bytes) else repr(value).encode()

    def is_automatic(self, key: Any) -> bool:
        """Whether concurrent writes of this key are of no concern to anybody."""
        return False

    def content(self) -> bytes:
        if self._rendered is None:
            self._rendered = self.render()
        return self._rendered

    def take(self, content: bytes, origin: Origin, changed: Sequence[tuple[int, int]] | None) -> Any:
        changes = self.changes(content, origin)
        if not changes:
            return None
        self._apply(changes, origin)
        return changes

    def check(self, payload: Any) -> None:
        wire.expect(registers.is_changes(payload, self.is_key, self.is_value), "changes")

    def apply(self, payload: Any, origin: Origin) -> list[merger.Conflict]:
        return self._apply(payload, origin)

    def _apply(self, changes: Sequence[Change], origin: Origin) -> list[merger.Conflict]:
        self._rendered = None
        found = []
        for change in changes:
            key = change[0]
            if len(change) == 1:
                left = self.cells.delete(key, origin)
                theirs = b"(deleted)"
            else:
                left = self.cells.write(key, change[1], origin)
                theirs = self.show(key, change[1])
            if left and self.name_key(key) is not None:
                found.append(self._conflict(key, left[max(left)], theirs, origin.site, origin.stamp))
        return [one for one in found if one.ours != one.theirs]

    def _conflict(self, key: Any, ours: Any, theirs: bytes, site: str, stamp: int) -> merger.Conflict:
        shown = merger.CONFLICT_SHOWN_BYTES
        name = f"{self.name_key(key)}: ".encode()
        return merger.Conflict(
            self.strategy,
            (name + self.show(key, ours))[:shown],
            (name + theirs)[:shown],
            site,
            stamp,
            automatic=self.is_automatic(key),
        )

    def dump(self) -> Any:
        return self.cells.dump()

    def join(self, dumped: Any, theirs: Vector) -> list[merger.Conflict]:
        other = registers.load(dumped, self.is_key, self.is_value, theirs)
        self._rendered = None
        ours = {key: dict(writes) for key, writes in self.cells.cells.items() if key in other.cells}
        found = []
        for key in self.cells.join(other, self.seen, theirs):
            writes = self.cells.cells[key]
            mine = max(dot for dot in writes if dot in ours[key])
            new = max(dot for dot in writes if dot not in ours[key])
            if writes[mine] != writes[new] and self.name_key(key) is not None:
                found.append(self._conflict(key, writes[mine], self.show(key, writes[new]), new[1], new[0]))
        return found

    def compact(self) -> None:
        self.cells.forget_losers()

    def blame(self) -> list[merger.Blame]:
        named = [(self.name_key(key), dot) for key, dot, _ in self.cells.items()]
        known = sorted((name, dot) for name, dot in named if name is not None)
        return [merger.Blame(name, dot[1], dot[0]) for name, dot in known]
