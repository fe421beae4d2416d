"""A program whose every operation leaves a history: it appends numbered records and overwrites slots, with an fsync each.

    python record_writer.py DIRECTORY HISTORIES

Each start is a writer of its own, with a history of its own in HISTORIES, outside of the volume: ``start`` before an
operation, ``ok`` once its fsync has returned, ``fail`` where that raised. It goes on after the last whole record it finds, and
rests while HISTORIES has a file named ``rest``.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
import time
from pathlib import Path

SLOTS = 16
SLOT_BYTES = 32
PAUSE_S = 0.003


def record(number: int, writer: str) -> bytes:
    return f"{number} {writer}\n".encode()


def slot(number: int, writer: str) -> bytes:
    return f"{number} {writer}".encode().ljust(SLOT_BYTES - 1) + b"\n"


def main() -> None:
    directory, histories = Path(sys.argv[1]), Path(sys.argv[2])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    writer = secrets.token_hex(4)
    found = (directory / "records").read_bytes() if (directory / "records").exists() else b""
    number = found.count(b"\n")
    records = os.open(directory / "records", os.O_WRONLY | os.O_CREAT)
    # A torn record at the end belongs to an operation that nobody was told of.
    os.ftruncate(records, found.rfind(b"\n") + 1)
    os.lseek(records, 0, os.SEEK_END)
    slots = os.open(directory / "slots", os.O_RDWR | os.O_CREAT)
    told = os.open(histories / f"{time.time_ns()}-{writer}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    while True:
        while (histories / "rest").exists():
            _tell(told, "rest", number)
            time.sleep(0.05)
        number += 1
        _tell(told, "start", number)
        try:
            os.write(records, record(number, writer))
            os.pwrite(slots, slot(number, writer), number % SLOTS * SLOT_BYTES)
            os.fsync(slots)
            os.fsync(records)
        except OSError:
            _tell(told, "fail", number)
            raise
        _tell(told, "ok", number)
        time.sleep(PAUSE_S)


def _tell(told: int, what: str, number: int) -> None:
    """One line in one write, so that a kill leaves a whole one or none."""
    os.write(told, f"{what} {number} {time.monotonic_ns()}\n".encode())


if __name__ == "__main__":
    main()
