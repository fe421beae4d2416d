"""Which edits turn one text into another: the writes of the capture where they say it, else a bounded diff.

Ranges that a program wrote in place bound what can have changed, and what was written behind the end was appended. Else
the common ends are cut off, which finds any single edit exactly. What stays is compared by lines that occur once on
both sides (patience), and small hunks by words. Where the same edit can be told in several places, it is told at the
start of a line, or between words; and a word that became another one is replaced as a whole, so that no merge makes
one word of two that begin alike. Time is linear but for hunks, which are bounded. All positions are bytes and stand
between characters of UTF-8.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

# Hunks with more words than this are compared by lines, with more lines replaced as a whole.
HUNK_MAX_WORDS = 400
HUNK_MAX_LINES = 400
# Longer words are data: of those that changed no more than the part between their common ends is replaced.
WORD_MAX_BYTES = 256
# So far back it is looked for a better place for an edit that can be told in several.
SLIDE_MAX_BYTES = 4096
# Letters of scripts with words; of the others (from U+2000 on) each character stands for itself.
_LETTER = rb"(?:\w|[\xc2-\xdf][\x80-\xbf]|[\xe0\xe1][\x80-\xbf]{2})"
_TOKEN = re.compile(_LETTER + rb"+|[^\S\n]+|[\xe2-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}|.", re.DOTALL)
_LETTERS = re.compile(_LETTER)


class Splice(NamedTuple):
    """``old[start:end]`` becomes ``data``."""

    start: int
    end: int
    data: bytes


def splices(old: bytes, new: bytes, changed: Sequence[tuple[int, int]] | None = None) -> list[Splice]:
    """In ascending order, not touching each other's bytes."""
    if old == new:
        return []
    if changed is not None:
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
    """Outside the ranges every byte is what it was, where it was; beyond the shorter text all may be new."""
    found: list[Splice] = []
    common = min(len(old), len(new))
    at = 0
    behind = common
    for offset, length in sorted(changed):
        if offset + length > common:
            behind = min(behind, offset)
            continue
        start, end = _between_characters(old, new, max(at, offset), offset + length, at, common)
        if end == common and (_inside(old, end) or _inside(new, end)):
            behind = min(behind, start)
        elif start < end:
            found += _between(old, start, end, new, start, end)
            at = end
    start = max(at, behind)
    if start == len(old):
        return [*found, Splice(start, start, new[start:])] if start < len(new) else found
    start, _ = _between_characters(old, new, start, common, at, common)
    return [*found, *_between(old, start, len(old), new, start, len(new))]


def _between_characters(old: bytes, new: bytes, start: int, end: int, low: int, high: int) -> tuple[int, int]:
    while start > low and (_inside(old, start) or _inside(new, start)):
        start -= 1
    while end < high and (_inside(old, end) or _inside(new, end)):
        end += 1
    return start, end


def _between(old: bytes, a: int, b: int, new: bytes, c: int, d: int) -> Iterator[Splice]:
    """The edits from ``old[a:b]`` to ``new[c:d]``."""
    p, q, r, s = _trimmed(old, a, b, new, c, d)
    if p == q or r == s:
        yield from _told_well(old, a, p, q, new, c, r, s)
        return
    p, q, r, s = _widened(old, a, b, p, q, new, c, d, r, s)
    anchors = _anchors(old[p:q], new[r:s])
    if not anchors:
        yield from _by_words(old, p, q, new, r, s)
        return
    x, y = p, r
    for start, end, other in anchors:
        yield from _between(old, x, p + start, new, y, r + other)
        x, y = p + end, r + other + end - start
    yield from _between(old, x, q, new, y, s)


def _told_well(old: bytes, a: int, p: int, q: int, new: bytes, c: int, r: int, s: int) -> Iterator[Splice]:
    """An edit that only puts in, or only takes out, where it says best what was meant; ``a`` and ``c`` bound that."""
    if p == q and r == s:
        return
    back = _slide(new, c, r, s) if p == q else _slide(old, a, p, q)
    yield Splice(p - back, q - back, new[r - back : s - back])


