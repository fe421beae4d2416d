"""Old stretches of the log, folded and kept as one long zstd stream each.

A file ``<first>-<last>.archive`` leads from the frame before ``first`` to ``last``: magic, BLAKE3 of the rest,
a msgpack head (which points it keeps, and how much it holds), and the stream: a record a step. One stream
with a window of 128 MB makes a database's log several times smaller than its frames one by one, for each page
is found again where it was written before. A file is written beside, read back and compared, fsynced and
renamed: there is the old one or the new one.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import zstandard
from blake3 import blake3

from diffkeeper import atomic_files
from diffkeeper.domain import deltas, errors, frames, limits, positions

SUFFIX = ".archive"
LEVEL = 6
WINDOW_LOG = 27
_MAGIC = b"DKA1"
_FIXED = struct.Struct("<4s32sI")  # magic, hash of all after it, bytes of the head
_LENGTH = struct.Struct("<I")
_HEAD_MAX_BYTES = 64 * 1024 * 1024
_RECORD_MAX_BYTES = limits.FRAME_MAX_BODY_BYTES + 4096
_BLOCK_BYTES = 1024 * 1024


class Step(NamedTuple):
    """What leads from one kept point to the next."""

    tip: frames.Tip
    parent: frames.Tip
    first: int  # stamps
    last: int
    flags: int
    fidelity: int
    origin: str
    successor: str
    body_bytes: int  # before compression
    bodies: list[deltas.Columns]


class Archive(NamedTuple):
    path: Path
    first: int
    last: int


class Head(NamedTuple):
    kept: list[int]
    # Of the bodies, before compression.
    raw_bytes: int
    deltas: int


def of_frame(frame: frames.Frame, columns: deltas.Columns) -> Step:
    header = frame.header
    return Step(
        frames.Tip(frame.position, frame.hash),
        frames.Tip(header.parent, header.parent_hash),
        header.first,
        header.last,
        int(header.flags),
        int(header.fidelity),
        header.origin,
        header.successor,
        header.body_bytes,
        [columns],
    )


def found(folder: Path) -> list[Archive]:
    """The archives of a folder, oldest first."""
    made = []
    for path in folder.glob(f"*{SUFFIX}"):
        first, last = path.name.removesuffix(SUFFIX).split("-")
        made.append(Archive(path, int(first), int(last)))
    return sorted(made, key=lambda archive: archive.first)


def compressor() -> zstandard.ZstdCompressor:
    """One long memory, so that what was written 100 MB ago is found."""
    parameters = zstandard.ZstdCompressionParameters.from_level(LEVEL, window_log=WINDOW_LOG, enable_ldm=True)
    return zstandard.ZstdCompressor(compression_params=parameters)


def write(folder: Path, first: int, steps: Iterable[Step]) -> Archive | None:
    """Keep these steps, whose first goes on from sequence ``first - 1``; None when there are none. Raises
    Corrupt when the file does not read back as it was written: then nothing was replaced.
    """
    temporary = folder / f".new-{first}"
    kept: list[int] = []
    raw, count, digest = 0, 0, blake3()
    with temporary.open("wb") as file, compressor().stream_writer(file, closefd=False) as stream:
        for step in steps:
            record = encode(step)
            digest.update(record)
            stream.write(record)
            kept.append(step.tip.position.sequence)
            raw += len(record)
            count += sum(map(len, step.bodies))
    if not kept:
        temporary.unlink()
        return None
    _check(temporary, digest.digest())
    head: bytes = msgpack.packb({"v": 1, "kept": kept, "raw": raw, "deltas": count})
    path = folder / f"{first:020d}-{kept[-1]:020d}{SUFFIX}"
    _finish(temporary, head, path)
    return Archive(path, first, kept[-1])


def head(archive: Archive) -> Head:
    """Raises Corrupt, also when the rest of the file is damaged."""
    with archive.path.open("rb") as file:
        return _verified(file, archive.path)


def read(archive: Archive, after: int = 0) -> Iterator[Step]:
    """The steps that end beyond ``after``. The whole file is verified before the first of them."""
    with archive.path.open("rb") as file:
        _verified(file, archive.path)
        for step in _steps(file, archive.path):
            if step.tip.position.sequence > after:
                yield step


def encode(step: Step) -> bytes:
    packed: bytes = msgpack.packb(
        [
            [step.tip.position.epoch, step.tip.position.sequence, step.tip.hash],
            [step.parent.position.epoch, step.parent.position.sequence, step.parent.hash],
            step.first,
            step.last,
            step.flags,
            step.fidelity,
            step.origin,
            step.successor,
            step.body_bytes,
            len(step.bodies),
        ],
        use_bin_type=True,
    )
    parts = [_LENGTH.pack(len(packed)), packed]
    for columns in step.bodies:
        body = columns.encode()
        parts += [_LENGTH.pack(len(body)), body]
    return b"".join(parts)


def _verified(file: Any, path: Path) -> Head:
    """Check the hash of the file and leave it where the stream begins."""
    try:
        magic, digest, size = _FIXED.unpack(file.read(_FIXED.size))
        if magic != _MAGIC or size > _HEAD_MAX_BYTES:
            raise ValueError("its beginning is not that of an archive")
        hasher = blake3()
        packed = file.read(size)
        hasher.update(packed)
        while block := file.read(_BLOCK_BYTES):
            hasher.update(block)
        if hasher.digest() != digest:
            raise ValueError("its bytes are not those of its hash")
        fields = msgpack.unpackb(packed)
        file.seek(_FIXED.size + size)
        return Head(fields["kept"], fields["raw"], fields["deltas"])
    except (ValueError, KeyError, TypeError, struct.error, msgpack.UnpackException) as error:
        raise _damaged(path, str(error)) from error


def _steps(file: Any, path: Path) -> Iterator[Step]:
    reader = zstandard.ZstdDecompressor(max_window_size=1 << WINDOW_LOG).stream_reader(file)
    try:
        while length := reader.read(_LENGTH.size):
            *fields, count = msgpack.unpackb(_exactly(reader, *_LENGTH.unpack(length)), raw=False)
            tip, parent, *rest = fields
            bodies = []
            for _ in range(count):
                (size,) = _LENGTH.unpack(_exactly(reader, _LENGTH.size))
                bodies.append(deltas.decode(_exactly(reader, size)))
            first, last, flags, fidelity, origin, successor, body_bytes = rest
            yield Step(
                _tip(tip), _tip(parent), first, last, flags, fidelity, origin, successor, body_bytes, bodies
            )
    except (ValueError, TypeError, struct.error, zstandard.ZstdError, msgpack.UnpackException) as error:
        raise _damaged(path, repr(error)) from error


def _tip(fields: Any) -> frames.Tip:
    epoch, sequence, digest = fields
    return frames.Tip(positions.Position(epoch, sequence), digest)


def _exactly(reader: Any, size: int) -> bytes:
    if size > _RECORD_MAX_BYTES:
        raise ValueError(f"a record of {size} bytes")
    data: bytes = reader.read(size)
    while len(data) < size:
        more = reader.read(size - len(data))
        if not more:
            raise ValueError("it ends in the middle of a record")
        data += more
    return data


def _check(path: Path, expected: bytes) -> None:
    hasher = blake3()
    with path.open("rb") as file:
        reader = zstandard.ZstdDecompressor(max_window_size=1 << WINDOW_LOG).stream_reader(file)
        while block := reader.read(_BLOCK_BYTES):
            hasher.update(block)
    if hasher.digest() != expected:
        path.unlink()
        raise _damaged(path, "it does not read back as it was written")


def _finish(temporary: Path, head_bytes: bytes, path: Path) -> None:
    """Head and stream into one file under its name, durably."""
    whole = temporary.with_name(f"{temporary.name}.whole")
    hasher = blake3(head_bytes)
    with temporary.open("rb") as stream, whole.open("wb") as file:
        file.write(_FIXED.pack(_MAGIC, bytes(32), len(head_bytes)) + head_bytes)
        while block := stream.read(_BLOCK_BYTES):
            hasher.update(block)
            file.write(block)
        file.seek(0)
        file.write(_FIXED.pack(_MAGIC, hasher.digest(), len(head_bytes)))
        file.flush()
        os.fsync(file.fileno())
    whole.rename(path)
    atomic_files.fsync_directory(path.parent)
    temporary.unlink()


def _damaged(path: Path, why: str) -> errors.Corrupt:
    return errors.Corrupt(
        f"the archive {path.name} cannot be read: {why}; nothing of it was used",
        reason="archive-damaged",
        hint="another site may have this part of the history",
    )
