"""One replica directory with its tree: opened, applied to, checkpointed, handed over. Blocking; one thread
owns it.

The journal is durable before anything is applied; applying is not synced. A checkpoint (syncfs, then the tree
with its inodes) bounds what ``reconcile`` has to look at after an unclean end.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import msgspec

from diffkeeper import tree_files
from diffkeeper.domain import deltas, errors, frames, positions, tree_increments, trees
from diffkeeper.domain.deltas import ROOT_ID
from diffkeeper_replicator import history_base, safe_paths, undo, verify
from diffkeeper_replicator.applier import Applier
from diffkeeper_replicator.cursor import DirectoryNote, VolumeFiles
from diffkeeper_replicator.journal import Journal
from diffkeeper_replicator.reconcile import reconcile
from diffkeeper_replicator.rewind import Rewinder


class Directory:
    """Made by ``open_or_begin`` or ``adopt``."""

    def __init__(
        self,
        files: VolumeFiles,
        note: DirectoryNote,
        state: trees.TreeState,
        allow_setid: bool,
        kept: undo.Undo | None = None,
    ) -> None:
        self._files = files
        self._note = note
        self._state = state
        self.path = Path(note.path)
        self.root_fd = safe_paths.open_root(self.path)
        self._applier = Applier(self.root_fd, state.tree, state.identities, allow_setid=allow_setid)
        self._allow_setid = allow_setid
        self.undo = kept or undo.Undo(files.undo, self.path, files.undo_bounds)
        self.undo.stand_at(self.tip)
        # What was handed over before, on disk; the applier remembers what was touched since.
        self._base: frames.Tip | None = None
        # How many bytes were applied since the last checkpoint was begun.
        self.bytes_since_checkpoint = 0

    @property
    def tip(self) -> frames.Tip:
        """The last frame that the directory shows."""
        return frames.Tip(self._state.position, self._state.frame_hash)

    @property
    def stamp(self) -> int:
        return self._state.stamp

    @property
    def base_complete(self) -> bool:
        return self._note.base_end is not None

    @property
    def notes(self) -> dict[str, int]:
        return dict(self._applier.notes)

    def cover(self, run: Sequence[undo.Kept]) -> Sequence[undo.Kept]:
        """Keep what a run that continues ``tip`` takes away; gives those of its frames that may be applied now."""
        try:
            return self.undo.cover(run, self._applier, self.tip, self.stamp)
        except OSError as error:
            raise safe_paths.disk_error(error, "keeping what a run overwrites") from error

    def rewind(self, target: positions.Position, journal: Journal) -> None:
        """Bring the directory backward to ``target``, a frame of the journal or its start. Blocking.

        Raises Refused ``undo-out-of-reach`` with nothing changed. A crash or an error on the way leaves a directory
        that opens as ``rewind-broken``.
        """
        if target >= self.tip.position:
            return
        floor = self.undo.floor
        if floor is None or target < floor:
            raise undo.out_of_reach(target, floor)
        self._write_note(rewinding=str(target))
        self._go_back(target)
        for frame in journal.frames_after(self.tip.position):
            if frame.position > target:
                break
            columns = frame.columns()
            self.cover([(frame, columns)])
            self.apply(frame, columns)
        self._check_arrived(target)
        self.sync()
        self._files.write_state(self.encode_state())
        base = self._note.base_end
        beyond = base is not None and positions.parse(base) > target
        self._write_note(rewinding=None, base_end=None if beyond else base)

    def _go_back(self, target: positions.Position) -> None:
        """To the beginning of the run that holds the frame after ``target``, or to ``target`` itself."""
        state = self._state
        self._applier.close()
        rewinder = Rewinder(
            self.root_fd, state.tree, state.identities, self.undo.graves, allow_setid=self._allow_setid
        )
        try:
            for record in self.undo.log.records_back(target):
                rewinder.undo(record)
                state.position, state.frame_hash = record.span.before.position, record.span.before.hash
                state.stamp = record.span.stamp
        finally:
            rewinder.close()
        self.undo.log.cut_to(self.tip)
        self._applier = Applier(self.root_fd, state.tree, state.identities, allow_setid=self._allow_setid)
        self._base = None

    def _check_arrived(self, target: positions.Position) -> None:
        if self.tip.position != target:
            raise errors.Corrupt(
                f"going back to {target} ended at {self.tip.position}: the journal does not lead there",
                reason="rewind-broken",
                hint="the directory is compared with the journal when it is opened again",
            )

    def apply(self, frame: frames.Frame, columns: deltas.Columns) -> None:
        """One frame that continues ``tip``. After Transient the same frame is to be given again."""
        if frames.follows(self.tip, frame) is not frames.Follows.NEXT:
            raise errors.Corrupt(
                f"the directory stands at {self.tip.position} and frame {frame.position} does not continue "
                "it;"
                "it was left as it is",
                reason="directory-fork",
                hint="the log it was taken over from is not the log of the chain; rebuild the replica",
            )
        self._applier.apply(columns)
        self._state.position, self._state.frame_hash = frame.position, frame.hash
        self._state.stamp = frame.header.last
        self.bytes_since_checkpoint += frame.header.body_bytes
        if frames.Flag.BASE_END in frame.header.flags and not self.base_complete:
            self._write_note(base_end=str(frame.position))

    def tree(self) -> trees.Tree:
        """A copy of the names as they are now."""
        return trees.decode(trees.encode(self._state)).tree

    def encode_state(self) -> bytes:
        self.bytes_since_checkpoint = 0
        return trees.encode(self._state)

    def sync(self) -> None:
        """All that was applied is on disk when this returns. May be called from another thread."""
        safe_paths.sync_filesystem(self.root_fd)

    def digest(self) -> dict[str, verify.Entry]:
        return verify.digest(self.path)

    def prepare_hand_over(self) -> bytes:
        """All of the tree state, while frames still come: from here on it is remembered what they touch. It counts
        once ``prepared_is_kept``.
        """
        self._base = None
        self._applier.touched = set()
        self._state.fingerprints = dict(self._fingerprints(self._state.tree.ids()))
        try:
            return trees.encode(self._state)
        finally:
            self._state.fingerprints = {}  # true only until the next frame is applied

    def prepared_is_kept(self, base: frames.Tip) -> None:
        if self._applier.touched is not None:
            self._base = base

    def hand_over(self) -> bytes:
        """The tree state for the program's capture agent, which takes the directory as it stands: what became of the one
        that was prepared, else all of it.
        """
        base, touched = self._base, self._applier.touched
        if base is None or touched is None:
            self._state.fingerprints = dict(self._fingerprints(self._state.tree.ids()))
            return trees.encode(self._state)
        prints = dict(self._fingerprints(touched))
        return tree_increments.encode(tree_increments.since(base, self._state, touched, prints))

    def _fingerprints(self, ids: Iterable[int]) -> Iterator[tuple[int, tuple[int, int, int]]]:
        """What lets the new owner see that files are still as they were handed over, without reading them."""
        tree = self._state.tree
        for file_id in ids:
            if file_id in tree.nodes and tree.nodes[file_id].kind is trees.Kind.FILE:
                path = tree.path(file_id)
                if path is not None:
                    found = os.stat(path, dir_fd=self.root_fd, follow_symlinks=False)
                    yield file_id, (found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    def close(self, *, clean: bool) -> None:
        """``clean``: sync, and remember that the checkpoint is what the directory shows."""
        try:
            if clean:
                self.sync()
                self.undo.sync()
                self._files.write_state(self.encode_state())
                self._files.write_clean()
        finally:
            self._applier.close()
            self.undo.close()
            os.close(self.root_fd)

    def _write_note(self, **changes: object) -> None:
        self._note = msgspec.structs.replace(self._note, **changes)
        self._files.write_note(self._note)


def open_or_begin(
    files: VolumeFiles, volume: str, path: Path, journal: Journal, *, allow_setid: bool = False
) -> Directory:
    """The replica at ``path`` brought to a known state, or an empty one begun there when there was none
    before.

    Raises Misconfigured (``replica-missing``, ``directory-not-empty``) and Corrupt (``directory-left``, what
    ``reconcile`` raises).
    """
    note = files.note()
    if note is None or note.path != str(path):
        return _begin(files, volume, path, journal, allow_setid)
    if note.left:
        raise errors.Corrupt(
            f"{path} was given to a program as the leader's directory; what it holds now is not in this "
            "journal",
            reason="directory-left",
            hint="follow with the tree state of a handover, with another path, or rebuild the replica",
        )
    _check_root(note)
    if note.rewinding is not None:
        raise errors.Corrupt(
            f"{path} was being brought back to {note.rewinding} when that was broken off",
            reason="rewind-broken",
            hint="it is compared with the journal",
            target=note.rewinding,
        )
    state = files.state()
    if state is None:
        raise errors.Corrupt(
            f"the tree checkpoint of {path} is missing",
            reason="tree-state-missing",
            hint="rebuild the replica",
        )
    start = state.position
    if state.identities[ROOT_ID].device != os.lstat(path).st_dev:
        _move_device(state, os.lstat(path).st_dev)
    kept = undo.Undo(files.undo, path, files.undo_bounds)
    if not files.take_clean():
        usable = kept.usable_to(frames.Tip(start, state.frame_hash), journal)
        # The journal may grow meanwhile; what comes later is applied later.
        end = usable if usable is not None else journal.tip.position
        count = max(0, end.sequence - start.sequence)
        if note.base_end is None:
            note = msgspec.structs.replace(
                note, base_end=_base_end(islice(journal.frames_after(start), count))
            )
        state = reconcile(
            path,
            state,
            lambda: islice(journal.frames_after(start), count),
            allow_setid=allow_setid,
            graves=kept.graves if usable is not None else None,
            dying=kept.log.dying(),
        )
    return _start(files, note, state, allow_setid, kept)


def adopt(
    files: VolumeFiles, volume: str, path: Path, tree_state: Path, *, allow_setid: bool = False
) -> Directory:
    """Take over a directory that a leader at this site left, as it stands at the tree state's position.

    The same tree state again opens what was adopted with it. Raises Refused when the state is not of that
    directory.
    """
    try:
        state = tree_files.load(tree_state)
    except OSError as error:
        raise errors.Refused(
            f"the tree state {tree_state} cannot be read: {error.strerror}", reason="tree-state-unreadable"
        ) from error
    found = _stat_root(path)
    root = state.identities.get(ROOT_ID)
    if state.volume != volume or root is None or root.inode != found.st_ino:
        raise errors.Refused(
            f"the tree state {tree_state} (volume {state.volume}) is not of the directory {path}; nothing "
            "was changed",
            reason="tree-state-differs",
            hint="without a tree state the replica is built anew at another path",
        )
    if root.device != found.st_dev:
        _move_device(state, found.st_dev)
    state.fingerprints = {}  # true only until the first frame is applied
    note = DirectoryNote(
        str(path),
        found.st_dev,
        found.st_ino,
        # Only a volume whose scan was complete is handed over.
        base_end=str(state.position),
        adopted=_adoption(tree_state, frames.Tip(state.position, state.frame_hash)),
    )
    files.forget_directory()
    return _start(files, note, state, allow_setid)


def take_over(
    files: VolumeFiles,
    path: Path,
    state: trees.TreeState,
    base_end: str | None,
    marker: str,
    *,
    allow_setid: bool = False,
) -> Directory:
    """A directory that was brought to the state, as the replica from now on; ``marker`` says by what."""
    found = _stat_root(path)
    note = DirectoryNote(str(path), found.st_dev, found.st_ino, base_end=base_end, adopted=marker)
    files.forget_directory()
    return _start(files, note, state, allow_setid)


def adopted_with(note: DirectoryNote | None, tree_state: Path) -> bool:
    """Whether the replica's directory is the one that was adopted with this tree state, and still follows
    from it.
    """
    if note is None or note.left or note.adopted is None:
        return False
    try:
        return note.adopted == _adoption(tree_state, tree_files.tip(tree_state))
    except OSError:
        # The state was used up; the note says that it was of this name.
        return note.adopted.startswith(f"{tree_state}@")


def _adoption(tree_state: Path, tip: frames.Tip) -> str:
    return f"{tree_state}@{tip.position}:{tip.hash.hex()}"


def _begin(files: VolumeFiles, volume: str, path: Path, journal: Journal, allow_setid: bool) -> Directory:
    path.mkdir(parents=True, exist_ok=True)
    found = _stat_root(path)
    if os.listdir(path):
        raise errors.Misconfigured(
            f"{path} is to become a replica and is not empty; nothing in it was touched",
            reason="directory-not-empty",
            hint="choose an empty directory, or move what is in it away",
            path=str(path),
        )
    files.forget_directory()
    state = history_base.begin(volume, files.directory, journal, path)
    base_end = None
    if state.position != positions.START and _base_end(journal.frames_from(journal.first)) is None:
        base_end = str(state.position)  # the scan ended before what the journal still has
    note = DirectoryNote(str(path), found.st_dev, found.st_ino, base_end=base_end)
    return _start(files, note, state, allow_setid)


def _start(
    files: VolumeFiles,
    note: DirectoryNote,
    state: trees.TreeState,
    allow_setid: bool,
    kept: undo.Undo | None = None,
) -> Directory:
    """The checkpoint first, then the note that makes it count."""
    directory = Directory(files, note, state, allow_setid, kept)
    directory.sync()
    files.write_state(directory.encode_state())
    files.write_note(note)
    return directory


def _stat_root(path: Path) -> os.stat_result:
    try:
        found = os.lstat(path)
    except OSError as error:
        raise errors.Misconfigured(
            f"the replica's directory {path} cannot be read: {error.strerror}; nothing was begun in its "
            "place",
            reason="replica-missing",
            hint="mount it again, or rebuild the replica from its journal",
            path=str(path),
        ) from error
    if not stat.S_ISDIR(found.st_mode):
        raise errors.Misconfigured(f"{path} is not a directory", reason="replica-missing", path=str(path))
    return found


def _check_root(note: DirectoryNote) -> None:
    """A missing or replaced directory is a fault and never an empty start."""
    found = _stat_root(Path(note.path))
    if found.st_ino != note.inode:
        raise errors.Misconfigured(
            f"{note.path} is another directory than the replica that was here; it was left as it is",
            reason="replica-replaced",
            hint="mount the right one, or rebuild the replica from its journal",
            path=note.path,
        )


def _move_device(state: trees.TreeState, device: int) -> None:
    """Device numbers may change from one boot to the next; inode numbers do not."""
    for file_id, identity in state.identities.items():
        state.identities[file_id] = replace(identity, device=device)


def _base_end(log: Iterable[frames.Frame]) -> str | None:
    """The position of the end of the first-sight scan among the frames that are to be replayed."""
    for frame in log:
        if frames.Flag.BASE_END in frame.header.flags:
            return str(frame.position)
    return None
