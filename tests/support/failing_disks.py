"""A real file system whose disk can be made to fail writes: ext4 on a loop device over a file that gets no more room."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

DISK_BYTES = 64 * 1024 * 1024
ROOM_BYTES = 16 * 1024 * 1024


class FailingDisk:
    def __init__(self, room: Path) -> None:
        self._ballast = room / "ballast"

    def fail(self) -> None:
        """From now on a write to a block that was not written before is an I/O error, told by fsync, once."""
        with self._ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(65536)):
                pass

    def work(self) -> None:
        self._ballast.unlink(missing_ok=True)


@contextlib.contextmanager
def mounted(base: Path, where: Path) -> Iterator[FailingDisk]:
    room = base / "room"
    room.mkdir()
    where.mkdir()
    done: list[list[str]] = []
    steps = [
        (
            ["mount", "-t", "tmpfs", "-o", f"size={ROOM_BYTES}", "none", str(room)],
            ["umount", "-l", str(room)],
        ),
        (["truncate", "-s", str(DISK_BYTES), str(room / "disk")], ["true"]),
        # Without a journal: its failure would end the whole file system.
        (["mkfs.ext4", "-q", "-O", "^has_journal", str(room / "disk")], ["true"]),
        (
            ["mount", "-o", "loop,errors=continue", str(room / "disk"), str(where)],
            ["umount", "-l", str(where)],
        ),
    ]
    try:
        for step, undo in steps:
            tried = subprocess.run(step, capture_output=True, check=False)
            if tried.returncode != 0:
                pytest.skip(f"cannot make a disk that fails: {tried.stderr.decode().strip()}")
            done.append(undo)
        yield FailingDisk(room)
    finally:
        for undo in reversed(done):
            subprocess.run(undo, check=True)
