"""A moment in two halves: everything but its contents, and then any range of them, in whatever order it is asked for.

A file is named by its id in the volume, which with the position is one content for ever.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from blake3 import blake3

from diffkeeper.changes import Change
from diffkeeper.domain import errors
from diffkeeper.lazy import plans, sources
from diffkeeper.lazy.sources import Part
from diffkeeper_replicator import state_changes
from diffkeeper_replicator.extents import Extents
from diffkeeper_replicator.states import State

# Of one file: with more the smallest holes count as content.
MOST_RUNS = 50_000
_PART = re.compile(r"(\d{1,18}):(\d{1,18}):(\d{1,8})")


def layout(state: State, chosen: state_changes.Chosen | None = None) -> Iterator[Change]:
    """``state_changes.restore`` with the runs of each file in the place of its content."""
    return state_changes.restore(state, chosen, content=_sparse)


def bytes_of(state: State) -> int:
    """How much content a state has."""
    return sum(sum(extents.ends) - sum(extents.starts) for extents in state.files.values())


def parts_of(texts: Sequence[str]) -> list[Part]:
    """Raises Refused for what are no parts, or too many, or too much."""
    found = [_PART.fullmatch(text) for text in texts]
    parts = [Part(*map(int, match.groups())) for match in found if match is not None]
    if not parts or len(parts) != len(texts) or len(parts) > sources.MOST_PARTS:
        raise errors.Refused("name up to 256 parts as KEY:OFFSET:LENGTH", reason="bad-request")
    if sum(part.length for part in parts) > sources.MOST_BYTES:
        raise errors.Refused(f"that is more than {sources.MOST_BYTES} bytes at once", reason="bad-request")
    return parts


def read(state: State, parts: Sequence[Part]) -> bytes:
    """Their digest and their bytes, holes as zeros. Raises Corrupt for what is good nowhere."""
    made = bytearray()
    for part in parts:
        extents = state.files.get(part.key)
        if extents is None or part.offset + part.length > extents.size:
            raise errors.Refused(
                f"file {part.key} has no bytes {part.offset} to {part.offset + part.length} at {state.position}",
                reason="bad-range",
            )
        for start, end, address in extents.pieces(part.offset, part.offset + part.length):
            made += state.contents.read(address, end - start)
    return blake3(made).digest() + bytes(made)


def _sparse(state: State, file_id: int, path: bytes) -> Iterator[Change]:
    extents = state.files[file_id]
    yield ("sparse", path, file_id, extents.size, plans.pack_runs(runs_of(extents)))


def runs_of(extents: Extents) -> list[tuple[int, int]]:
    """Where a file has content: neighbours as one, and not more than ``MOST_RUNS``."""
    smallest = 1
    while True:
        runs: list[tuple[int, int]] = []
        for start, end in zip(extents.starts, extents.ends, strict=True):
            if runs and start - runs[-1][1] < smallest:
                runs[-1] = (runs[-1][0], end)
            else:
                runs.append((start, end))
        if len(runs) <= MOST_RUNS:
            return runs
        smallest = max(4096, smallest * 4)
