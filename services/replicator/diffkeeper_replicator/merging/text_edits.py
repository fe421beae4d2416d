"""Which edits turn one text into another: the writes of the capture where they say it, else a bounded diff.

First the common ends are cut off, which finds any single edit exactly. What stays is compared by lines that
occur once on both sides (patience), and small hunks by words. Time is linear but for hunks, which are bounded.
All positions are bytes and stand between characters of UTF-8.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

# Hunks with more words than this are replaced as a whole.
HUNK_MAX_WORDS = 400
_WORD = re.compile(rb"[\w\x80-\xff]+|\s+|[^\w\s]")


class Splice(NamedTuple):
    """``old[start:end]`` becomes ``data``."""

    start: int
    end: int
    data: bytes


def splices(old: bytes, new: bytes, changed: Sequence[tuple[int, int]] | None = None) -> list[Splice]:
    """In ascending order, not touching each other's bytes."""
    if old == new:
        return []
    if changed is not None and len(old) == len(new):
        found = _in_ranges(old, new, changed)
        # The ranges are a hint: one that left out a write must not make a document differ from its file.
        if apply(old, found) == new:
            return found
    return list(_between(old, 0, len(old), new, 0, len(new)))


def apply(old: bytes, edits: Sequence[Splice]) -> bytes:
    pieces: list[bytes] = []
    at = 0
    for edit in edits:
        pieces += (old[at : edit.start], edit.data)
        at = edit.end
    return b"".join([*pieces, old[at:]])


def _in_ranges(old: bytes, new: bytes, changed: Sequence[tuple[int, int]]) -> list[Splice]:
    found: list[Splice] = []
    at = 0
    for offset, length in sorted(changed):
        start, end = max(at, offset), min(offset + length, len(old))
        while start > at and (_inside(old, start) or _inside(new, start)):
            start -= 1
        while end < len(old) and (_inside(old, end) or _inside(new, end)):
            end += 1
        if start < end:
            found += _between(old, start, end, new, start, end)
            at = end
    return found


def _between(old: bytes, a: int, b: int, new: bytes, c: int, d: int) -> Iterator[Splice]:
    """The edits from ``old[a:b]`` to ``new[c:d]``."""
    a, b, c, d = _trimmed(old, a, b, new, c, d)
    if a == b and c == d:
        return
    if a == b or c == d:
        yield Splice(a, b, new[c:d])
        return
    anchors = _anchors(old[a:b], new[c:d])
    if not anchors:
        yield from _by_words(old, a, b, new, c, d)
        return
    x, y = a, c
    for start, end, other in anchors:
        yield from _between(old, x, a + start, new, y, c + other)
        x, y = a + end, c + other + end - start
    yield from _between(old, x, b, new, y, d)


def _trimmed(old: bytes, a: int, b: int, new: bytes, c: int, d: int) -> tuple[int, int, int, int]:
    same = common_prefix(old, a, b, new, c, d)
    while same and (_inside(old, a + same) or _inside(new, c + same)):
        same -= 1
    a, c = a + same, c + same
    same = common_suffix(old, a, b, new, c, d)
    while same and (_inside(old, b - same) or _inside(new, d - same)):
        same -= 1
    return a, b - same, c, d - same


def _inside(text: bytes, at: int) -> bool:
    return at < len(text) and text[at] & 0xC0 == 0x80


def common_prefix(old: bytes, a: int, b: int, new: bytes, c: int, d: int) -> int:
    low, high = 0, min(b - a, d - c)
    while low < high:
        middle = (low + high + 1) // 2
        if old[a + low : a + middle] == new[c + low : c + middle]:
            low = middle
        else:
            high = middle - 1
    return low


def common_suffix(old: bytes, a: int, b: int, new: bytes, c: int, d: int) -> int:
    low, high = 0, min(b - a, d - c)
    while low < high:
        middle = (low + high + 1) // 2
        if old[b - middle : b - low] == new[d - middle : d - low]:
            low = middle
        else:
            high = middle - 1
    return low


def _anchors(old: bytes, new: bytes) -> list[tuple[int, int, int]]:
    """Lines that occur once on both sides, in an order both share: (start, end in old, start in new)."""
    once, again = _unique_lines(old), _unique_lines(new)
    pairs = [(start, len(line), again[line]) for line, start in once.items() if line in again]
    pairs.sort()
    return [(start, start + length, other) for start, length, other in _rising(pairs)]


def _unique_lines(text: bytes) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    twice: set[bytes] = set()
    at = 0
    for line in text.splitlines(keepends=True):
        if line in found:
            twice.add(line)
        found[line] = at
        at += len(line)
    return {line: start for line, start in found.items() if line not in twice and line.strip()}


def _rising(pairs: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """The longest run of pairs whose third member rises."""
    ends: list[int] = []
    last: list[int] = []
    before: list[int] = []
    for number, pair in enumerate(pairs):
        place = bisect.bisect_left(ends, pair[2])
        before.append(last[place - 1] if place else -1)
        if place == len(ends):
            ends.append(pair[2])
            last.append(number)
        else:
            ends[place], last[place] = pair[2], number
    chain: list[tuple[int, int, int]] = []
    number = last[-1] if last else -1
    while number >= 0:
        chain.append(pairs[number])
        number = before[number]
    return chain[::-1]


def _by_words(old: bytes, a: int, b: int, new: bytes, c: int, d: int) -> Iterator[Splice]:
    words, others = _WORD.findall(old[a:b]), _WORD.findall(new[c:d])
    if max(len(words), len(others)) > HUNK_MAX_WORDS:
        yield Splice(a, b, new[c:d])
        return
    x, y = a, c
    for _, i, j, k, m in SequenceMatcher(None, words, others, autojunk=False).get_opcodes():
        to_x, to_y = x + sum(map(len, words[i:j])), y + sum(map(len, others[k:m]))
        p, q, r, s = _trimmed(old, x, to_x, new, y, to_y)
        if p != q or r != s:
            yield Splice(p, q, new[r:s])
        x, y = to_x, to_y
