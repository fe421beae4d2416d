"""What the log of a volume would cost in each form, measured on the log itself: the ground on which a codec is
chosen, and what ``dkctl bench history`` prints.

``alone``: each frame by itself with zstd-3. ``reference``: each frame with the old bytes of its ranges as
dictionary. ``stream``: one long stream, as archives are. ``full_copies``: the state at each barrier.
"""

from __future__ import annotations

import io
from typing import Any

import zstandard

from diffkeeper.domain import deltas, frames
from diffkeeper.domain.deltas import Op
from diffkeeper_replicator import archives
from diffkeeper_replicator.archives import Step
from diffkeeper_replicator.state_builder import apply
from diffkeeper_replicator.states import State
from diffkeeper_replicator.volume_history import VolumeHistory

DICTIONARY_MAX_BYTES = 2 * 1024 * 1024


def measure(history: VolumeHistory, most_steps: int) -> dict[str, Any]:
    """Of the newest ``most_steps`` frames after the first-sight scan, in bytes."""
    history.grow()
    first, last = history.first(), history.last()
    if first is None or last is None:
        return {"frames": 0}
    start = _start(history, last.position.sequence - most_steps)
    state = history.builder.build(start)
    sums = {"raw": 0, "alone": 0, "reference": 0, "full_copies": 0}
    counts = {"frames": 0, "barriers": 0, "deltas": 0}
    packing, stream = archives.compressor().compressobj(), 0
    for step in history.steps(start, last.position):
        _add(state, step, sums)
        stream += len(packing.compress(archives.encode(step)))
        apply(state, step)
        counts["frames"] += 1
        counts["deltas"] += sum(map(len, step.bodies))
        if step.flags & frames.Flag.BARRIER:
            counts["barriers"] += 1
            sums["full_copies"] += sum(extents.size for extents in state.files.values())
    stream += len(packing.flush())
    return {**counts, "from": str(start), "to": str(last.position), "bytes": sums | {"stream": stream}}


def _start(history: VolumeHistory, at_least: int) -> Any:
    """Behind the scan: its frames are the content itself, and no history."""
    end = history.index.last_with(int(frames.Flag.BASE_END)) or 0
    sequence = max(end, at_least, history.index.first_sequence())
    position = history.index.position_of(sequence)
    assert position is not None, "the index has a row for it"
    return position


def _add(state: State, step: Step, sums: dict[str, int]) -> None:
    for columns in step.bodies:
        body = columns.encode()
        sums["raw"] += len(body)
        sums["alone"] += len(zstandard.ZstdCompressor(level=3).compress(body))
        old = _old_bytes(state, columns)
        if old:
            known = zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
            packed = zstandard.ZstdCompressor(level=3, dict_data=known).compress(body)
        else:
            packed = zstandard.ZstdCompressor(level=3).compress(body)
        sums["reference"] += len(packed)


def _old_bytes(state: State, columns: deltas.Columns) -> bytes:
    held, total = io.BytesIO(), 0
    for op, file_id, offset, length in zip(
        columns.ops, columns.file_ids, columns.offsets, columns.lengths, strict=True
    ):
        extents = state.files.get(file_id)
        if op != Op.WRITE or extents is None or total + length > DICTIONARY_MAX_BYTES:
            continue
        for begin, stop, address in extents.pieces(offset, offset + length):
            held.write(state.contents.read(address, stop - begin))
        total += length
    return held.getvalue()
