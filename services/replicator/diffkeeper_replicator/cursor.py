"""What a replicator remembers of a volume besides its journal: small files, each replaced whole and fsynced.

``role.json`` the wanted role; ``promise.json`` the newest epoch promised; ``directory.json`` whose directory
it is and since when; ``tree.state`` the tree checkpoint; ``clean`` the mark of an orderly end: without it,
what the directory shows is unknown.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec
from blake3 import blake3

from diffkeeper import atomic_files, tree_files
from diffkeeper.domain import errors, frames, positions, trees
from diffkeeper_replicator import chains
from diffkeeper_replicator.undo_log import Bounds

T = TypeVar("T", bound=msgspec.Struct)


class Point(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    position: str
    hash: str

    def tip(self) -> frames.Tip:
        return frames.Tip(positions.parse(self.position), bytes.fromhex(self.hash))


class WantedLink(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    site: str
    epoch: int
    # The frame that the reign's first frame continues; found in the stream where nobody tells.
    parent: Point | None = None

    def link(self) -> chains.Link:
        return chains.Link(self.site, self.epoch, self.parent.tip() if self.parent is not None else None)


class Reclaim(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``path`` is the directory that the leader of this epoch left: to be taken back instead of built anew."""

    epoch: int
    # Files that its agent left: frames of its spool, and the tree with its inodes.
    tail: str | None = None
    tree_state: str | None = None


class Role(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``PUT /v1/volumes/V``."""

    role: str
    epoch: int
    leader: str
    mode: str = "exclusive"
    chain: tuple[WantedLink, ...] = ()
    path: str | None = None
    tree_state: str | None = None
    reclaim: Reclaim | None = None


class Promotion(msgspec.Struct, frozen=True):
    """The answer to a promote, given again when it is asked again."""

    epoch: int
    position: str
    hash: str
    stamp: int
    path: str
    tree_state: str
    took_ms: float

    def tip(self) -> frames.Tip:
        return frames.Tip(positions.parse(self.position), bytes.fromhex(self.hash))


class Kept(msgspec.Struct, frozen=True):
    """``role.json``."""

    wanted: Role
    promotion: Promotion | None = None
    # The directory was built anew since: the tree state in ``wanted`` is of the one before.
    rebuilt: bool = False


class DirectoryNote(msgspec.Struct, frozen=True):
    """``directory.json``: which directory is the replica, as it was found last."""

    path: str
    device: int
    inode: int
    # Position of the frame that ended the first-sight scan, once it was applied.
    base_end: str | None = None
    # The tree state it was taken over with, if it was.
    adopted: str | None = None
    # Given to the program: what the tree checkpoint says of it is history.
    left: bool = False
    # The position it was being brought back to; None but during that.
    rewinding: str | None = None


class _Promise(msgspec.Struct, frozen=True):
    epoch: int


class VolumeFiles:
    """The files of one volume below the replicator's directory. Every write blocks for fsyncs."""

    def __init__(self, directory: Path, undo_bounds: Bounds | None = None) -> None:
        self.directory = directory
        self.undo = directory / "undo"
        self.undo_bounds = undo_bounds or Bounds()
        self.journal = directory / "journal"
        self.orphans = directory / "orphans"
        self.promoted = directory / "promoted.state"
        # What it is told on from, where the most of it was told before.
        self.prepared = directory / tree_files.BASE
        self._role = directory / "role.json"
        self._promise = directory / "promise.json"
        self._note = directory / "directory.json"
        self._state = directory / "tree.state"
        self._clean = directory / "clean"
        directory.mkdir(parents=True, exist_ok=True)

    def role(self) -> Kept | None:
        return _read(self._role, Kept)

    def write_role(self, kept: Kept) -> None:
        atomic_files.write_bytes(self._role, msgspec.json.encode(kept))

    def write_prepared(self, state: bytes) -> None:
        atomic_files.write_bytes(self.prepared, state)

    def write_promotion(self, state: bytes, kept: Kept) -> None:
        """The tree state, then the role that goes with it; one fsync makes both names durable."""
        atomic_files.write_bytes(self.promoted, state, name_durable=False)
        self.write_role(kept)

    def promised(self) -> int:
        promise = _read(self._promise, _Promise)
        return 0 if promise is None else promise.epoch

    def write_promise(self, epoch: int) -> None:
        atomic_files.write_bytes(self._promise, msgspec.json.encode(_Promise(epoch)))

    def note(self) -> DirectoryNote | None:
        return _read(self._note, DirectoryNote)

    def write_note(self, note: DirectoryNote) -> None:
        atomic_files.write_bytes(self._note, msgspec.json.encode(note))

    def leave_directory(self) -> None:
        """From now on the directory is a program's; what the checkpoint says of it is history."""
        note = self.note()
        if note is not None and not note.left:
            self.write_note(msgspec.structs.replace(note, left=True))

    def state(self) -> trees.TreeState | None:
        """The last tree checkpoint; raises Corrupt when it cannot be read."""
        try:
            return trees.decode(self._state.read_bytes())
        except FileNotFoundError:
            return None

    def write_state(self, encoded: bytes) -> None:
        atomic_files.write_bytes(self._state, encoded)

    def take_clean(self) -> bool:
        """Whether the last end was orderly and the checkpoint is of that moment. The mark is used up,
        durably.
        """
        try:
            mark = self._clean.read_text()
        except FileNotFoundError:
            return False
        self._clean.unlink()
        atomic_files.fsync_directory(self.directory)
        try:
            return mark == blake3(self._state.read_bytes()).hexdigest()
        except FileNotFoundError:
            return False

    def write_clean(self) -> None:
        atomic_files.write_bytes(self._clean, blake3(self._state.read_bytes()).hexdigest().encode())

    def forget_directory(self) -> None:
        """No directory is the replica any more. What is in the old one stays there."""
        for path in (self._clean, self._note, self._state):
            path.unlink(missing_ok=True)
        atomic_files.fsync_directory(self.directory)


def _read(path: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise errors.Corrupt(
            f"{path} cannot be read ({error}); it was left as it is",
            reason="malformed-cursor",
            hint="rebuild the replica",
        ) from error
