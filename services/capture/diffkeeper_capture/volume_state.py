"""The tree state at the end of a role, on disk: what the next one begins with instead of reading the whole
volume.
"""

from __future__ import annotations

from pathlib import Path

from diffkeeper import atomic_files, tree_files
from diffkeeper.domain import errors, trees


def save(path: Path, state: trees.TreeState) -> None:
    """Replace the file at ``path``, durably: after a crash it is the old state or the new one."""
    try:
        atomic_files.write_bytes(path, trees.encode(state))
    except OSError as error:
        raise not_written(state.volume, path, error) from error


def not_written(volume: str, path: Path, error: OSError) -> errors.Transient:
    return errors.Transient(
        f"the tree state of {volume} could not be written to {path}: {error.strerror}",
        reason="tree-state-not-written",
        hint="free space on that disk; without it the next attach reads the whole volume",
    )


def load(path: Path) -> trees.TreeState | None:
    """The state at ``path``, None when there is none; raises Corrupt when it is not what was written."""
    try:
        return tree_files.load(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise errors.Misconfigured(
            f"the tree state at {path} cannot be read: {error.strerror}",
            reason="tree-state-unreadable",
            hint="check the owner and mode of the state directory",
        ) from error
