"""What the main line held at the parent of an orphan branch, and which of its files were touched since, however far the
journal still goes back: what it let go of is in the history's archives and checkpoints. Reads only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from diffkeeper.domain import errors, frames, positions
from diffkeeper_replicator import history_base
from diffkeeper_replicator.backward import Images, Piece
from diffkeeper_replicator.chunk_store import ChunkStore
from diffkeeper_replicator.journal import Journal
from diffkeeper_replicator.state_builder import StateBuilder


def pieces(
    images: Images, volume: str, folder: Path, journal: Journal, parent: frames.Tip
) -> Iterator[Piece]:
    """As ``Images.pieces`` at ``parent``; ``folder`` is the volume's below the replicator's directory.

    Raises Corrupt ``fork`` where another frame stands there, and NotFound ``not-kept`` where the history was folded.
    """
    if parent == frames.ORIGIN_TIP:
        yield from images.pieces_of(None)
        return
    if parent.position.sequence >= journal.first:
        _check(journal.read(parent.position).hash, parent)
        with history_base.state_before(volume, folder, journal) as base:
            yield from images.pieces(journal, parent, base)
        return
    with _history(volume, folder) as history:
        state = history.build(parent.position)
        _check(state.tip.hash, parent)
        yield from images.pieces_of(state)


def touched_since(volume: str, folder: Path, journal: Journal, parent: positions.Position) -> set[int] | None:
    """The ids that frames after ``parent`` name, folded ones too; None where the log does not go back so far."""
    if parent.sequence + 1 >= journal.first:
        return {file_id for frame in journal.frames_after(parent) for file_id in frame.columns().file_ids}
    touched: set[int] = set()
    reached = parent.sequence
    with _history(volume, folder) as history:
        for step in history.steps(parent.sequence):
            # A folded step may begin before the parent: what it names is then too much, never too little.
            if step.parent.position.sequence > reached:
                return None
            reached = step.tip.position.sequence
            touched.update(file_id for body in step.bodies for file_id in body.file_ids)
    return touched if reached >= journal.tip.position.sequence else None


def _check(found: bytes, parent: frames.Tip) -> None:
    if found != parent.hash:
        raise errors.Corrupt(
            f"the log here holds another frame {parent.position} than the branch's parent", reason="fork"
        )


@contextlib.contextmanager
def _history(volume: str, folder: Path) -> Iterator[StateBuilder]:
    store = ChunkStore(folder.parent / ".chunks", read_only=True)
    try:
        yield StateBuilder(volume, folder, store)
    finally:
        store.close()
