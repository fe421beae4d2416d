"""A file that holds one whole number, to which every site adds: no increment is lost.

Each site keeps the sum of what it added; the file is the sum of the sums.
"""

from __future__ import annotations

import re
from typing import Any

from diffkeeper.domain import errors
from diffkeeper_replicator.merging.causal import Origin
from diffkeeper_replicator.merging.keyed import Change, KeyedDocument

CONTENT_MAX_BYTES = 4096
# Of a sum, and so of the file: far above what programs count, far below what takes time to print.
_DIGITS_MAX = 1000
_NUMBER = re.compile(rb"(\s*)([+-]?[0-9]{1,%d})(\s*)" % _DIGITS_MAX)
_LAYOUT = "layout"


class CounterDocument(KeyedDocument):
    strategy = "counter"
    content_max_bytes = CONTENT_MAX_BYTES

    def changes(self, content: bytes, origin: Origin) -> list[Change]:
        found = _NUMBER.fullmatch(content)
        if found is None:
            raise errors.Refused(
                "the file is not one whole number; it was left as it is",
                reason="not-a-counter",
                hint="put the number back, or give the file another strategy in the rules of the volume",
            )
        changes: list[Change] = []
        added = int(found[2]) - self._total()
        if added:
            mine = int(self.cells.get(origin.site)) if origin.site in self.cells.cells else 0
            changes.append((origin.site, b"%d" % (mine + added)))
        layout = found[1] + b"|" + found[3]
        if _LAYOUT_KEY not in self.cells.cells or self.cells.get(_LAYOUT_KEY) != layout:
            changes.append((_LAYOUT_KEY, layout))
        return changes

    def _total(self) -> int:
        return sum(int(value) for key, _, value in self.cells.items() if key != _LAYOUT_KEY)

    def render(self) -> bytes:
        if _LAYOUT_KEY not in self.cells.cells:
            return b""
        before, _, after = self.cells.get(_LAYOUT_KEY).partition(b"|")
        return bytes(before + b"%d" % self._total() + after)

    def is_key(self, key: Any) -> bool:
        return key == _LAYOUT_KEY or (isinstance(key, str) and len(key) <= 255)

    def is_value(self, key: Any, value: Any) -> bool:
        if not isinstance(value, bytes) or len(value) > CONTENT_MAX_BYTES:
            return False
        if key == _LAYOUT_KEY:
            return value.count(b"|") == 1 and not value.strip(b"| \t\r\n\v\f")
        return _NUMBER.fullmatch(value) is not None

    def name_key(self, key: Any) -> str | None:
        return None if key == _LAYOUT_KEY else f"added by {key}"


# No site can have this name: names are text.
_LAYOUT_KEY = (_LAYOUT,)


class CounterMerger:
    name = "counter"

    def accepts(self, path: str, content: bytes) -> bool:
        """Only by rule: a file with a number in it may as well be a version or a process number."""
        return False

    def new(self, site: str) -> CounterDocument:
        return CounterDocument(site)

    def load(self, state: bytes, site: str) -> CounterDocument:
        document = CounterDocument(site)
        document.resume(state)
        return document
