"""JSON by key and list element, with the layout and comments that the sites wrote.

Two documents in one: the text, merged by character, and the values, merged by path. Where the merged text says
what the merged values are, it is the file, with everybody's comments. Where concurrent edits met in one place
and the text says something else, it is corrected to the values. While the latest edit is no JSON, the text
alone is the file; values follow as soon as it is JSON again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from diffkeeper_replicator.merging import (
    json_patches,
    json_text,
    json_trees,
    merger,
    places,
    registers,
    wire,
)
from diffkeeper_replicator.merging.causal import Origin, Vector
from diffkeeper_replicator.merging.json_text import Node
from diffkeeper_replicator.merging.keyed import Change, KeyedDocument
from diffkeeper_replicator.merging.text import TextDocument

CONTENT_MAX_BYTES = 4 * 1024 * 1024
# Whether the latest edit was JSON.
_MODE = "mode"
_JSON = "json"
# And had a comma behind a last element, which many programs refuse.
_COMMAS = "json,"
_TEXT = "text"
_CLOSING_COMMA = re.compile(rb",\s*(?:[\]}]|/[/*])")


class JsonDocument(KeyedDocument):
    strategy = "json"
    content_max_bytes = CONTENT_MAX_BYTES

    def __init__(self, site: str) -> None:
        super().__init__(site)
        self._text = TextDocument(site)
        self._branch: json_trees.Branch | None = None

    def take(self, content: bytes, origin: Origin, changed: Sequence[tuple[int, int]] | None) -> Any:
        before = self.content()
        if self.cells.cells and content == before:
            return None
        changes = self.changes(content, origin)
        fitting = changed if self._text.content() == before else None
        text = self._text.take(content, origin, fitting)
        self._apply(changes, origin)
        return [text, changes]

    def _grown(self) -> json_trees.Branch | None:
        """Invariant: ``_branch`` is None or made of the cells as they are."""
        if self._branch is None:
            self._branch = json_trees.grown(self.cells)
        return self._branch

    def _apply(self, changes: Sequence[Change], origin: Origin) -> list[merger.Conflict]:
        if any(change[0] != _MODE for change in changes):
            self._branch = None
        return super()._apply(changes, origin)

    def changes(self, content: bytes, origin: Origin) -> list[Change]:
        node = _read(content)
        if node is None:
            return [(_MODE, _TEXT)]
        difference = json_trees.Difference(origin)
        difference.between((), self._grown(), node)
        # Only a comma that closes something can be one too many.
        mode = _COMMAS if _CLOSING_COMMA.search(content) and not _read(content, commas=False) else _JSON
        return [(_MODE, mode), *difference.changes]

    def _mode(self) -> str:
        """JSON only when no edit that was none is concurrent: its change is in the text alone."""
        modes = self.cells.cells.get(_MODE, {}).values()
        if not modes or _TEXT in modes:
            return _TEXT
        return str(self.cells.get(_MODE))

    def render(self) -> bytes:
        text = self._text.content()
        mode = self._mode()
        if mode == _TEXT:
            return text
        branch = self._grown()
        if branch is None:
            return text
        return json_patches.patched(text.decode(), branch.node, mode == _COMMAS).encode()

    def check(self, payload: Any) -> None:
        wire.expect(isinstance(payload, tuple) and len(payload) == 2, "JSON")
        text, changes = payload
        if text is not None:
            self._text.check(text)
        super().check(changes)

    def apply(self, payload: Any, origin: Origin) -> list[merger.Conflict]:
        text, changes = payload
        self._text.seen = self.seen
        found = self._text.apply(text, origin) if text is not None else []
        conflicts = self._apply(changes, origin)
        # Where values are merged, that characters were merged too is no news.
        return conflicts if self._mode() != _TEXT else conflicts + found

    def pass_over(self, payload: Any, origin: Origin) -> list[merger.Conflict]:
        """The text, which others' texts rest on, and not the values: the file is what the values say."""
        text, _ = payload
        self._text.seen = self.seen
        if text is not None:
            self._text.apply(text, origin)
        self._rendered = None
        return []

    def dump(self) -> Any:
        return [self._text.dump(), self.cells.dump()]

    def join(self, dumped: Any, theirs: Vector) -> list[merger.Conflict]:
        wire.expect(isinstance(dumped, tuple) and len(dumped) == 2, "JSON")
        registers.load(dumped[1], self.is_key, self.is_value, theirs)
        self._text.seen = self.seen
        self._text.join(dumped[0], theirs)
        self._branch = None
        return super().join(dumped[1], theirs)

    def compact(self) -> None:
        self.cells.forget_losers(but=_MODE)
        self._branch = None
        self._text.compact()

    def is_key(self, key: Any) -> bool:
        if key == _MODE:
            return True
        return (
            isinstance(key, tuple)
            and len(key) <= json_text.DEPTH_MAX
            and all(isinstance(step, str) or places.is_place(step) for step in key)
        )

    def is_value(self, key: Any, value: Any) -> bool:
        if key == _MODE:
            return value in (_JSON, _COMMAS, _TEXT)
        if value in ("{", "["):
            return True
        node = _read(value.encode()) if isinstance(value, str) else None
        return node is not None and node.kind is json_text.Kind.SCALAR and node.raw == value

    def name_key(self, key: Any) -> str | None:
        if key == _MODE:
            return None
        return "/" + "/".join(step if isinstance(step, str) else "[]" for step in key)

    def show(self, key: Any, value: Any) -> bytes:
        return str(value).encode()

    def blame(self) -> list[merger.Blame]:
        branch = self._grown() if self._mode() != _TEXT else None
        return self._text.blame() if branch is None else _blamed(branch, "")


def _blamed(branch: json_trees.Branch, name: str) -> list[merger.Blame]:
    below = [(f"{name}/{key}", one) for key, one in branch.members.items()]
    below += [(f"{name}/{number}", one) for number, (_, one) in enumerate(branch.items)]
    if not below:
        return [merger.Blame(name or "/", branch.latest[1], branch.latest[0])]
    return [blame for where, one in below for blame in _blamed(one, where)]


def _read(content: bytes, commas: bool = True) -> Node | None:
    try:
        return json_text.read(content.decode(), commas=commas)
    except (UnicodeDecodeError, json_text.Unreadable):
        return None


class JsonMerger:
    name = "json"

    def accepts(self, path: str, content: bytes) -> bool:
        lower = path.lower()
        if not lower.endswith((".json", ".jsonc", ".geojson", ".webmanifest", ".ipynb")):
            return False
        return len(content) <= CONTENT_MAX_BYTES and b"\0" not in content

    def new(self, site: str) -> JsonDocument:
        return JsonDocument(site)

    def load(self, state: bytes, site: str) -> JsonDocument:
        document = JsonDocument(site)
        document.resume(state)
        return document
