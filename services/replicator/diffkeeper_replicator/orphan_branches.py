"""Orphan branches: what a writer had written beyond the frame from which the main line goes on without it.

A branch is a directory below ``orphans``: ``branch.json`` (who, from where, why), ``tail.frames`` (its frames, where
there are any, each as length and wire form) and ``changes`` with ``data``: what its directory held that the parent does
not, file by file, so that it can be shown and taken over without the log. ``changes`` is written last and makes the
branch whole; nothing of a directory is put back before.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import msgspec
from blake3 import blake3

from diffkeeper import atomic_files
from diffkeeper.domain import errors, frames, limits

# Below the directory of a volume; a folder each.
FOLDER = "orphans"

_LENGTH = struct.Struct("<I")
_CHUNK_BYTES = 1 << 20


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """``branch.json``."""

    name: str
    volume: str
    site: str
    epoch: int
    parent: str
    parent_hash: str
    # The last frame that is known of it; the parent itself where there is none.
    end: str
    frames: int
    why: str
    made_us: int
    path: str
    first_us: int = 0
    last_us: int = 0


@dataclass(slots=True)
class Kept:
    """A range of a file as the branch has it: its bytes lie at ``at`` in ``data``; ``at`` -1: zeros."""

    offset: int
    length: int
    at: int


@dataclass(slots=True)
class Change:
    """One path of the branch that differs from the parent. ``kind``: changed, added, removed, renamed, attributes.

    A name that a rename left is told as removed, too.
    """

    path: bytes
    kind: str
    # Where it stands in the parent; None for what is added.
    before: bytes | None
    file_id: int
    node: str = "file"
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    target: bytes = b""
    ranges: list[Kept] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(kept.length for kept in self.ranges)


class Writer:
    """Makes a branch; ``finish`` makes it whole. Begun again it throws away what was not finished."""

    def __init__(self, directory: Path, note: Note) -> None:
        self.directory = directory
        self._note = note
        directory.mkdir(parents=True, exist_ok=True)
        self._data = open(directory / "data", "wb")  # noqa: SIM115  held until finish

    def keep(self, data: bytes) -> int:
        """Where ``data`` lies; -1 when it is all zeros."""
        if not data.strip(b"\0"):
            return -1
        at = self._data.tell()
        self._data.write(data)
        return at

    def finish(self, changes: Iterable[Change], tail: Iterable[frames.Frame]) -> None:
        self._data.flush()
        os.fsync(self._data.fileno())
        self._data.close()
        write_frames(self.directory / "tail.frames", tail)
        packed = msgpack.packb([_packed(change) for change in changes], use_bin_type=True)
        atomic_files.write_bytes(self.directory / "branch.json", msgspec.json.encode(self._note))
        atomic_files.write_bytes(self.directory / "changes", blake3(packed).digest() + packed)
        atomic_files.fsync_directory(self.directory.parent)

    def abandon(self) -> None:
        self._data.close()


class Branch:
    """One that is whole."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            self.note = msgspec.json.decode((directory / "branch.json").read_bytes(), type=Note)
        except (OSError, msgspec.DecodeError) as error:
            raise _damaged(directory, repr(error)) from error

    def changes(self) -> list[Change]:
        raw = (self.directory / "changes").read_bytes()
        if raw[:32] != blake3(raw[32:]).digest():
            raise _damaged(self.directory, "its changes do not match their checksum")
        return [_unpacked(fields) for fields in msgpack.unpackb(raw[32:], raw=False)]

    def read(self, kept: Kept) -> bytes:
        if kept.at < 0:
            return bytes(kept.length)
        with open(self.directory / "data", "rb", buffering=0) as file:
            found = os.pread(file.fileno(), kept.length, kept.at)
        if len(found) != kept.length:
            raise _damaged(self.directory, "its data is cut short")
        return found

    def tail(self) -> Iterator[frames.Frame]:
        return read_frames(self.directory / "tail.frames")

    def summary(self) -> dict[str, Any]:
        changes = self.changes()
        return {
            **msgspec.to_builtins(self.note),
            "paths": len(changes),
            "bytes": sum(change.bytes for change in changes),
        }


def find_all(orphans: Path) -> list[Branch]:
    """The whole ones, by name."""
    if not orphans.exists():
        return []
    return [Branch(found) for found in sorted(orphans.iterdir()) if (found / "changes").exists()]


def find(orphans: Path, name: str) -> Branch:
    for branch in find_all(orphans):
        if branch.note.name == name:
            return branch
    known = ", ".join(branch.note.name for branch in find_all(orphans)) or "none"
    raise errors.NotFound(
        f"there is no branch {name!r} here", reason="unknown-branch", hint=f"known here: {known}"
    )


def drop(orphans: Path, name: str) -> None:
    """Remove a branch for good. First the mark that it is whole, so that a crash leaves none by halves."""
    branch = find(orphans, name)
    (branch.directory / "changes").unlink()
    atomic_files.fsync_directory(branch.directory)
    shutil.rmtree(branch.directory)


def write_frames(path: Path, run: Iterable[frames.Frame]) -> None:
    """Durable, and proved by reading it back."""
    written = []
    with open(path, "wb") as file:
        for frame in run:
            file.write(_LENGTH.pack(len(frame.wire)))
            file.write(frame.wire)
            written.append(frame.hash)
        file.flush()
        os.fsync(file.fileno())
    if [frame.hash for frame in read_frames(path)] != written:
        raise _damaged(path, "it does not read back as it was written")


def read_frames(path: Path) -> Iterator[frames.Frame]:
    """Frames of a file made by ``write_frames`` or by an agent, each checked; raises Corrupt."""
    with open(path, "rb") as file:
        while head := file.read(_LENGTH.size):
            if len(head) < _LENGTH.size or (size := _LENGTH.unpack(head)[0]) > limits.FRAME_MAX_BYTES:
                raise _damaged(path, "a length in it makes no sense")
            yield frames.open_frame(file.read(size))


def copy_file(writer: Writer, fd: int, size: int) -> list[Kept]:
    """All of a file into a branch, without its holes."""
    ranges: list[Kept] = []
    at = 0
    while at < size:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            break  # only a hole is left
        end = min(size, os.lseek(fd, at, os.SEEK_HOLE))
        while at < end and (chunk := os.pread(fd, min(_CHUNK_BYTES, end - at), at)):
            ranges.append(Kept(at, len(chunk), writer.keep(chunk)))
            at += len(chunk)
    return ranges


def _packed(change: Change) -> list[Any]:
    return [
        change.path,
        change.kind,
        change.before,
        change.file_id,
        change.node,
        change.mode,
        change.uid,
        change.gid,
        change.size,
        change.target,
        [[kept.offset, kept.length, kept.at] for kept in change.ranges],
    ]


def _unpacked(fields: list[Any]) -> Change:
    path, kind, before, file_id, node, mode, uid, gid, size, target, ranges = fields
    kept = [Kept(offset, length, at) for offset, length, at in ranges]
    return Change(path, kind, before, file_id, node, mode, uid, gid, size, target, kept)


def _damaged(path: Path, why: str) -> errors.Corrupt:
    return errors.Corrupt(
        f"the branch in {path} is damaged: {why}; it was left as it is",
        reason="branch-damaged",
        hint="its frames may be in the stream of its site still",
    )
