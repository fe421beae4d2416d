"""A file of lines of which each counts once: a line added anywhere is there, unless one who saw it took it out.

The lines stand in the order in which they were first added; a file that comes in another order is put in it.
"""

from __future__ import annotations

from typing import Any

from diffkeeper_replicator.merging.causal import Origin
from diffkeeper_replicator.merging.keyed import Change, KeyedDocument

CONTENT_MAX_BYTES = 32 * 1024 * 1024


class SetDocument(KeyedDocument):
    strategy = "set"
    content_max_bytes = CONTENT_MAX_BYTES

    def changes(self, content: bytes, origin: Origin) -> list[Change]:
        wanted = dict.fromkeys(line for line in content.split(b"\n") if line)
        gone: list[Change] = [(line,) for line in self.cells.cells if line not in wanted]
        new = (line for line in wanted if line not in self.cells.cells)
        return [*gone, *((line, number) for number, line in enumerate(new))]

    def render(self) -> bytes:
        # Where several sites added a line, its place is that of the first.
        first = {
            line: min((*dot, number) for dot, number in w.items()) for line, w in self.cells.cells.items()
        }
        return b"".join(_line(line) + b"\n" for line in sorted(first, key=lambda line: first[line]))

    def is_key(self, key: Any) -> bool:
        return isinstance(key, bytes) and len(key) > 0 and b"\n" not in key

    def is_value(self, key: Any, value: Any) -> bool:
        return type(value) is int and 0 <= value < 1 << 40

    def name_key(self, key: Any) -> str | None:
        return str(key.decode(errors="backslashreplace"))

    def show(self, key: Any, value: Any) -> bytes:
        return b"(added)"

    def is_automatic(self, key: Any) -> bool:
        return True

    def compact(self) -> None:
        """Who added a line besides decides its place, so nothing is dropped."""


def _line(key: Any) -> bytes:
    assert isinstance(key, bytes), "checked when it came in"
    return key


class SetMerger:
    name = "set"

    def accepts(self, path: str, content: bytes) -> bool:
        """Only by rule: whether the order of lines means something cannot be seen from them."""
        return False

    def new(self, site: str) -> SetDocument:
        return SetDocument(site)

    def load(self, state: bytes, site: str) -> SetDocument:
        document = SetDocument(site)
        document.resume(state)
        return document
