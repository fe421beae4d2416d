"""The blocks of large files at a site: one file each below ``blocks``, named by its digest.

A block is on the disk before the record that it came with is taken in, and before the one it is said with is
published.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from blake3 import blake3

from diffkeeper.domain import errors


class BlockStore:
    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def _path(self, digest: bytes) -> Path:
        return self._directory / digest.hex()

    def has(self, digest: bytes) -> bool:
        return self._path(digest).exists()

    def put(self, digest: bytes, data: bytes) -> None:
        """Durable when it returns; Transient for a full disk."""
        if self.has(digest):
            return
        aside = self._directory / f"{digest.hex()}.part"
        try:
            self._directory.mkdir(exist_ok=True)
            with aside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fdatasync(file.fileno())
            aside.rename(self._path(digest))
            fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise errors.Transient(
                f"a block of a large file cannot be kept ({error}); it is tried again",
                reason="disk-full",
                hint="free space on the replicator's disk (df -h)",
            ) from error

    def get(self, digest: bytes) -> bytes:
        """Verified; Corrupt when it is not there as it was."""
        try:
            data = self._path(digest).read_bytes()
        except FileNotFoundError:
            data = b""
        if blake3(data).digest() != digest:
            raise errors.Corrupt(
                f"block {digest.hex()[:16]} of a large file is missing or altered in {self._directory}; the file was left "
                "as it is",
                reason="block-damaged",
                hint="put back a copy of that directory, or write the file again at a site that has it",
            )
        return data

    def is_empty(self) -> bool:
        return next(self._all(), None) is None

    def sweep(self, wanted: set[bytes]) -> int:
        """Let go of all others; how many."""
        dropped = 0
        for path in self._all():
            if path.suffix or bytes.fromhex(path.name) not in wanted:
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
                    dropped += 1
        return dropped

    def _all(self) -> Iterator[Path]:
        if self._directory.is_dir():
            yield from self._directory.iterdir()
