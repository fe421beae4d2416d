"""The tree that a reign ends with, for whoever goes on: all of it a moment before the end, and at the end what became of
it since.

A program is stopped while the end is written down, so that must not take longer the more files there are. What was
touched since is known from the commits of the tree's own file, which cost no more than that either.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from diffkeeper import atomic_files, tree_files
from diffkeeper.domain import errors, frames, tree_increments, trees
from diffkeeper.tree_store import TreeStore
from diffkeeper_capture import volume_state
from diffkeeper_capture.volume_capture import VolumeCapture

# The tree is saved between two groups of frames; a moment later there may be none under way.
SAVE_TRIES, SAVE_PAUSE_S = 100, 0.01


async def prepare(capture: VolumeCapture) -> bool:
    """Write all of the tree down while the capture goes on; False where that cannot be done now."""
    tree, files = capture.tree, capture.files
    tree.told = None
    if not await _saved(capture):
        return False
    base = capture.framer.tip
    tree.touched_since_told.clear()
    state = await asyncio.to_thread(TreeStore.snapshot, files.tree_store)
    if (state.position, state.frame_hash) != (base.position, base.hash):
        return False  # it was committed again meanwhile
    await asyncio.to_thread(atomic_files.write_bytes, files.directory / tree_files.BASE, trees.encode(state))
    tree.told = base
    return True


async def _saved(capture: VolumeCapture) -> bool:
    for _ in range(SAVE_TRIES):
        if capture.state != "capturing":
            return False
        if capture.save():
            return True  # nothing has happened since, and nothing will before the next await
        await asyncio.sleep(SAVE_PAUSE_S)
    return False


def keep(capture: VolumeCapture, path: Path) -> None:
    """The tree at the end of the epoch, at ``path``, durably. Blocking; nothing changes the tree any more. Raises
    Transient.
    """
    if _tip_of(path) == capture.framer.tip:
        return  # asked again; or an epoch in which nothing had been written ended before, and began again
    told = capture.tree.told
    if told is None:
        volume_state.save(path, capture.tree_state())
        return
    capture.commit_end()
    increment = capture.tree.increment(told)
    try:
        atomic_files.write_bytes(path, tree_increments.encode(increment))
    except OSError as error:
        raise volume_state.not_written(capture.order.volume, path, error) from error


def _tip_of(path: Path) -> frames.Tip | None:
    try:
        return tree_files.tip(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise errors.Misconfigured(
            f"the tree state at {path} cannot be read: {error.strerror}",
            reason="tree-state-unreadable",
            hint="check the owner and mode of the state directory",
        ) from error
