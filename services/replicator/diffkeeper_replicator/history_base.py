"""The beginning of a replica whose journal no longer goes back to the first frame: the history's state at the
frame before the journal's first, laid into an empty directory. For the replicator's own process; reads only.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from diffkeeper.directory_writer import DirectoryWriter
from diffkeeper.domain import errors, trees
from diffkeeper.domain.deltas import ROOT_ID
from diffkeeper_replicator import safe_paths, state_changes, verify
from diffkeeper_replicator.chunk_store import ChunkStore
from diffkeeper_replicator.journal import Journal
from diffkeeper_replicator.state_builder import StateBuilder
from diffkeeper_replicator.states import State


def begin(volume: str, folder: Path, journal: Journal, root: Path) -> trees.TreeState:
    """The state from which the journal goes on, in the empty directory ``root``. ``folder`` is the volume's
    below the replicator's directory. Raises Corrupt where the history does not lead there.
    """
    with state_before(volume, folder, journal) as state:
        if state is None:
            return verify.empty_state(volume, root)
        with DirectoryWriter(root) as writer:
            for change in state_changes.restore(state):
                writer.do(change)
        return _with_identities(volume, state, root)


@contextlib.contextmanager
def state_before(volume: str, folder: Path, journal: Journal) -> Iterator[State | None]:
    """The state that the journal's first frame continues; None where that is nothing. Its contents can be read within
    the block. Raises Corrupt where the history does not lead there.
    """
    first = journal.first
    if first <= 1:
        yield None
        return
    frame = next(journal.frames_from(first))
    store = ChunkStore(folder.parent / ".chunks", read_only=True)
    try:
        state = StateBuilder(volume, folder, store).build(frame.header.parent)
        if state.tip.hash != frame.header.parent_hash:
            raise errors.Corrupt(
                f"the history at {state.position} is not what the journal of {volume} goes on from",
                reason="history-fork",
                hint="another site may have the whole log",
            )
        yield state
    finally:
        store.close()


def _with_identities(volume: str, state: State, root: Path) -> trees.TreeState:
    root_fd = safe_paths.open_root(root)
    try:
        identities = {ROOT_ID: safe_paths.identity(root_fd)}
        for path, file_id in state.tree.paths():
            if file_id not in identities:
                identities[file_id] = _identity(root_fd, path, state.tree.nodes[file_id].kind)
    finally:
        os.close(root_fd)
    return trees.TreeState(volume, state.position, state.tip.hash, state.stamp, state.tree, identities)


def _identity(root_fd: int, path: bytes, kind: trees.Kind) -> trees.Identity:
    """With a generation for what the applier opens, without for the rest: as the applier notes them."""
    if kind in (trees.Kind.SYMLINK, trees.Kind.FIFO):
        above, _, name = path.rpartition(b"/")
        fd = safe_paths.open_beneath(root_fd, above, safe_paths.DIR_FLAGS)
        try:
            return safe_paths.identity_at(fd, name)
        finally:
            os.close(fd)
    flags = safe_paths.DIR_FLAGS if kind is trees.Kind.DIR else os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = safe_paths.open_beneath(root_fd, path, flags)
    try:
        return safe_paths.identity(fd)
    finally:
        os.close(fd)
