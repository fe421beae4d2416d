"""Logs that several sites append to: all their lines, in the order of their stamps, the same everywhere.

What a site appended since its last edit stays together. A line put between others keeps its place behind the
line before it. A last line without its end gets one when another comes behind it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from difflib import SequenceMatcher
from itertools import accumulate
from typing import Any

from diffkeeper.domain import errors
from diffkeeper_replicator.merging import merger, places, text_edits
from diffkeeper_replicator.merging.causal import Origin
from diffkeeper_replicator.merging.keyed import Change, KeyedDocument

CONTENT_MAX_BYTES = 64 * 1024 * 1024
# Each line is a cell of some hundred bytes of memory.
LINES_MAX = 1_000_000
# Changed lines in the middle that are compared one by one; more are taken as written anew.
COMPARED_MAX_LINES = 2000


class LinesDocument(KeyedDocument):
    strategy = "lines"
    content_max_bytes = CONTENT_MAX_BYTES

    def changes(self, content: bytes, origin: Origin) -> list[Change]:
        if content.count(b"\n") >= LINES_MAX:
            raise errors.Refused(
                f"more than {LINES_MAX} lines are too many to merge one by one",
                reason="too-many-lines",
                hint="rotate the log, or give the file the strategy opaque in the rules of the volume",
            )
        there, old = self._places(), self._lines()
        changes: list[Change] = []
        number = 0
        for gone, at, new in _line_edits(old, self.content(), content):
            changes += [(place,) for place in there[gone.start : gone.stop]]
            before = places.START if at == 0 else there[at - 1]
            at_end = at == len(there) or gone.stop == len(there)
            for line in new:
                changes.append((places.put(before, at_end, origin, number), line))
                number += 1
        return changes

    def _places(self) -> list[places.Place]:
        return sorted(self.cells.cells)  # type: ignore[arg-type]

    def _lines(self) -> list[bytes]:
        values = [bytes(self.cells.get(place)) for place in self._places()]
        return [line if line.endswith(b"\n") else line + b"\n" for line in values[:-1]] + values[-1:]

    def render(self) -> bytes:
        return b"".join(self._lines())

    def is_key(self, key: Any) -> bool:
        return places.is_place(key)

    def is_value(self, key: Any, value: Any) -> bool:
        return isinstance(value, bytes) and len(value) > 0 and b"\n" not in value[:-1]

    def name_key(self, key: Any) -> str | None:
        """A line is written once, by one site: there is nothing to be at odds about."""
        return None

    def blame(self) -> list[merger.Blame]:
        dots = [(number, self.cells.dot(place)) for number, place in enumerate(self._places(), 1)]
        return [merger.Blame(str(number), site, stamp) for number, (stamp, site) in dots]


def _line_edits(lines: list[bytes], old: bytes, new: bytes) -> Iterator[tuple[range, int, list[bytes]]]:
    """(lines that are gone, where in the old lines, the new ones there)."""
    ends = list(accumulate(map(len, lines)))
    same = text_edits.common_prefix(old, 0, len(old), new, 0, len(new))
    first = bisect_right(ends, same)
    at = ends[first - 1] if first else 0
    if first and at == len(old) and not old.endswith(b"\n") and len(new) > at:
        # The last line goes on: it is written anew.
        first, at = first - 1, at - len(lines[first - 1])
    same = text_edits.common_suffix(old, at, len(old), new, at, len(new))
    # Only whole lines count as kept: the line in which the difference ends is compared.
    last = min(bisect_left(ends, len(old) - same) + 1, len(lines)) if same else len(lines)
    last = max(first, last)
    tail = len(old) - (ends[last - 1] if last else 0)
    if tail and new[at : len(new) - tail][-1:] not in (b"", b"\n"):
        # Something was put before the first kept line, on the same line.
        tail = len(old) - ends[last]
        last += 1
    fresh = _split(new[at : len(new) - tail])
    if last - first > COMPARED_MAX_LINES or len(fresh) > COMPARED_MAX_LINES:
        yield range(first, last), last, fresh
        return
    for tag, i, j, k, m in SequenceMatcher(None, lines[first:last], fresh, autojunk=False).get_opcodes():
        if tag != "equal":
            yield range(first + i, first + j), first + j, fresh[k:m]


def _split(data: bytes) -> list[bytes]:
    """Lines end with a line feed and nothing else."""
    pieces = data.split(b"\n")
    return [piece + b"\n" for piece in pieces[:-1]] + [piece for piece in pieces[-1:] if piece]


class LinesMerger:
    name = "lines"

    def accepts(self, path: str, content: bytes) -> bool:
        name = path.rsplit("/", 1)[-1].lower()
        return len(content) <= CONTENT_MAX_BYTES and name.endswith((".log", ".jsonl"))

    def new(self, site: str) -> LinesDocument:
        return LinesDocument(site)

    def load(self, state: bytes, site: str) -> LinesDocument:
        document = LinesDocument(site)
        document.resume(state)
        return document
