"""Mapped files that are read whole: where nothing tells which of their pages were stored to.

At every barrier such a file is read again and the pages that differ from what was last known are logged. A
file is followed until its last name is gone, because nothing tells when the last mapping ends.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from blake3 import blake3

from diffkeeper.domain import frames
from diffkeeper_capture import rereader
from diffkeeper_capture.shadow import Shadow

PAGE_BYTES = 4096
# Hashed at once; only blocks that differ are looked at page by page.
BLOCK_BYTES = 256 * 1024
_DIGEST_BYTES = 16


class ComparedFiles:
    def __init__(self, shadow: Shadow, reader: rereader.Rereader) -> None:
        self._shadow = shadow
        self._reader = reader
        # id → digests of its blocks, and of the pages of each.
        self.known: dict[int, dict[int, tuple[bytes, list[bytes]]]] = {}
        shadow.on_forget.append(self._forget)

    def _forget(self, file_id: int) -> None:
        self.known.pop(file_id, None)

    def follow(self, file_id: int) -> None:
        """Begin to follow a file; nothing is known of it, so the next reading logs all of its data."""
        if file_id not in self.known:
            self.known[file_id] = {}
            self._shadow.touched.add(file_id)

    def forget_range(self, file_id: int, offset: int, length: int) -> None:
        """The log got other bytes for this range (a truncation, a re-read): it is logged again at the next
        barrier.
        """
        known = self.known.get(file_id)
        if known:
            last = (offset + length) // BLOCK_BYTES
            for block in [block for block in known if offset // BLOCK_BYTES <= block <= last]:
                del known[block]

    def log_changes(self, at_us: int) -> Iterator[int]:
        """Log what differs in every mapped file; yields the bytes read. One that cannot be found now is kept
        for later.
        """
        for file_id in list(self.known):
            known = self.known.get(file_id)
            if known is None:
                continue
            try:
                with self._reader.file(file_id) as fd:
                    yield from self._log_file(file_id, fd, known, at_us)
            except rereader.Elsewhere:
                continue

    def _log_file(
        self, file_id: int, fd: int, known: dict[int, tuple[bytes, list[bytes]]], at_us: int
    ) -> Iterator[int]:
        size = os.fstat(fd).st_size
        at = 0
        while at < size and file_id in self.known:
            start, _ = rereader.next_data(fd, at, size)
            at = max(at, start - start % BLOCK_BYTES)
            if at >= size:
                return
            data = os.pread(fd, BLOCK_BYTES, at)
            digest = _digest(data)
            before = known.get(at // BLOCK_BYTES)
            if before is None or before[0] != digest:
                pages = self._log_pages(file_id, at, data, before[1] if before is not None else [], at_us)
                known[at // BLOCK_BYTES] = (digest, pages)
            yield len(data)
            at += BLOCK_BYTES

    def _log_pages(self, file_id: int, at: int, data: bytes, before: list[bytes], at_us: int) -> list[bytes]:
        """Log the pages that differ, neighbours together; digests of all."""
        pages = [_digest(data[place : place + PAGE_BYTES]) for place in range(0, len(data), PAGE_BYTES)]
        changed = [index for index, page in enumerate(pages) if index >= len(before) or before[index] != page]
        for first, last in _runs(changed):
            self._shadow.write(
                file_id, at + first * PAGE_BYTES, data[first * PAGE_BYTES : (last + 1) * PAGE_BYTES], at_us
            )
        if changed:
            self._shadow.sink.note_fidelity(frames.Fidelity.PAGE)
        return pages


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Consecutive numbers as (first, last)."""
    first = last = None
    for number in numbers:
        if last is not None and number == last + 1:
            last = number
            continue
        if first is not None and last is not None:
            yield first, last
        first = last = number
    if first is not None and last is not None:
        yield first, last


def _digest(data: bytes) -> bytes:
    digest: bytes = blake3(data).digest(length=_DIGEST_BYTES)
    return digest
