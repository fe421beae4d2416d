"""The history of one volume at this site: it follows the journal, indexes it, cuts checkpoints by cost, and
gives the state at any kept position.

Checkpoints lie so that the replay from one to any position after it stays below ``REPLAY_MAX_COST``. All that
is here can be made again from the log, so a crash at any point costs work and nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec

from diffkeeper import atomic_files
from diffkeeper.domain import errors, frames, moments, positions, retention
from diffkeeper_replicator import archives, checkpoints
from diffkeeper_replicator.chunk_store import ChunkStore
from diffkeeper_replicator.named_branches import Branches
from diffkeeper_replicator.path_index import PathIndex
from diffkeeper_replicator.state_builder import StateBuilder, apply, missing
from diffkeeper_replicator.states import State

# Of a replay, in bytes written; a delta costs as much as so many of them.
REPLAY_MAX_COST = 128 * 1024 * 1024
DELTA_COST = 1500
# States kept in memory for the next question about the same moment.
_KEPT_STATES = 3
_COMMIT_FRAMES = 512


class Notes(msgspec.Struct):
    """``notes.json``: what people have said about moments."""

    tags: dict[str, str] = {}
    # None: nobody chose one, and the default counts.
    policy: retention.Policy | None = None


class VolumeHistory:
    def __init__(self, volume: str, folder: Path, store: ChunkStore, branch_folder: Path) -> None:
        self.volume = volume
        self.builder = StateBuilder(volume, folder, store)
        self.folder, self.checkpoints = self.builder.folder, self.builder.checkpoints
        self.journal = self.builder.journal
        for made in (self.checkpoints, self.builder.archives):
            made.mkdir(parents=True, exist_ok=True)
        for left in (*self.folder.glob("spill-*"), *self.builder.archives.glob(".new-*")):
            if left.is_file():
                left.unlink(missing_ok=True)
        self.store = store
        self.index = PathIndex(self.folder / "index.db")
        # Held while the history grows or shrinks.
        self.growing = threading.RLock()
        self._asking = threading.Lock()
        self._head: State | None = None
        self._states: list[State] = []
        self._notes = self._read_notes()
        self.branches = Branches(self.folder, volume, branch_folder)
        self.damaged_archives: dict[str, str] = {}
        self.mark_archived()

    def close(self) -> None:
        with self.growing:
            self.index.close()

    # -- growing ---------------------------------------------------------------------------------------------

    def grow(self, most_steps: int = 1 << 30) -> int:
        """Take in what the journal has by now; how many frames that was. Raises Corrupt for a damaged
        journal.
        """
        with self.growing:
            head = self._current_head()
            is_new = head.position == positions.START
            count = 0
            for step in self.builder.steps(head.position.sequence):
                if step.parent != head.tip:
                    break  # the tail was cut and written anew meanwhile; the next call begins from there
                self.index.add(step, head.tree)
                apply(head, step)
                count += 1
                if is_costly(head):
                    head = self._cut(head)
                if count % _COMMIT_FRAMES == 0:
                    self.index.commit()
                if count >= most_steps:
                    break
            self.index.commit()
            if is_new and count:
                self.mark_archived()
            return count

    def mark_archived(self) -> None:
        """What is folded away cannot be gone back to: the index is told by the archives themselves."""
        for archive in archives.found(self.builder.archives):
            try:
                kept = archives.head(archive).kept
            except errors.Corrupt as error:
                self.damaged_archives[archive.path.name] = error.message
                continue
            self.index.mark_kept(archive.first, archive.last, kept)

    def cut_now(self) -> positions.Position:
        """A checkpoint of everything there is by now."""
        with self.growing:
            self.grow()
            head = self._current_head()
            if head.position != positions.START:
                self._cut(head)
            return head.position

    def _current_head(self) -> State:
        """The state at the end of the index, the tail that the chain left behind taken off."""
        self._drop_left_tail()
        tip = self.index.tip()
        if self._head is None or self._head.tip != tip:
            self._head = self.builder.build(
                tip.position if tip.position != positions.START else self._origin()
            )
        return self._head

    def _origin(self) -> positions.Position:
        """Where the log that is kept begins: older parts of it were let go up to a checkpoint."""
        old = archives.found(self.builder.archives)
        first = old[0].first if old else self.journal.first_sequence()
        if first is None or first == 1:
            return positions.START
        before = [found for found in checkpoints.found(self.checkpoints) if found.sequence == first - 1]
        return before[0] if before else positions.START

    def _drop_left_tail(self) -> None:
        tip = self.index.tip()
        sequence = tip.position.sequence
        while sequence > 0:
            there = self.journal.read(sequence)
            if there is None or there.hash == self.index.hash_of(sequence):
                break
            sequence -= 1
        if sequence == tip.position.sequence:
            return
        self.index.cut_after(sequence)
        for position in checkpoints.found(self.checkpoints):
            if position.sequence > sequence:
                checkpoints.path_of(self.checkpoints, position).unlink(missing_ok=True)
        atomic_files.fsync_directory(self.checkpoints)
        with self._asking:
            self._states.clear()
        self._head = None

    def _cut(self, head: State) -> State:
        """A checkpoint of the head; the head goes on from it, so that its spill is given back."""
        with self.store.lock:
            checkpoints.write(self.checkpoints, self.volume, head, self.store)
        path = checkpoints.path_of(self.checkpoints, head.position)
        self._head = checkpoints.read(path, self.volume, self.store, self.folder)
        self.builder.damaged.pop(head.position, None)
        return self._head

    # -- asking ----------------------------------------------------------------------------------------------

    def resolve(self, when: str, now_us: int) -> moments.Point:
        """The kept point that WHEN means, the newest frames included."""
        self.grow()
        return moments.resolve(moments.parse(when), self, now_us)

    def state_at(self, position: positions.Position, upto: int | None = None) -> State:
        """The state at a kept position, shared: it must not be changed. With ``upto``, only so many deltas
        of the frame at that position are done, after the one before it. Raises NotFound for a position that is
        not kept, Corrupt where the log or the chunks are damaged.
        """
        if upto is not None:
            frame = self.frame_at(position)
            state = self.state_at(frame.header.parent).copy()
            state.apply(frames.Tip(position, frame.hash), frame.header.last, frame.columns(), upto)
            return state
        with self._asking:
            near = list(self._states)
        found = next((state for state in near if state.position == position), None)
        if found is None:
            if self.index.at(position) is None and position != positions.START:
                raise missing(position)
            found = self._copy_of_head(position) or self.builder.build(position, near)
        with self._asking:
            self._states = [state for state in self._states if state is not found][-_KEPT_STATES + 1 :]
            self._states.append(found)
        return found

    def _copy_of_head(self, position: positions.Position) -> State | None:
        """The newest moment is what is asked for most, and what was taken in is not taken in once more for it."""
        if not self.growing.acquire(blocking=False):
            return None  # it grows now, which may take long
        try:
            head = self._head
            return head.copy() if head is not None and head.position == position else None
        finally:
            self.growing.release()

    def frame_at(self, position: positions.Position) -> frames.Frame:
        """The frame itself, as long as the journal has it."""
        frame = self.journal.read(position.sequence)
        if frame is None or frame.position != position:
            raise missing(position)
        return frame

    def states_at(self, one: positions.Position, other: positions.Position) -> tuple[State, State]:
        """Two states that share their contents where one replay leads over both: then what is the same is
        seen without reading it.
        """
        early, late = sorted((one, other))
        first = self.state_at(early)
        last = first
        if late != early:
            nearest = [found for found in checkpoints.found(self.checkpoints) if found <= late]
            if not nearest or nearest[-1] <= early:
                last = self.builder.go_on(first.copy(), late)
            else:
                last = self.state_at(late)
        return (first, last) if one == early else (last, first)

    def steps(self, after: positions.Position, upto: positions.Position) -> Iterator[archives.Step]:
        """What happened after one position, up to and with another."""
        for step in self.builder.steps(after.sequence):
            if step.tip.position.sequence > upto.sequence:
                return
            yield step

    # -- the timeline of WHEN --------------------------------------------------------------------------------

    def first(self) -> moments.Point | None:
        return self.index.first()

    def last(self) -> moments.Point | None:
        return self.index.last()

    def at(self, position: positions.Position) -> moments.Point | None:
        return self.index.at(position)

    def below(self, position: positions.Position) -> moments.Point | None:
        return self.index.below(position)

    def above(self, position: positions.Position) -> moments.Point | None:
        return self.index.above(position)

    def until(self, unix_us: int) -> moments.Point | None:
        return self.index.until(unix_us)

    def tag(self, name: str) -> positions.Position | None:
        written = self._notes.tags.get(name)
        return None if written is None else positions.parse(written)

    def branch(self, name: str) -> positions.Position | None:
        written = self.branches.position_of(name)
        return None if written is None else positions.parse(written)

    # -- notes -----------------------------------------------------------------------------------------------

    @property
    def tags(self) -> dict[str, str]:
        return dict(self._notes.tags)

    def set_tag(self, name: str, position: positions.Position | None) -> None:
        """Name a position, or forget the name; durable when this returns."""
        moments.check_name("tag", name)
        with self.growing:
            tags = {key: value for key, value in self._notes.tags.items() if key != name}
            if position is not None:
                tags[name] = str(position)
            self._note(Notes(tags, self._notes.policy))

    @property
    def policy(self) -> retention.Policy:
        return self._notes.policy or retention.DEFAULT

    @property
    def has_own_policy(self) -> bool:
        return self._notes.policy is not None

    def set_policy(self, policy: retention.Policy) -> None:
        """From the next pruning on; durable when this returns."""
        with self.growing:
            self._note(Notes(self._notes.tags, retention.check(policy)))

    def forget_states(self) -> None:
        """Remembered states may stand where no step leads on any more."""
        with self._asking:
            self._states.clear()

    def _note(self, notes: Notes) -> None:
        atomic_files.write_bytes(self.folder / "notes.json", msgspec.json.encode(notes))
        self._notes = notes

    def _read_notes(self) -> Notes:
        try:
            return msgspec.json.decode((self.folder / "notes.json").read_bytes(), type=Notes)
        except FileNotFoundError:
            return Notes()


def is_costly(state: State) -> bool:
    return state.replayed_bytes + DELTA_COST * state.replayed_deltas > REPLAY_MAX_COST
