"""From an order, the spool and the stream to the point at which capture goes on.

Four ways to begin: a *first sight* (no log yet: read everything as its base), a *takeover* (a tree was
handed over at the parent: nothing to read after a promotion, compare by fingerprint after a time unwatched),
a *restart* (our own epoch has frames: the agent died), and a *resumption* (it died, and the ring went on without
it). After both of these the tree is the last one saved plus the names in the frames behind it, which are all in the
spool. A resumption goes on from the predecessor's last mark as if nothing had been; after a restart everything is
compared by fingerprint, and the log says by a gap that nobody watched.
"""

from __future__ import annotations

import asyncio
import enum
from dataclasses import dataclass, field

from diffkeeper import heap
from diffkeeper.domain import errors, frames, positions, trees
from diffkeeper.tree_store import TreeStore
from diffkeeper_capture import resume_journal, volume_state
from diffkeeper_capture.spool import Spool
from diffkeeper_capture.staged import PAGES_KIB, Staged
from diffkeeper_capture.volume_order import Order, VolumeFiles
from diffkeeper_capture.working_tree import WorkingTree


class Beginning(enum.Enum):
    FIRST_SIGHT = "first sight"
    TRUST = "trust"  # the tree is what the directory is
    COMPARE = "compare"  # it may have changed unwatched, in order
    RESUME = "resume"  # it was watched all the time, and what is not in the log is in the ring
    RESTART = "restart"  # it may have changed unwatched while it was ours to watch


@dataclass(slots=True)
class Start:
    """Where capture goes on."""

    beginning: Beginning
    tip: frames.Tip
    stamp: int
    # To be closed by whoever goes on; it is ahead of its last commit by what the frames behind that one say.
    tree: WorkingTree
    # Whether the log has the whole first sight.
    based: bool
    # Of a resumption: where in the ring, and what to know.
    mark: resume_journal.Mark | None = None
    memories: list[resume_journal.Memory] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Resumable:
    """What a predecessor left of a volume; the ring is still there, and has watched the directory since."""

    mark: resume_journal.Mark
    memories: list[resume_journal.Memory]


def take_back(order: Order, spool: Spool, resumable: Resumable | None) -> Resumable | None:
    """Drop from the spool what no mark follows, which nobody has seen; None when the spool does not lead to the mark."""
    if resumable is None or resumable.mark.tip.position.epoch != order.epoch:
        return None
    tip = resumable.mark.tip
    kept = spool.find(tip.position)
    if kept is None or kept.hash != tip.hash:
        return None
    spool.cut_after(tip.position)
    return resumable


async def find_start(
    order: Order,
    files: VolumeFiles,
    spool: Spool,
    tip: frames.Tip,
    resumable: Resumable | None = None,
    staged: Staged | None = None,
) -> Start:
    """``tip`` is where stream and spool end. Reads in a thread; raises Corrupt when no tree can be had."""
    if tip.position.epoch == order.epoch:
        if staged is not None:
            staged.close()
        start = await asyncio.to_thread(_restart, order, files, spool, tip)
        # A stream that goes beyond the mark has what the ring would give once more.
        if resumable is not None and resumable.mark.tip == tip and start.based:
            start.beginning = Beginning.RESUME
            start.mark, start.memories = resumable.mark, resumable.memories
        return start
    return await asyncio.to_thread(_begin, order, files, staged)


def _begin(order: Order, files: VolumeFiles, staged: Staged | None) -> Start:
    start = _begun_with(order, staged) or _begun_anew(order, files)
    try:
        files.write_reign(order, based=start.based)
    except BaseException:
        start.tree.close()
        raise
    return start


def _begun_with(order: Order, staged: Staged | None) -> Start | None:
    """A takeover that was prepared. Its tree is not waited for to be on disk: see ``_restart``."""
    store = None if staged is None else staged.take_store(order)
    if store is None:
        return None
    return Start(Beginning.TRUST, order.parent, store.stamp, WorkingTree(store), based=True)


