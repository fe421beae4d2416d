"""The obvious twin of a replica: deltas replayed into dictionaries, and a real directory read the same way.

``Replay`` keeps whole contents in memory and knows nothing of frames, inodes or fidelity. ``snapshot`` reads
what a program would find. The two are compared as plain dictionaries: path → what stands there.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from diffkeeper.domain import deltas, frames, trees
from diffkeeper.domain.deltas import Delta, Op

Snapshot = dict[bytes, tuple[Any, ...]]


class Replay:
    def __init__(self) -> None:
        self.tree = trees.Tree()
        self.contents: dict[int, bytearray] = {}
        self.xattrs: dict[int, dict[bytes, bytes]] = {}
        # Of access, if it was set, and change; gone again with the next change of the content.
        self.times: dict[int, tuple[int | None, int]] = {}
        self.gaps: list[Delta] = []
        self.barriers: list[Delta] = []

    def apply_all(self, run: Iterable[Delta]) -> Replay:
        for delta in run:
            self.apply(delta)
        return self

    def apply_frames(self, run: Iterable[frames.Frame]) -> Replay:
        for frame in run:
            self.apply_all(frames.open_frame(frame.wire).columns())
        return self

    def apply(self, delta: Delta) -> None:
        self.tree.apply(delta)
        if delta.op in (Op.WRITE, Op.TRUNCATE, Op.PUNCH):
            assert delta.file_id in self.tree.nodes, f"{delta} is of a file that has no name"
            self.times.pop(delta.file_id, None)
            self._change(self.contents.setdefault(delta.file_id, bytearray()), delta)
        elif delta.op is Op.XATTR:
            name, value = delta.args
            there = self.xattrs.setdefault(delta.file_id, {})
            if value is None:
                there.pop(name, None)
            else:
                there[name] = value
        elif delta.op is Op.ATTR and "mtime_ns" in delta.args[0]:
            self.times[delta.file_id] = (delta.args[0].get("atime_ns"), delta.args[0]["mtime_ns"])
        elif delta.op is Op.GAP:
            self.gaps.append(delta)
        elif delta.op is Op.BARRIER:
            self.barriers.append(delta)

    def _change(self, content: bytearray, delta: Delta) -> None:
        if delta.op is Op.TRUNCATE:
            del content[delta.offset :]
            content.extend(bytes(delta.offset - len(content)))
        elif delta.op is Op.PUNCH:
            end = min(delta.offset + delta.length, len(content))
            if delta.offset < end:
                content[delta.offset : end] = bytes(end - delta.offset)
        else:
            content.extend(bytes(max(0, delta.offset - len(content))))
            content[delta.offset : delta.offset + delta.length] = delta.data

    def snapshot(self, *, with_xattrs: bool = False) -> Snapshot:
        found: Snapshot = {b"": self._describe(deltas.ROOT_ID, with_xattrs)}
        for path, file_id in self.tree.paths():
            found[path] = self._describe(file_id, with_xattrs)
        return found

    def _describe(self, file_id: int, with_xattrs: bool) -> tuple[Any, ...]:
        node = self.tree.nodes[file_id]
        what: Any = None
        if node.kind is trees.Kind.FILE:
            what = bytes(self.contents.get(file_id, b""))
        elif node.kind is trees.Kind.SYMLINK:
            what = node.target
        mode = 0o777 if node.kind is trees.Kind.SYMLINK else node.mode
        described = (node.kind.name, mode, node.uid, node.gid, what)
        return (*described, self.xattrs.get(file_id, {})) if with_xattrs else described


_KINDS = {stat.S_IFREG: "FILE", stat.S_IFDIR: "DIR", stat.S_IFLNK: "SYMLINK", stat.S_IFIFO: "FIFO"}


def snapshot(root: Path, *, with_xattrs: bool = False) -> Snapshot:
    """What stands below a real directory. Sockets and devices are not part of a volume."""
    top = os.fsencode(root)
    found: Snapshot = {b"": _describe(top, with_xattrs)}
    for directory, names, files in os.walk(top):
        for name in names + files:
            path = os.path.join(directory, name)
            if stat.S_IFMT(os.lstat(path).st_mode) in _KINDS:
                found[os.path.relpath(path, top)] = _describe(path, with_xattrs)
    return found


def _describe(path: bytes, with_xattrs: bool) -> tuple[Any, ...]:
    status = os.lstat(path)
    kind = _KINDS[stat.S_IFMT(status.st_mode)]
    what: Any = None
    if kind == "FILE":
        what = Path(os.fsdecode(path)).read_bytes()
    elif kind == "SYMLINK":
        what = os.readlink(path)
    described = (kind, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, what)
    if not with_xattrs:
        return described
    names = [os.fsencode(name) for name in os.listxattr(path, follow_symlinks=False)]
    return (
        *described,
        {name: os.getxattr(path, name, follow_symlinks=False) for name in names if name.startswith(b"user.")},
    )
