"""Runs an act in a child process and gives back what the probe said of it; shows records as short lines."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from diffkeeper_capture import bpf_probe
from diffkeeper_capture.records import NO_VOLUME, TIME_KEPT, TIME_NOW, Flag, Kind, PathOp, Record

ACTS = Path(__file__).with_name("acts.py")
Seen = tuple[Record, bytes]


@dataclass
class Watched:
    """A directory under the eyes of the probe."""

    probe: bpf_probe.BpfProbe
    root: Path
    slot: int
    seen: list[Seen] = field(default_factory=list)

    def start(self, act: str, *arguments: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-I", "-S", "-B", str(ACTS), act, str(self.root), *map(str, arguments)]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def run(self, act: str, *arguments: object) -> list[Seen]:
        """What the child's processes did, in order; of everyone else only what concerns this volume."""
        child = self.start(act, *arguments)
        while child.poll() is None:
            if not self.drain():
                try:
                    child.wait(0.002)
                except subprocess.TimeoutExpired:
                    continue
        _, complaint = child.communicate()
        assert child.returncode == 0, complaint.decode()
        self.drain()
        return [seen for seen in self.seen if self.is_ours(*seen, child.pid)]

    def is_ours(self, record: Record, payload: bytes, pid: int) -> bool:
        return self.slot == record.volume or record.tgid == pid or os.fsencode(self.root) in payload

    def drain(self) -> int:
        take = self.seen.append
        return self.probe.drain(
            lambda record, payload: take((record, bytes(payload))), upto=self.probe.produced()
        )

    def lines(self, seen: Iterable[Seen]) -> list[str]:
        return Lines(self.root).of(seen)


class Lines:
    """Records as lines for people: inodes by the names they were created under."""

    def __init__(self, root: Path) -> None:
        self._root = os.fsencode(root)
        self._names = {root.stat().st_ino: ".", os.stat("/").st_ino: ""}
        self._say: dict[int, Callable[[Record, bytes], str]] = {
            Kind.WRITE: lambda r, p: f"write {self._of(r)} @{r.offset} {_bytes(p)} size={r.aux}",
            Kind.REREAD: lambda r, p: f"reread {self._of(r)} {_range(r)} size={r.aux}",
            Kind.OPEN: self._open,
            Kind.SIZE: lambda r, p: f"size {self._of(r)} {r.aux}",
            Kind.PATH: self._path,
            Kind.ATTR: lambda r, p: f"attr {self._of(r)} {r.aux:o} {r.uid}:{r.gid}",
            Kind.DIRTIED: lambda r, p: f"dirtied {self._of(r)} {_range(r)}",
            Kind.ALLOCATED: lambda r, p: f"allocated {self._of(r)} {_range(r)} mode={r.extra} size={r.aux}",
            Kind.XATTR: lambda r, p: f"xattr {self._of(r)} {p.decode()}",
            Kind.MAPPED: lambda r, p: f"mapped {self._of(r)} {_range(r)} {r.inode2}",
            Kind.UNSEEN: lambda r, p: "unseen",
            Kind.SYNC: lambda r, p: f"sync {self._of(r)}",
        }

    def of(self, seen: Iterable[Seen]) -> list[str]:
        return [self._line(record, payload) for record, payload in seen]

    def _line(self, record: Record, payload: bytes) -> str:
        flags = Flag(record.flags)
        said = [self._say[record.kind](record, payload)]
        said += [str(flag.name) for flag in Flag if flag in flags]
        if record.volume == NO_VOLUME and record.kind == Kind.REREAD:
            said.append("NO_VOLUME")
        return " ".join(said)

    def _of(self, record: Record) -> str:
        return self._names.get(record.inode, "?")

    def _open(self, record: Record, payload: bytes) -> str:
        name = payload.decode(errors="backslashreplace")
        self._names.setdefault(record.inode, name)
        parent = self._names.get(record.inode2, "?")
        return f"open {parent}/{name} {stat.S_IMODE(record.aux):o} {record.uid}:{record.gid}"

    def _path(self, record: Record, payload: bytes) -> str:
        parts = payload.split(b"\0")[:-1]
        bases = [record.inode if record.offset != PathOp.SYMLINK else 0, record.inode2]
        op = PathOp(record.offset)
        if record.flags & Flag.FOUND and op in (PathOp.MKDIR, PathOp.MKNOD):
            self._names.setdefault(
                record.inode2, parts[0].rstrip(b"/").rpartition(b"/")[2].decode(errors="backslashreplace")
            )
        said = [op.name.lower()]
        for part, base in zip(parts, bases, strict=False):
            text = part.replace(self._root, b"$").decode(errors="backslashreplace")
            said.append(text if part.startswith(b"/") or not base else f"{self._names.get(base, '?')}:{text}")
        if op in (PathOp.MKDIR, PathOp.MKNOD, PathOp.CHMOD):
            said.append(f"{record.aux:o}")
        if op is PathOp.TRUNCATE:
            said.append(str(record.aux))
        if op is PathOp.CHOWN:
            said.append(f"{_id(record.uid)}:{_id(record.gid)}")
        if op is PathOp.UTIMES:
            said.append(f"{_time(record.aux)} {_time(record.inode2)}")
        if record.extra:
            said.append(f"extra={record.extra:#x}")
        return " ".join(said)


def _time(number: int) -> str:
    return {TIME_NOW: "now", TIME_KEPT: "kept"}.get(number, str(number))


def _id(number: int) -> int:
    return -1 if number == 0xFFFFFFFF else number


def _range(record: Record) -> str:
    return f"{record.offset}+{record.length}"


def _bytes(payload: bytes) -> str:
    if len(payload) <= 16:
        return repr(payload)
    return f"{payload[:1]!r}*{len(payload)}" if len(set(payload)) == 1 else f"<{len(payload)}>"