def _slide(text: bytes, low: int, start: int, end: int) -> int:
    """How far back ``text[start:end]`` is said to stand. It can stand wherever the bytes before it are those at its
    end: at the start of a line if that is among it, else between words.
    """
    low = max(low, start - SLIDE_MAX_BYTES)
    most = common_suffix(text, low, start, text, low + end - start, end)
    if not most or start == 0 or text[start - 1] == _LINE_END:
        return 0
    line = text.rfind(b"\n", start - most - 1 if start > most else 0, start) + 1
    if line >= start - most and (line or start == most):
        return start - line
    for back in range(min(most, WORD_MAX_BYTES) + 1):
        if not _in_word(text, start - back) and not _in_word(text, end - back):
            return back
    return 0


_LINE_END = 10


def _in_word(text: bytes, at: int) -> bool:
    """Whether a word goes on here, or a character."""
    if _inside(text, at):
        return True
    return 0 < at < len(text) and _ends_word(text, 0, at) > 0 and _LETTERS.match(text, at) is not None


def _ends_word(text: bytes, low: int, at: int) -> int:
    """How many bytes of a word stand before a place; those of long ones are not all counted."""
    last = None
    for last in _TOKEN.finditer(text, max(low, at - WORD_MAX_BYTES), at):  # noqa: B007 - the last one is wanted
        pass
    return at - last.start() if last is not None and _LETTERS.match(last[0]) else 0


def _widened(
    old: bytes, a: int, b: int, p: int, q: int, new: bytes, c: int, d: int, r: int, s: int
) -> tuple[int, int, int, int]:
    """To whole words: on both sides stand the same bytes."""
    if _LETTERS.match(old, p, q) or _LETTERS.match(new, r, s):
        back = min(_ends_word(old, a, p), r - c)
        p, r = p - back, r - back
    if _ends_word(old, p, q) or _ends_word(new, r, s):
        first = _TOKEN.match(old, q, min(b, q + WORD_MAX_BYTES))
        if first is not None and _LETTERS.match(first[0]):
            on = min(first.end() - q, d - s)
            q, s = q + on, s + on
    return p, q, r, s


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
    words, others = _TOKEN.findall(old[a:b]), _TOKEN.findall(new[c:d])
    if max(len(words), len(others)) <= HUNK_MAX_WORDS:
        for p, q, r, s in _compared(words, others, a, c):
            yield from _of_words(old, a, p, q, new, c, r, s)
            a, c = q, s
        return
    lines, others = old[a:b].splitlines(keepends=True), new[c:d].splitlines(keepends=True)
    if max(len(lines), len(others)) > HUNK_MAX_LINES or max(map(len, (lines, others))) == 1:
        yield Splice(a, b, new[c:d])
        return
    for p, q, r, s in _compared(lines, others, a, c):
        if (p, q) == (a, b) or max(q - p, s - r) > WORD_MAX_BYTES * HUNK_MAX_WORDS:
            yield Splice(p, q, new[r:s])
        else:
            yield from _between(old, p, q, new, r, s)


def _compared(
    pieces: list[bytes], others: list[bytes], a: int, c: int
) -> Iterator[tuple[int, int, int, int]]:
    """Where they differ; ``a`` and ``c`` are where the first ones stand."""
    x, y = a, c
    for tag, i, j, k, m in SequenceMatcher(None, pieces, others, autojunk=False).get_opcodes():
        to_x, to_y = x + sum(map(len, pieces[i:j])), y + sum(map(len, others[k:m]))
        if tag != "equal":
            yield x, to_x, y, to_y
        x, y = to_x, to_y


def _of_words(old: bytes, a: int, p: int, q: int, new: bytes, c: int, r: int, s: int) -> Iterator[Splice]:
    """Words for words: what was put into one, or taken out of one, as that; else the words."""
    w, x, y, z = _trimmed(old, p, q, new, r, s)
    if p == q or r == s:
        yield from _told_well(old, a, p, q, new, c, r, s)
    elif w == x or y == z or max(q - p, s - r) > WORD_MAX_BYTES:
        yield Splice(w, x, new[y:z])
    else:
        yield Splice(p, q, new[r:s])
