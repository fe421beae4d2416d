"""What the log has in a file, remembered as digests of its pages: for the probe that learns of changes by reading.

A file of which one page changed costs its reading and one page of the log. Blocks that are holes, or zeros that
were never written, are not remembered, so that a file may be far larger than memory.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from blake3 import blake3

from diffkeeper_capture import rereader
from diffkeeper_capture.shadow import Shadow

PAGE_BYTES = 4096
# Read at once; 64 pages are remembered in 512 bytes.
BLOCK_BYTES = 64 * PAGE_BYTES
_DIGEST_BYTES = 8


def _digest(page: bytes | memoryview) -> bytes:
    digest: bytes = blake3(page).digest(length=_DIGEST_BYTES)
    return digest


_ZERO_PAGE = _digest(bytes(PAGE_BYTES))


@dataclass(slots=True)
class Digests:
    """``is_complete``: every block that is not here has only zeros in the log; else nothing is known of it."""

    size: int = 0
    blocks: dict[int, bytes] = field(default_factory=dict)
    is_complete: bool = True


def log_changes(shadow: Shadow, file_id: int, fd: int, known: Digests, at_us: int) -> Iterator[int]:
    """Bring the log to what a file has now, and ``known`` with it. Yields the bytes read."""
    at, size = 0, os.fstat(fd).st_size
    remembered = sorted(known.blocks)
    while at < size and file_id in shadow.tree.nodes:
        start, _ = rereader.next_data(fd, at, size)
        block = start // BLOCK_BYTES if start < size else -(-size // BLOCK_BYTES)
        first = at // BLOCK_BYTES
        if block > first:
            _punch(shadow, file_id, known, remembered, (first, block), size, at_us)
        if start >= size:
            break
        data = os.pread(fd, BLOCK_BYTES, block * BLOCK_BYTES)
        if not data:
            break
        _compare(shadow, file_id, known, block, data, at_us)
        yield len(data)
        at = (block + 1) * BLOCK_BYTES
    if file_id not in shadow.tree.nodes:
        return
    size = os.fstat(fd).st_size
    if known.size != size or not known.is_complete:
        shadow.truncate(file_id, size, at_us)
    for block in remembered[bisect.bisect_left(remembered, -(-size // BLOCK_BYTES)) :]:
        known.blocks.pop(block, None)
    known.size, known.is_complete = size, True


def _punch(
    shadow: Shadow,
    file_id: int,
    known: Digests,
    remembered: list[int],
    blocks: tuple[int, int],
    size: int,
    at_us: int,
) -> None:
    """Whole blocks that are a hole now."""
    first, behind = blocks
    if not known.is_complete:
        end = min(behind * BLOCK_BYTES, size)
        shadow.punch(file_id, first * BLOCK_BYTES, end - first * BLOCK_BYTES, at_us)
    low, high = bisect.bisect_left(remembered, first), bisect.bisect_left(remembered, behind)
    for block in remembered[low:high]:
        if known.blocks.pop(block, None) is not None and known.is_complete:
            shadow.punch(file_id, block * BLOCK_BYTES, BLOCK_BYTES, at_us)


def _compare(shadow: Shadow, file_id: int, known: Digests, block: int, data: bytes, at_us: int) -> None:
    """Log the pages of a block that differ, neighbours together."""
    view, begin = memoryview(data), block * BLOCK_BYTES
    digests = [_digest(view[at : at + PAGE_BYTES]) for at in range(0, len(data), PAGE_BYTES)]
    before = known.blocks.get(block)
    run = None
    for index, digest in enumerate(digests):
        old = _page_of(before, index, is_zero=known.is_complete)
        if digest != old:
            run = index if run is None else run
        elif run is not None:
            _write(shadow, file_id, begin, view, (run, index), at_us)
            run = None
    if run is not None:
        _write(shadow, file_id, begin, view, (run, len(digests)), at_us)
    if any(digest != _ZERO_PAGE for digest in digests):
        known.blocks[block] = b"".join(digests)
    else:
        known.blocks.pop(block, None)


def _page_of(before: bytes | None, index: int, *, is_zero: bool) -> bytes | None:
    if before is None:
        return _ZERO_PAGE if is_zero else None
    # Beyond the end that the file had, the log has zeros since it grew.
    return before[index * _DIGEST_BYTES : (index + 1) * _DIGEST_BYTES] or _ZERO_PAGE


def _write(
    shadow: Shadow, file_id: int, begin: int, view: memoryview, pages: tuple[int, int], at_us: int
) -> None:
    start, stop = pages[0] * PAGE_BYTES, min(pages[1] * PAGE_BYTES, len(view))
    shadow.write(file_id, begin + start, view[start:stop], at_us)
