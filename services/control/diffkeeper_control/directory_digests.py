"""What a directory holds, path by path: the independent side of a comparison with a replica.

Read through plain system calls and nothing of the log or the replicator, so that a mistake there cannot hide
itself here.
"""

from __future__ import annotations

import base64
import os
import stat
from typing import Any

from blake3 import blake3

_READ_BYTES = 1 << 20
MAX_DIFFERENCES = 100

# kind, mode, uid, gid, size of a file, blake3 of its content (or of a symlink's target), names of the file:
# as a replicator's digest has it
Entry = list[Any]


def digest(root: str) -> dict[str, Entry]:
    """``root`` (as ``.``) and every path below it (``b64:`` and its bytes where not UTF-8)."""
    root = os.path.normpath(root)
    entries: dict[str, Entry] = {".": _entry(root, os.stat(root))}
    waiting = [root]
    while waiting:
        with os.scandir(waiting.pop()) as listing:
            for item in listing:
                found = item.stat(follow_symlinks=False)
                entries[_path_text(item.path[len(root) + 1 :])] = _entry(item.path, found)
                if stat.S_ISDIR(found.st_mode):
                    waiting.append(item.path)
    return entries


def _path_text(path: str) -> str:
    raw = os.fsencode(path)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "b64:" + base64.b64encode(raw).decode()


def _entry(path: str, found: os.stat_result) -> Entry:
    mode = found.st_mode
    kind, size, content, names = "other", 0, "", found.st_nlink
    if stat.S_ISREG(mode):
        kind, size, content = "file", found.st_size, _hash_file(path)
    elif stat.S_ISLNK(mode):
        kind, content = "symlink", blake3(os.fsencode(os.readlink(path))).hexdigest()
    elif stat.S_ISDIR(mode):
        kind, names = "dir", 1
    elif stat.S_ISFIFO(mode):
        kind = "fifo"
    return [kind, stat.S_IMODE(mode), found.st_uid, found.st_gid, size, content, names]


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
