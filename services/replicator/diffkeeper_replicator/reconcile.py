"""Brings a replica's directory of unknown age to the end of its journal after an unclean end.

Given: the tree checkpoint at position P (tree and inode of every id), a directory that is somewhere between P
and the journal's end E, and the frames after P. Promised: afterwards the directory is what a replay of the
whole journal into an empty one would be.

Why this works: an id that lives at P and at E was never freed between, so its inode was never used by another
file, and inode numbers alone find it again. Content deltas of (P, E] done once more over any state between
give the state at E. Names are not replayed but brought about (``layout``). A crash during all this leaves a
directory to which the same applies again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from diffkeeper.domain import deltas, frames, trees
from diffkeeper_replicator import safe_paths
from diffkeeper_replicator.applier import Applier
from diffkeeper_replicator.graves import Graves
from diffkeeper_replicator.layout import Layout

# Gives the frames after P from the beginning each time it is called: they are read twice. The first reading
# says where E is; a journal that grows meanwhile gives more in the second.
Frames = Callable[[], Iterable[frames.Frame]]


def reconcile(
    root: Path,
    state: trees.TreeState,
    after: Frames,
    *,
    allow_setid: bool = False,
    graves: Graves | None = None,
    dying: dict[int, int] | None = None,
) -> trees.TreeState:
    """Bring ``root`` to the last of the frames and give the state there; ``state`` is used up. Blocking.

    What the log removes goes into ``graves``, where undo records may need it; ``dying`` (inode → id) tells of such
    files that the state does not know. Raises Corrupt when the frames
    contradict the tree or something else changed the directory, Transient when the disk is full: then call again with
    the state at P.
    """
    tree, identities = state.tree, state.identities
    at = frames.Tip(state.position, state.frame_hash)
    stamp = state.stamp
    for frame in after():
        replay_names(tree, frame.columns())
        at, stamp = frames.Tip(frame.position, frame.hash), frame.header.last
    dying = dict(dying or {})
    for file_id in [file_id for file_id in identities if file_id not in tree.nodes]:
        dying[identities.pop(file_id).inode] = file_id
    root_fd = safe_paths.open_root(root)
    try:
        with Layout(
            root, root_fd, tree, identities, allow_setid=allow_setid, dying=dying, graves=graves
        ) as layout:
            layout.bring_about()
            applier = Applier(root_fd, tree, identities, allow_setid=allow_setid)
            try:
                for frame in after():
                    if frame.position > at.position:
                        break
                    applier.apply_content(frame.columns())
            finally:
                applier.close()
            layout.finish()
    finally:
        os.close(root_fd)
    return trees.TreeState(state.volume, at.position, at.hash, stamp, tree, identities)


def replay_names(tree: trees.Tree, columns: deltas.Columns) -> None:
    """Feed a frame to a tree alone, as the applier would."""
    if not columns.args:
        return
    for delta in columns:
        if delta.op is deltas.Op.ATTR and delta.file_id not in tree.nodes and delta.file_id < tree.next_id:
            continue  # of a file whose last name is gone
        tree.apply(delta)
