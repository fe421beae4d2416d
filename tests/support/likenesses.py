"""Whether a replica is what its source is: everything a volume keeps, on two real directories.

``likeness`` reads one of them; two are compared as dictionaries, so that a failure names the paths that differ.
Content is hashed by its data extents, so that files far larger than the disk cost what they hold.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from diffkeeper.domain import deltas, trees
from diffkeeper.domain.deltas import Delta
from diffkeeper_replicator import safe_paths
from diffkeeper_replicator.applier import Applier

Likeness = dict[bytes, dict[str, Any]]
_PAGE = 4096
_KEPT = ("user.", "system.posix_acl_", "security.capability")
_DELTAS_A_FRAME = 500


class Replica:
    """A directory to which deltas are applied by the replicator's own code, through the wire format."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self.tree = trees.Tree()
        self._root_fd = safe_paths.open_root(path)
        root = os.fstat(self._root_fd)
        identities = {deltas.ROOT_ID: trees.Identity(root.st_dev, root.st_ino, 0)}
        self._applier = Applier(self._root_fd, self.tree, identities, allow_setid=True)

    def close(self) -> None:
        self._applier.close()
        os.close(self._root_fd)

    def apply(self, run: Iterable[Delta]) -> None:
        columns = deltas.Columns()
        for delta in run:
            columns.add(Delta(delta.op, delta.file_id, delta.offset, delta.length, delta.data, delta.args))
            if len(columns) >= _DELTAS_A_FRAME or columns.payload_bytes > 1 << 20:
                self._applier.apply(deltas.decode(columns.encode()))
                columns = deltas.Columns()
        self._applier.apply(deltas.decode(columns.encode()))


def replicate(run: Iterable[Delta], directory: Path) -> None:
    """A replica made at once and left as it is."""
    replica = Replica(directory)
    try:
        replica.apply(run)
    finally:
        replica.close()


def likeness(root: Path) -> Likeness:
    """Path → what stands there. Sockets and devices are not part of a volume."""
    top = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    found: Likeness = {b"": _describe(os.dup(top), os.fstat(top))}
    names: dict[int, list[bytes]] = {}
    _walk(top, b"", found, names)
    for twins in names.values():
        for path in twins if len(twins) > 1 else ():
            found[path]["twin"] = twins[0]
    return found


def _walk(directory: int, prefix: bytes, found: Likeness, names: dict[int, list[bytes]]) -> None:
    """Closes ``directory``. By descriptors, for paths may be longer than a path can be."""
    below: list[tuple[bytes, bytes]] = []
    for name in sorted(os.fsencode(name) for name in os.listdir(directory)):
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        path = prefix + name
        if stat.S_ISDIR(status.st_mode):
            below.append((name, path))
        elif stat.S_ISLNK(status.st_mode):
            found[path] = _basics(status) | {"target": os.readlink(name, dir_fd=directory)}
        elif stat.S_ISREG(status.st_mode):
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directory)
            found[path] = _describe(fd, status)
        elif stat.S_ISFIFO(status.st_mode):
            found[path] = _basics(status)
        if path in found and status.st_nlink > 1:
            names.setdefault(status.st_ino, []).append(path)
    for name, path in below:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
        found[path] = _describe(os.dup(fd), os.fstat(fd))
        _walk(fd, path + b"/", found, names)
    os.close(directory)


def _basics(status: os.stat_result) -> dict[str, Any]:
    is_link = stat.S_ISLNK(status.st_mode)
    return {
        "kind": stat.S_IFMT(status.st_mode),
        "mode": 0 if is_link else stat.S_IMODE(status.st_mode),
        "owner": (status.st_uid, status.st_gid),
    }


def _describe(fd: int, status: os.stat_result) -> dict[str, Any]:
    """Of a file or directory; closes the descriptor."""
    found = _basics(status)
    if stat.S_ISREG(status.st_mode):
        found["size"] = status.st_size
        found["content"] = _hash(fd, status.st_size)
    attributes = {name: os.getxattr(fd, name) for name in os.listxattr(fd) if name.startswith(_KEPT)}
    if attributes:
        found["attributes"] = attributes
    os.close(fd)
    return found


def _hash(fd: int, size: int) -> str:
    """Of every page that is not zeros, with its place: a hole is the same as zeros."""
    hashed = hashlib.blake2b(digest_size=16)
    at = 0
    while at < size:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA) // _PAGE * _PAGE
        except OSError:
            break  # only a hole is left
        end = min(size, os.lseek(fd, at, os.SEEK_HOLE))
        while at < end:
            data = os.pread(fd, _PAGE, at)
            if data.rstrip(b"\0"):
                hashed.update(at.to_bytes(8, "little") + data.rstrip(b"\0"))
            at += _PAGE
    return hashed.hexdigest()


def allocated(path: Path) -> int:
    """How many bytes of a file are data, as the file system sees holes."""
    fd = os.open(path, os.O_RDONLY)
    total = at = 0
    size = os.fstat(fd).st_size
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            break
        at = os.lseek(fd, start, os.SEEK_HOLE)
        total += at - start
    os.close(fd)
    return total


def differences(source: Likeness, replica: Likeness) -> list[str]:
    """What is not the same, in words; none when the replica is right."""
    found = []
    for path in sorted(source.keys() | replica.keys()):
        here, there = source.get(path), replica.get(path)
        if here is None or there is None:
            found.append(f"{path!r}: {'missing at' if there is None else 'only at'} the replica")
        elif here != there:
            parts = sorted(key for key in here.keys() | there.keys() if here.get(key) != there.get(key))
            found += [f"{path!r}: {part} is {there.get(part)!r}, not {here.get(part)!r}" for part in parts]
    return found
