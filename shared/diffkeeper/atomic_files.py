"""Files that are either the old one or the new one after a crash, never something between.

Every write goes to a temporary name in the same directory, is fsynced, renamed over the target, and the
directory is fsynced: without the last step the name itself may be lost (FAULTS.md, row 4).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_bytes(path: Path, data: bytes, mode: int = 0o600, *, name_durable: bool = True) -> None:
    """Replace ``path`` by ``data``, durably. Blocks for an fsync of the file and one of its directory.

    Without ``name_durable`` the second is left to a later write in the same directory.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with open(descriptor, "wb", closefd=True) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if name_durable:
        fsync_directory(path.parent)


def write_json(path: Path, value: Any, mode: int = 0o600) -> None:
    """``write_bytes`` with readable JSON and a newline at the end."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode(), mode)


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
