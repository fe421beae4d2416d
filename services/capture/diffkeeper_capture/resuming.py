"""What an observer keeps in mind beyond the tree: put into marks while it goes on, given to its successor.

Everything an observer knows is either in the tree, which the frames make again, or here, or is safe to forget:
then forgetting makes the successor compare or re-read, never believe. Whoever gives the observer something new to
remember decides which of the three it is.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from diffkeeper_capture.observer import Observer
from diffkeeper_capture.resume_journal import COMPARED, GUESSED, MAPPED, UNVERIFIED, Memory


class Recollection:
    """Of one observer, since the last mark."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._gone: list[tuple[int, int]] = []
        self._mapped: set[int] = set()
        self._writers: set[int] = set()
        self._unseen: set[int] = set()
        self._unseen_elsewhere: set[int] = set()
        self._was_plain = True
        observer.shadow.on_forget.append(self._note_gone)

    def _note_gone(self, file_id: int) -> None:
        inode = self._observer.shadow.inode_of.get(file_id)
        if inode is not None:
            self._gone.append((inode, self._observer.now_end_ns))

    @property
    def is_due(self) -> bool:
        """Whether a successor would miss something that was learnt from records which made no frame."""
        observer = self._observer
        return bool(
            observer.shadow.touched
            or self._gone
            or observer.mapped.ids != self._mapped
            or len(observer.writers) != len(self._writers)
            or len(observer.unseen_writers) != len(self._unseen)
            or len(observer.unseen_elsewhere) != len(self._unseen_elsewhere)
            or observer.is_plain != self._was_plain
        )

    def whole(self) -> Memory:
        """Everything, for a journal that begins behind a saved tree, which has the bindings."""
        shadow = self._observer.shadow
        self._mapped, self._writers, self._unseen, self._unseen_elsewhere = set(), set(), set(), set()
        shadow.touched |= shadow.guessed | shadow.unverified
        return self.take()

    def take(self) -> Memory:
        """What is new since the last time."""
        observer, shadow = self._observer, self._observer.shadow
        mapped = observer.mapped.ids
        touched, shadow.touched = shadow.touched | (mapped ^ self._mapped), set()
        gone, self._gone, self._mapped = self._gone, [], mapped
        self._was_plain = observer.is_plain
        return Memory(
            time.monotonic_ns(),
            observer.doubts.compared_ns,
            observer.is_doubtful,
            observer.is_floored,
            [self._binding(file_id) for file_id in touched],
            gone,
            _new(observer.writers, self._writers),
            _new(observer.unseen_writers, self._unseen),
            _new(observer.unseen_elsewhere, self._unseen_elsewhere),
        )

    def _binding(self, file_id: int) -> tuple[int, int, int, int]:
        shadow = self._observer.shadow
        flags = (file_id in shadow.guessed) * GUESSED | (file_id in shadow.unverified) * UNVERIFIED
        flags |= (file_id in self._mapped) * MAPPED
        flags |= (file_id in self._observer.mapped.compared.known) * COMPARED
        return file_id, shadow.inode_of.get(file_id, 0), shadow.generation_of.get(file_id, 0), flags


def _new(now: set[int], before: set[int]) -> list[int]:
    added = sorted(now - before)
    before |= now
    return added


def recall(observer: Observer, memories: Iterable[Memory]) -> None:
    """Give a fresh observer, whose tree is that of the last mark, what its predecessor had in mind."""
    shadow = observer.shadow
    last: Memory | None = None
    mapped: dict[int, bool] = {}
    for memory in memories:
        last = memory
        # First all that let go of a number, then those that took it.
        for file_id, *_ in memory.bindings:
            shadow.unbind(file_id)
            shadow.unverified.discard(file_id)
        for file_id, inode, generation, flags in memory.bindings:
            mapped.pop(file_id, None)
            if file_id not in shadow.tree.nodes:
                continue  # a later frame took its last name away
            if inode:
                shadow.bind(file_id, inode, generation)
            if flags & GUESSED:
                shadow.guessed.add(file_id)
            if flags & UNVERIFIED:
                shadow.unverified.add(file_id)
            if flags & MAPPED:
                mapped[file_id] = bool(flags & COMPARED)
        for inode, when_ns in memory.gone:
            observer.remember_gone(inode, when_ns)
        observer.writers.update(memory.writers)
        observer.unseen_writers.update(memory.unseen)
        observer.unseen_elsewhere.update(memory.unseen_elsewhere)
    shadow.touched.clear()
    if last is not None:
        observer.go_on_from(last.made_ns, last.compared_ns, mapped, last.is_doubtful, last.is_floored)
