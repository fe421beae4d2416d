"""Finding processes that outlived what they belonged to."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from diffkeeper import pins

# How long a killed process may take to be gone.
KILLED_S = 10.0


def working_below(directory: Path) -> list[int]:
    """Processes that have something below ``directory`` as working directory or open file."""
    inside = f"{directory.resolve()}/"
    return [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit()
        and int(entry.name) != os.getpid()
        and any(f"{target}/".startswith(inside) for target in _holds(entry))
    ]


def naming(directory: Path) -> list[str]:
    """Command lines that speak of ``directory``, of other processes than this one."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes()
        except OSError:
            continue  # it has ended
        if os.fsencode(directory) in words:
            found.append(words.replace(b"\0", b" ").decode("utf-8", "replace"))
    return found


def unpin_below(directory: Path) -> None:
    """Take out of the kernel what killed agents below ``directory`` left there for successors that will not come."""
    inside = directory.resolve()
    deadline = time.monotonic() + KILLED_S
    for owner in pins.owners():
        if not owner.is_relative_to(inside):
            continue
        while pins.is_owned(owner) and time.monotonic() < deadline:
            time.sleep(0.05)
        if not pins.is_owned(owner):
            pins.remove(owner)


def _holds(process: Path) -> Iterator[str]:
    """What a process works on; nothing once it has ended."""
    links = [process / "cwd"]
    try:
        links += (process / "fd").iterdir()
    except OSError:
        return
    for link in links:
        try:
            yield os.readlink(link)
        except OSError:
            continue
