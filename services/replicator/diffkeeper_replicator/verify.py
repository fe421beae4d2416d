"""Proofs about a replica: a digest of its directory, the chain of its journal, and the log replayed and
compared.

The digest is taken at a quiet point: the caller holds the applier still. Everything here blocks and belongs
into a thread.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from diffkeeper.domain import frames, trees
from diffkeeper.domain.deltas import ROOT_ID
from diffkeeper_replicator import safe_paths
from diffkeeper_replicator.applier import Applier

_CHUNK_BYTES = 1024 * 1024
_MOST_DIFFERENCES = 50


class Entry(NamedTuple):
    """What a path is. ``digest`` is BLAKE3 of the content (of a symbolic link: of its target), empty for
    directories and FIFOs.
    """

    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    digest: str
    links: int


def digest(root: Path) -> dict[str, Entry]:
    """Every path below ``root`` (``.`` for itself), as text with surrogate escapes for bytes that are not
    UTF-8.
    """
    root_fd = safe_paths.open_root(root)
    try:
        return dict(_walk(root_fd))
    finally:
        os.close(root_fd)


def _walk(root_fd: int) -> Iterator[tuple[str, Entry]]:
    hashes: dict[int, str] = {}  # by inode, so that a file with many names is read once
    stack = [b""]
    while stack:
        path = stack.pop()
        dir_fd = safe_paths.open_beneath(root_fd, path, safe_paths.DIR_FLAGS)
        try:
            yield os.fsdecode(path or b"."), _entry(dir_fd, b".", os.fstat(dir_fd), hashes)
            for name in sorted(os.fsencode(entry) for entry in os.listdir(dir_fd)):
                found = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
                below = path + b"/" + name if path else name
                if stat.S_ISDIR(found.st_mode):
                    stack.append(below)
                else:
                    yield os.fsdecode(below), _entry(dir_fd, name, found, hashes)
        finally:
            os.close(dir_fd)


def _entry(dir_fd: int, name: bytes, found: os.stat_result, hashes: dict[int, str]) -> Entry:
    kind = safe_paths.kind_of(found.st_mode)
    size, content = 0, ""
    if kind is trees.Kind.FILE:
        size = found.st_size
        content = hashes.get(found.st_ino) or _hash_file(dir_fd, name)
        hashes[found.st_ino] = content
    elif kind is trees.Kind.SYMLINK:
        content = blake3(os.readlink(name, dir_fd=dir_fd)).hexdigest()
    # The link count of a directory is the file system's own business.
    links = 1 if kind is trees.Kind.DIR else found.st_nlink
    word = "other" if kind is None else kind.name.lower()
    return Entry(word, stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, size, content, links)


def _hash_file(dir_fd: int, name: bytes) -> str:
    hasher = blake3()
    with open(
        os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=dir_fd), "rb"
    ) as file:
        while chunk := file.read(_CHUNK_BYTES):
            hasher.update(chunk)
    return hasher.hexdigest()


def replay(
    volume: str, log: Iterable[frames.Frame], into: Path, *, allow_setid: bool = False
) -> trees.TreeState:
    """The log from its first frame applied to an empty directory; the state at its end. Raises what the
    applier raises.
    """
    return replay_on(empty_state(volume, into), log, into, allow_setid=allow_setid)


def replay_on(
    state: trees.TreeState, log: Iterable[frames.Frame], into: Path, *, allow_setid: bool = False
) -> trees.TreeState:
    """The same from a state on that ``into`` shows already."""
    root_fd = safe_paths.open_root(into)
    applier = Applier(root_fd, state.tree, state.identities, allow_setid=allow_setid)
    try:
        for frame in log:
            applier.apply(frame.columns())
            state.position, state.frame_hash, state.stamp = frame.position, frame.hash, frame.header.last
    finally:
        applier.close()
        os.close(root_fd)
    return state


def empty_state(volume: str, root: Path) -> trees.TreeState:
    """The state before the first frame, in an empty directory. Its own mode and owner become those with which
    a tree begins: what a log says of its root is said against them.
    """
    tree = trees.Tree()
    node = tree.nodes[ROOT_ID]
    root_fd = safe_paths.open_root(root)
    try:
        if os.geteuid() == 0:
            os.fchown(root_fd, node.uid, node.gid)
        os.fchmod(root_fd, node.mode)
        identities = {ROOT_ID: safe_paths.identity(root_fd)}
    finally:
        os.close(root_fd)
    return trees.TreeState(volume, frames.ORIGIN_TIP.position, frames.ORIGIN_TIP.hash, 0, tree, identities)


class Difference(NamedTuple):
    path: str
    expected: Entry | None
    found: Entry | None


def differences(expected: dict[str, Entry], found: dict[str, Entry]) -> list[Difference]:
    """Paths that are not the same, at most fifty; empty when the two are equal."""
    told: list[Difference] = []
    for path in sorted(expected.keys() | found.keys()):
        if expected.get(path) != found.get(path):
            told.append(Difference(path, expected.get(path), found.get(path)))
            if len(told) == _MOST_DIFFERENCES:
                break
    return told
