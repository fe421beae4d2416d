"""Applies a volume's policy: the log beyond the journal's last segments goes into archives, folded to the
points that stay; what is older than the ladder goes; then checkpoints and chunks that nobody needs any more.

The order makes a crash harmless at any point: what stands in the middle of a stretch to be folded (checkpoints,
remembered states) goes before the stretch is replaced, an archive is durable and read back before anything it
replaces is let go, and chunks go last, when no checkpoint names them. Points with a tag or a branch stay, the parents of
orphan branches among them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from diffkeeper import atomic_files
from diffkeeper.domain import errors, frames, positions, retention
from diffkeeper_replicator import archives, checkpoints, folding, orphan_branches, volume_history
from diffkeeper_replicator.archives import Archive, Step
from diffkeeper_replicator.state_builder import apply
from diffkeeper_replicator.states import State
from diffkeeper_replicator.volume_history import VolumeHistory

# Of the log, before it is folded, in one archive.
ARCHIVE_BYTES = 64 * 1024 * 1024


class Pruner:
    def __init__(self, history: VolumeHistory) -> None:
        self._history = history
        self._folder = history.builder.archives

    def prune(self, now_us: int) -> dict[str, Any]:
        """Once; ``archived`` is up to where the journal is not needed by this history any more."""
        history = self._history
        with history.growing:
            history.grow()
            policy = history.policy
            if policy.keeps_all:
                return {"archived": 0, "folded": 0, "dropped": 0}
            points = self._points()
            stay = set(retention.kept(points, policy, now_us, self._pinned()))
            if not history.has_own_policy and len(stay) == len(points):
                # Nothing would go: the log is not written anew only because it could be smaller.
                return {"archived": 0, "folded": 0, "dropped": 0}
            folded = sum(self._fold(first, last, stay) for first, last in self._new_ranges(points))
            for archive in archives.found(self._folder):
                kept = archives.head(archive).kept
                if any(sequence not in stay for sequence in kept[:-1]):
                    folded += self._fold(archive.first, archive.last, stay)
            # Before any is dropped: the log up to there is needed no more, also when nothing of it stays.
            done = archives.found(self._folder)
            dropped = self._drop_oldest(stay)
            self._thin_checkpoints()
            return {"archived": done[-1].last if done else 0, "folded": folded, "dropped": dropped}

    def would_keep(self, policy: retention.Policy, now_us: int) -> tuple[int, int]:
        """How many points a policy would keep, of how many."""
        points = self._points()
        return len(retention.kept(points, policy, now_us, self._pinned())), len(points)

    # -- which -----------------------------------------------------------------------------------------------

    def _points(self) -> list[retention.Candidate]:
        barrier = int(frames.Flag.BARRIER)
        return [
            retention.Candidate(sequence, at_us, bool(flags & barrier))
            for sequence, at_us, flags in self._history.index.kept(0, 1 << 62)
        ]

    def _pinned(self) -> set[int]:
        """What a tag, a branch or an orphan branch begins from."""
        history = self._history
        written = [*history.tags.values(), *(one.position for one in history.branches.all())]
        left = orphan_branches.find_all(history.builder.folder.parent / orphan_branches.FOLDER)
        written += [branch.note.parent for branch in left]
        return {positions.parse(position).sequence for position in written}

    def _new_ranges(self, points: list[retention.Candidate]) -> Iterator[tuple[int, int]]:
        """Stretches of the journal that are sealed and not archived yet. Where every archive was dropped the journal may
        begin before what they had: nothing leads there any more.
        """
        done = archives.found(self._folder)
        begins = max(self._history.journal.first_sequence() or 1, points[0].sequence if points else 1)
        first = done[-1].last + 1 if done else begins
        sealed = self._history.journal.sealed_sequence()
        size, start = 0, first
        for sequence, body_bytes in self._history.index.sizes(first, sealed):
            size += body_bytes
            if size >= ARCHIVE_BYTES or sequence == sealed:
                yield start, sequence
                size, start = 0, sequence + 1

    # -- folding ---------------------------------------------------------------------------------------------

    def _fold(self, first: int, last: int, stay: Collection[int]) -> int:
        """One stretch into one archive, whose end always stays; how many points it lost."""
        history = self._history
        kept = [sequence for sequence, _, _ in history.index.kept(first, last) if sequence in stay]
        ends = {*kept, last}
        state = history.builder.build(self._before(first))
        steps = self._steps(state.position.sequence, last)
        before = len(history.index.kept(first, last))
        self._forget_between(first, last, ends)
        made = archives.write(self._folder, first, folded(state, steps, ends))
        assert made is not None and made.last == last, "the stretch has an end"
        history.index.mark_kept(first, last, ends)
        history.forget_states()
        return before - len(ends)

    def _steps(self, after: int, last: int) -> Iterator[Step]:
        for step in self._history.builder.steps(after):
            if step.tip.position.sequence > last:
                return
            yield step

    def _before(self, first: int) -> positions.Position:
        """The point that a stretch begins from."""
        if first == 1:
            return positions.START
        below = self._history.index.position_of(first - 1)
        if below is None:
            raise errors.Corrupt(
                f"the history of {self._history.volume} does not know what comes before {first}; nothing was pruned",
                reason="index-damaged",
                hint="remove history/index.db of the volume: it is made again",
            )
        return below

    def _forget_between(self, first: int, last: int, ends: Collection[int]) -> None:
        """Checkpoints from which no step will lead on any more."""
        for position in checkpoints.found(self._history.checkpoints):
            if first <= position.sequence <= last and position.sequence not in ends:
                checkpoints.path_of(self._history.checkpoints, position).unlink()
        atomic_files.fsync_directory(self._history.checkpoints)

    # -- dropping --------------------------------------------------------------------------------------------

    def _drop_oldest(self, stay: Collection[int]) -> int:
        """Archives in which nothing stays, from the oldest on: what follows begins from a checkpoint."""
        dropped = 0
        for archive in archives.found(self._folder):
            if any(archive.first <= sequence <= archive.last for sequence in stay):
                break
            self._ensure_checkpoint(archive)
            self._history.index.mark_kept(archive.first, archive.last, [])
            for position in checkpoints.found(self._history.checkpoints):
                if position.sequence < archive.last:
                    checkpoints.path_of(self._history.checkpoints, position).unlink()
            archive.path.unlink()
            atomic_files.fsync_directory(self._folder)
            dropped += 1
        return dropped

    def _ensure_checkpoint(self, archive: Archive) -> None:
        history = self._history
        position = history.index.position_of(archive.last)
        assert position is not None, "the index has the end of every archive"
        if not checkpoints.path_of(history.checkpoints, position).exists():
            with history.store.lock:
                state = history.builder.build(position)
                checkpoints.write(history.checkpoints, history.volume, state, history.store)

    def _thin_checkpoints(self) -> None:
        """Of the checkpoints over archives only those stay that keep the replay to every point short."""
        done = archives.found(self._folder)
        if not done:
            return
        places = [
            one for one in checkpoints.found(self._history.checkpoints) if one.sequence <= done[-1].last
        ]
        costs = [(archive, archives.head(archive)) for archive in done]
        base = done[0].first - 1
        for place, after in zip(places, [*places[1:], None], strict=True):
            if place.sequence <= done[0].first - 1:
                base = place.sequence  # where the log begins
            elif after is not None and _cost(costs, base, after.sequence) <= volume_history.REPLAY_MAX_COST:
                checkpoints.path_of(self._history.checkpoints, place).unlink()
            else:
                base = place.sequence
        atomic_files.fsync_directory(self._history.checkpoints)


def folded(state: State, steps: Iterable[Step], ends: Collection[int]) -> Iterator[Step]:
    """The steps made fewer: one to each of ``ends``. ``state`` is where they begin, and goes along."""
    pending: list[Step] = []
    for step in steps:
        apply(state, step)
        pending.append(step)
        if step.tip.position.sequence in ends:
            yield pending[0] if len(pending) == 1 else _merged(pending, state)
            pending = []


def _merged(pending: list[Step], state: State) -> Step:
    last, flags = pending[-1], 0
    for step in pending:
        flags |= step.flags
    bodies = folding.fold((body for step in pending for body in step.bodies), state.tree.nodes)
    return last._replace(
        parent=pending[0].parent,
        first=pending[0].first,
        flags=flags,
        fidelity=max(step.fidelity for step in pending),
        body_bytes=sum(body.payload_bytes for body in bodies),
        bodies=bodies,
    )


def _cost(costs: list[tuple[Archive, archives.Head]], after: int, upto: int) -> int:
    """What a replay between two places costs at most, by the share of each archive that lies between."""
    total = 0.0
    for archive, head in costs:
        between = min(archive.last, upto) - max(archive.first - 1, after)
        if between > 0:
            whole = head.raw_bytes + volume_history.DELTA_COST * head.deltas
            total += whole * between / (archive.last - archive.first + 1)
    return int(total)
