"""Tree states on disk: whole, or as what became of one that lies beside it.

What a role is handed over with is one path. Behind it stands a whole state (``trees.encode``), or an increment
(``tree_increments.encode``) whose base is the file ``BASE`` in the same directory.
"""

from __future__ import annotations

from pathlib import Path

from diffkeeper.domain import errors, frames, tree_increments, trees

BASE = "prepared.state"


def load(path: Path) -> trees.TreeState:
    """The whole state; raises OSError where a file cannot be read, Corrupt where one is not what was written."""
    found = read(path)
    if isinstance(found, trees.TreeState):
        return found
    base = read(path.with_name(BASE))
    if not isinstance(base, trees.TreeState):
        raise errors.Corrupt(
            f"{path.with_name(BASE)} is no whole tree state; {path} cannot be used without one",
            reason="malformed-tree-state",
            hint="the replica can be rebuilt from the log",
        )
    return tree_increments.applied(base, found)


def read(path: Path) -> trees.TreeState | tree_increments.Increment:
    """What one file holds, whichever of the two that is."""
    data = path.read_bytes()
    if data.startswith(tree_increments.MAGIC):
        return tree_increments.decode(data)
    return trees.decode(data)


def tip(path: Path) -> frames.Tip:
    """Where the log stood when the state was made."""
    found = read(path)
    if isinstance(found, trees.TreeState):
        return frames.Tip(found.position, found.frame_hash)
    return found.tip
