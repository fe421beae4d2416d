"""A state at any position from what is on disk: the nearest checkpoint before it, and the log from there on,
out of the archives and the journal. Reads only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from diffkeeper.domain import errors, positions
from diffkeeper_replicator import archives, checkpoints
from diffkeeper_replicator.archives import Step
from diffkeeper_replicator.chunk_store import ChunkStore
from diffkeeper_replicator.journal_view import JournalView
from diffkeeper_replicator.states import State

FOLDER = "history"


class StateBuilder:
    """One volume's. ``folder`` is the volume's below the replicator's directory."""

    def __init__(self, volume: str, folder: Path, store: ChunkStore) -> None:
        self.volume = volume
        self.folder = folder / FOLDER
        self.checkpoints = self.folder / "checkpoints"
        self.archives = self.folder / "archives"
        self.journal = JournalView(folder / "journal")
        self.store = store
        # Checkpoints that could not be read; passed over.
        self.damaged: dict[positions.Position, str] = {}

    def steps(self, after: int) -> Iterator[Step]:
        """The log beyond a sequence: the journal as far back as it goes, the archives before that."""
        first = self.journal.first_sequence()
        if first is None or after + 1 < first:
            for archive in archives.found(self.archives):
                if archive.last > after and archive.first - 1 <= after:
                    for step in archives.read(archive, after):
                        yield step
                        after = step.tip.position.sequence
        for frame in self.journal.frames_from(after + 1):
            yield archives.of_frame(frame, frame.columns())

    def build(self, position: positions.Position, near: Iterable[State] = ()) -> State:
        """A state of one's own. ``near`` may hold states to go on from. Raises NotFound for a position that
        no kept step leads to, Corrupt where log or chunks are damaged.
        """
        return self.go_on(self._nearest(position, near), position)

    def go_on(self, state: State, position: positions.Position) -> State:
        if state.position != position:
            for step in self.steps(state.position.sequence):
                if step.tip.position.sequence > position.sequence or step.parent != state.tip:
                    break
                apply(state, step)
                if step.tip.position.sequence == position.sequence:
                    break
        if state.position != position:
            raise missing(position)
        return state

    def _nearest(self, position: positions.Position, near: Iterable[State]) -> State:
        below = [
            found for found in checkpoints.found(self.checkpoints) if found.sequence <= position.sequence
        ]
        best = max(
            (state for state in near if state.position.sequence <= position.sequence),
            key=lambda state: state.position,
            default=None,
        )
        while below:
            checkpoint = below.pop()
            if best is not None and best.position >= checkpoint:
                break
            state = self.load(checkpoint)
            if state is not None:
                return state
        return best.copy() if best is not None else State.empty(self.folder)

    def load(self, position: positions.Position) -> State | None:
        """A checkpoint; None, and noted, when it is damaged: an older one and the log give the same."""
        try:
            path = checkpoints.path_of(self.checkpoints, position)
            return checkpoints.read(path, self.volume, self.store, self.folder)
        except errors.Corrupt as error:
            self.damaged[position] = error.message
            return None
        except FileNotFoundError:
            return None


def apply(state: State, step: Step) -> None:
    """One step, in as many bodies as it has."""
    for nth, columns in enumerate(step.bodies, 1):
        tip = step.tip if nth == len(step.bodies) else state.tip
        state.apply(tip, step.last, columns)
    if not step.bodies:
        state.tip, state.stamp = step.tip, step.last


def missing(position: positions.Position) -> errors.NotFound:
    return errors.NotFound(
        f"the log here does not lead to {position}",
        reason="not-kept",
        hint="another site may have it; dkctl history shows what is kept",
        position=str(position),
    )