def _begun_anew(order: Order, files: VolumeFiles) -> Start:
    state = _given(order)
    # From here on a restart finds the tree at the parent, whatever happens to the file that was handed over.
    files.directory.mkdir(parents=True, exist_ok=True)
    if state is None:
        empty = trees.TreeState(order.volume, order.parent.position, order.parent.hash, 0, trees.Tree(), {})
        store = TreeStore.create(files.tree_store, empty, PAGES_KIB)
        return Start(Beginning.FIRST_SIGHT, order.parent, 0, WorkingTree(store), based=False)
    assert order.tree_state is not None, "a state was given by a file"
    beginning = Beginning.COMPARE if files.is_ours(order.tree_state) else Beginning.TRUST
    tree = WorkingTree(TreeStore.create(files.tree_store, state, PAGES_KIB))
    stamp = state.stamp
    del state
    heap.trim()  # all of the tree was in memory
    return Start(beginning, order.parent, stamp, tree, based=True)


def _given(order: Order) -> trees.TreeState | None:
    """What was handed over at the parent; None for a volume that has no log yet."""
    if order.tree_state is None:
        if order.parent.position == positions.START:
            return None
        raise _no_tree(order, "none was given")
    state = volume_state.load(order.tree_state)
    if state is None:
        raise _no_tree(order, f"{order.tree_state} does not exist")
    if (state.position, state.frame_hash) != (order.parent.position, order.parent.hash):
        raise _no_tree(order, f"{order.tree_state} is of {state.position}")
    if state.volume != order.volume:
        raise _no_tree(order, f"{order.tree_state} is of volume {state.volume}")
    return state


def _restart(order: Order, files: VolumeFiles, spool: Spool, tip: frames.Tip) -> Start:
    reign = files.read_reign()
    if reign is None or reign.epoch != order.epoch or not files.tree_store.exists():
        raise _no_tree(order, f"{files.directory} does not hold this epoch's")
    store = TreeStore.open(files.tree_store, PAGES_KIB)
    if store.position < order.parent.position:
        # A power cut took what became of a tree that was prepared; what was handed over is still there.
        store.close()
        state = _given(order)
        assert state is not None, "a tree is prepared of one that is handed over"
        store = TreeStore.create(files.tree_store, state, PAGES_KIB)
    try:
        return _go_on(order, store, reign.based, spool, tip)
    except BaseException:
        store.close()
        raise


def _go_on(order: Order, store: TreeStore, based: bool, spool: Spool, tip: frames.Tip) -> Start:
    """From the tree that was kept, by the names in the frames behind it."""
    tree, stamp = WorkingTree(store), store.stamp
    at = frames.Tip(store.position, store.frame_hash)
    for frame in spool.frames_after(store.position):
        if frame.position > tip.position:
            break
        if frames.follows(at, frame) is not frames.Follows.NEXT:
            raise _no_tree(order, f"the spool does not continue {at.position}")
        _replay_names(tree, frame)
        based = based or bool(frame.header.flags & frames.Flag.BASE_END)
        at = frames.Tip(frame.position, frame.hash)
        stamp = max(stamp, frame.header.last)
    if at != tip:
        raise _no_tree(order, f"the spool ends at {at.position} and the log at {tip.position}")
    return Start(Beginning.RESTART, tip, stamp, tree, based)


def _replay_names(tree: WorkingTree, frame: frames.Frame) -> None:
    columns = frame.columns()
    if columns.args:  # else only content
        for delta in columns:
            if tree.is_changed_by(delta):
                tree.apply(delta)


def _no_tree(order: Order, why: str) -> errors.Corrupt:
    return errors.Corrupt(
        f"volume {order.volume} cannot go on: its tree at {order.parent.position} is missing: {why}",
        reason="no-tree-state",
        hint="fail over to a replica, which has the tree; nothing was changed here",
        volume=order.volume,
    )
