"""A checkpoint: the state at one position as a file of names and a list of chunks.

Files: ``<sequence>-<epoch>.checkpoint`` in one folder: magic, BLAKE3 of the rest, the rest as zstd. It is
written after its chunks are durable, and replaced whole, so there is a good one or none. Making one from a
state costs what changed since the checkpoint that the state was built on: chunks in which no byte moved are
named again without being read.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import zstandard
from blake3 import blake3

from diffkeeper import atomic_files
from diffkeeper.domain import chunks, errors, frames, positions, trees
from diffkeeper_replicator.chunk_store import ChunkStore
from diffkeeper_replicator.contents import CHUNKS, ChunkTable, Contents
from diffkeeper_replicator.extents import HOLE, Extents
from diffkeeper_replicator.states import State

SUFFIX = ".checkpoint"
# A list of chunks for a hundred terabytes is no checkpoint of ours.
_MOST_BYTES = 1 << 32
_MAGIC = b"DKK1"
_VERSION = 1
_HEAD_BYTES = len(_MAGIC) + 32


def path_of(folder: Path, position: positions.Position) -> Path:
    return folder / f"{position.sequence:020d}-{position.epoch}{SUFFIX}"


def position_of(path: Path) -> positions.Position:
    sequence, epoch = path.name.removesuffix(SUFFIX).split("-")
    return positions.Position(int(epoch), int(sequence))


def found(folder: Path) -> list[positions.Position]:
    """Positions of the checkpoints in a folder, oldest first."""
    return sorted(position_of(path) for path in folder.glob(f"*{SUFFIX}"))


def write(folder: Path, volume: str, state: State, store: ChunkStore) -> int:
    """Make the checkpoint of a state; how many bytes of chunks it names. The caller holds the store's lock.

    Raises Corrupt when a chunk that it must read is good nowhere, Transient when the disk is full.
    """
    refs: list[chunks.Ref] = []
    files = []
    for file_id, extents in state.files.items():
        runs = []
        for start, end in _runs(extents):
            first = len(refs)
            refs.extend(_chunks_of(state.contents, extents, start, end, store))
            runs.append([start, end - start, len(refs) - first])
        files.append([file_id, extents.size, runs])
    packed = msgpack.packb(
        {
            "v": _VERSION,
            "tree": trees.encode(
                trees.TreeState(volume, state.position, state.tip.hash, state.stamp, state.tree, {})
            ),
            "files": files,
            "hashes": b"".join(ref.hash for ref in refs),
            "sizes": array("I", (ref.size for ref in refs)).tobytes(),
            "xattrs": [[file_id, list(kept.items())] for file_id, kept in state.xattrs.items() if kept],
            "times": [[file_id, *times] for file_id, times in state.times.items()],
        },
        use_bin_type=True,
    )
    body = zstandard.ZstdCompressor(level=3, write_content_size=True).compress(packed)
    store.flush()
    atomic_files.write_bytes(path_of(folder, state.position), _MAGIC + blake3(body).digest() + body)
    return sum(ref.size for ref in refs)


def read(path: Path, volume: str, store: ChunkStore, folder: Path) -> State:
    """The state that a checkpoint holds; content is read when it is wanted. Raises Corrupt."""
    fields = _fields(path)
    try:
        kept = trees.decode(fields["tree"])
        if kept.volume != volume or kept.position != position_of(path):
            raise ValueError(f"it is of volume {kept.volume} at {kept.position}")
        refs = _refs(fields)
        ends = list(itertools.accumulate(ref.size for ref in refs))
        state = State(Contents(folder, ChunkTable(refs, ends), store.get))
        state.tip, state.stamp = frames.Tip(kept.position, kept.frame_hash), kept.stamp
        state.tree = kept.tree
        address, nth = CHUNKS, 0
        for file_id, size, runs in fields["files"]:
            extents = state.files[file_id] = Extents()
            for start, length, count in runs:
                extents.write(start, length, address)
                address += length
                nth += count
                if ends[nth - 1] != address - CHUNKS:
                    raise ValueError("its chunks do not add up")
            extents.truncate(size)
        state.xattrs = {file_id: dict(kept) for file_id, kept in fields["xattrs"]}
        state.times = {file_id: (atime, mtime) for file_id, atime, mtime in fields["times"]}
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise _damaged(path, repr(error)) from error
    return state


def hashes(path: Path) -> Iterable[bytes]:
    """Every chunk that a checkpoint names. Raises Corrupt."""
    try:
        return [ref.hash for ref in _refs(_fields(path))]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, repr(error)) from error


def _fields(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    body = memoryview(data)[_HEAD_BYTES:]
    if data[:_HEAD_BYTES] != _MAGIC + blake3(body).digest():
        raise _damaged(path, "its bytes are not those of its hash")
    try:
        if zstandard.get_frame_parameters(body).content_size > _MOST_BYTES:
            raise ValueError("it is too large")
        fields: dict[str, Any] = msgpack.unpackb(
            zstandard.ZstdDecompressor().decompress(body), raw=False, strict_map_key=True
        )
        if fields["v"] != _VERSION:
            raise ValueError(f"version {fields['v']}")
    except (ValueError, KeyError, TypeError, zstandard.ZstdError, msgpack.UnpackException) as error:
        raise _damaged(path, repr(error)) from error
    return fields


def _refs(fields: dict[str, Any]) -> list[chunks.Ref]:
    digests, sizes = fields["hashes"], array("I")
    sizes.frombytes(fields["sizes"])
    if len(digests) != chunks.HASH_BYTES * len(sizes):
        raise ValueError("hashes and sizes do not go together")
    if sizes and not 0 < min(sizes) <= max(sizes) <= chunks.MAX_BYTES:
        raise ValueError("a chunk has no size that a chunk can have")
    width = chunks.HASH_BYTES
    return [chunks.Ref(digests[at * width : (at + 1) * width], size) for at, size in enumerate(sizes)]


def _runs(extents: Extents) -> Iterator[tuple[int, int]]:
    """Stretches between holes."""
    begin = end = 0
    for start, stop in zip(extents.starts, extents.ends, strict=True):
        if start != end and end > begin:
            yield begin, end
        if start != end:
            begin = start
        end = stop
    if end > begin:
        yield begin, end


def _chunks_of(
    contents: Contents, extents: Extents, start: int, end: int, store: ChunkStore
) -> Iterator[chunks.Ref]:
    """The chunks of one stretch: those of the last checkpoint where nothing moved, new ones elsewhere."""
    at = start
    while at < end:
        kept, stop = _kept_chunks(contents, extents, at, end)
        yield from kept
        at = stop
        if at < end:
            for data in _cut_until_kept(contents, extents, at, end):
                at += len(data)
                yield store.put(data)


def _kept_chunks(contents: Contents, extents: Extents, at: int, end: int) -> tuple[list[chunks.Ref], int]:
    """Chunks of the last checkpoint that stand whole from ``at`` on, and where they end."""
    begin, stop, address = next(extents.pieces(at, end))
    if address == HOLE or address < CHUNKS:
        return [], at
    kept: list[chunks.Ref] = []
    for ref, first in contents.refs(address, stop - begin):
        place = at + first - address
        if first < address:
            return [], at  # in the middle of a chunk
        if place + ref.size > stop:
            return kept, place
        if place + ref.size == stop and stop < end and ref.size < chunks.MIN_BYTES:
            # It ended with its stretch, which goes on now: without this a log would be kept in crumbs.
            return kept, place
        kept.append(ref)
    return kept, stop


def _cut_until_kept(contents: Contents, extents: Extents, at: int, end: int) -> Iterator[bytes]:
    """New chunks from ``at`` on, until one ends where a chunk of the last checkpoint begins."""
    from diffkeeper_replicator import chunking  # numpy is slow to import, and only what writes needs it

    while at < end:
        stop = _next_kept(contents, extents, at, end, chunking.BLOCK_BYTES)
        data = b"".join(
            contents.read(address, after - before) for before, after, address in extents.pieces(at, stop)
        )
        whole = stop == end
        for chunk in chunking.first_chunks(data, whole):
            yield chunk
            at += len(chunk)
        if at < end and _kept_chunks(contents, extents, at, end)[0]:
            return


def _next_kept(contents: Contents, extents: Extents, at: int, end: int, most: int) -> int:
    """The first place after ``at`` where a chunk of the last checkpoint begins, not nearer than a new chunk
    needs and not farther than ``most``, which the cutter takes at once.
    """
    nearest, farthest = at + chunks.MIN_BYTES, min(end, at + most)
    for begin, _stop, address in extents.pieces(nearest, farthest):
        if address == HOLE or address < CHUNKS:
            continue
        for ref, first in contents.refs(address, _stop - begin):
            place = begin + first - address
            if nearest <= place < farthest and place + ref.size <= _stop:
                return place
    return farthest


def _damaged(path: Path, why: str) -> errors.Corrupt:
    return errors.Corrupt(
        f"the checkpoint {path.name} cannot be read: {why}; it was left where it is",
        reason="checkpoint-damaged",
        hint="an older checkpoint and the log give the same state; dkctl history repairs it",
    )
