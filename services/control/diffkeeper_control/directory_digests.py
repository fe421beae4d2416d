"""What a directory holds, path by path: the independent side of a comparison with a replica.

Read through plain system calls and nothing of the log or the replicator, so that a mistake there cannot hide
itself here.
"""

from __future__ import annotations

import os
import stat
from typing import Any

from blake3 import blake3

_READ_BYTES = 1 << 20
MAX_DIFFERENCES = 100

# kind, mode, uid, gid, size, blake3 of the content (or of a symlink's target)
Entry = list[Any]


def digest(root: str) -> dict[str, Entry]:
    """Every path below ``root`` (relative, undecodable bytes as surrogates) with what it is."""
    entries: dict[str, Entry] = {}
    waiting = [root]
    while waiting:
        directory = waiting.pop()
        with os.scandir(directory) as listing:
            for item in listing:
                found = item.stat(follow_symlinks=False)
                entries[os.path.relpath(item.path, root)] = _entry(item.path, found)
                if stat.S_ISDIR(found.st_mode):
                    waiting.append(item.path)
    return entries


def _entry(path: str, found: os.stat_result) -> Entry:
    mode = found.st_mode
    kind, size, content = _content(path, mode, found.st_size)
    return [kind, stat.S_IMODE(mode), found.st_uid, found.st_gid, size, content]


def _content(path: str, mode: int, size: int) -> tuple[str, int, str]:
    if stat.S_ISREG(mode):
        return "file", size, _hash_file(path)
    if stat.S_ISLNK(mode):
        target = os.fsencode(os.readlink(path))
        return "symlink", len(target), blake3(target).hexdigest()
    if stat.S_ISDIR(mode):
        return "dir", 0, ""
    return ("fifo" if stat.S_ISFIFO(mode) else "other"), 0, ""


def _hash_file(path: str) -> str:
    hasher = blake3()
    with open(path, "rb") as file:
        while chunk := file.read(_READ_BYTES):
            hasher.update(chunk)
    return hasher.hexdigest()


def compare(expected: dict[str, Entry], found: dict[str, Entry]) -> list[dict[str, Any]]:
    """What differs, by path; at most ``MAX_DIFFERENCES``."""
    differences = []
    for path in sorted(expected.keys() | found.keys()):
        if expected.get(path) != found.get(path):
            differences.append({"path": path, "expected": expected.get(path), "found": found.get(path)})
            if len(differences) == MAX_DIFFERENCES:
                break
    return differences
