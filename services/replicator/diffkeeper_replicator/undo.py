"""The undo of one replica directory: what is recorded before a run is applied, how far back it reaches, and going back.

``cover`` writes the record of a run before the applier may begin it, once for each run however often applying it is
tried. The chain of records ends at or ahead of what the directory shows, never behind it; where it cannot (a run takes
too much away, no room, a power cut) it begins anew, and says from where on. A killed process leaves it whole, because
what was written to a file outlives the process; ``Bounds.durable`` buys the same for power cuts with an fsync a run.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from diffkeeper import atomic_files
from diffkeeper.domain import deltas, errors, frames, positions
from diffkeeper_replicator import undo_capture
from diffkeeper_replicator.applier import Applier
from diffkeeper_replicator.graves import Graves
from diffkeeper_replicator.journal import Journal
from diffkeeper_replicator.undo_log import Bounds, UndoLog

# A frame that the journal holds, with its checked deltas.
Kept = tuple[frames.Frame, deltas.Columns]

_DURABLE = "durable"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Undo:
    def __init__(self, directory: Path, root: Path, bounds: Bounds) -> None:
        self._boot_file = directory / "boot"
        self.log = UndoLog.open(directory, bounds)
        self.graves = Graves(root)
        self._buries = Graves.possible(root)
        self._grave_bytes = 0
        self._grew = True
        # Why the chain began anew last; told in the status.
        self.note = ""
        self.graves.keep_only(self.log.graves)

    @property
    def floor(self) -> positions.Position | None:
        return self.log.floor if self.log.enabled else None

    def usable_to(self, start: frames.Tip, journal: Journal) -> positions.Position | None:
        """How far the journal may be replayed over a directory that was not closed in order, so that the chain still
        ends where the directory stands. None: the chain is of no use for that, and was forgotten.
        """
        tip = self.log.tip
        if tip is None or not self.log.enabled:
            return None
        same = tip == start or (
            start.position < tip.position <= journal.tip.position and _holds(journal, tip)
        )
        lost = self._is_other_boot() and self._is_at_risk(start.position)
        if same and not lost:
            return tip.position
        self.begin_at(start, "the machine was cut off" if lost else "the directory is of another time")
        return None

    def begin_at(self, tip: frames.Tip, why: str) -> None:
        """The chain begins at ``tip``; what was before cannot be gone back to."""
        self.note = why
        self.graves.remove(self.log.begin_at(tip))
        self._grave_bytes = 0

    def stand_at(self, tip: frames.Tip) -> None:
        """The directory shows ``tip`` and is about to be applied to."""
        if self.log.tip != tip:
            self.begin_at(tip, "the directory was opened at another frame")
        if self.log.enabled:
            if self.log.bounds.durable:
                self.log.sync()
            mark = _DURABLE if self.log.bounds.durable else ""
            atomic_files.write_bytes(self._boot_file, f"{_boot()} {mark}".encode())

    def cover(self, run: Sequence[Kept], applier: Applier, tip: frames.Tip, stamp: int) -> Sequence[Kept]:
        """Those frames of a run that continues ``tip`` which may be applied now; the others after them.

        Raises what opening a file of the replica raises.
        """
        if not self.log.enabled or not run:
            return run
        reaches = self.log.tip.position if self.log.tip is not None else tip.position
        if reaches > tip.position:
            return [kept for kept in run if kept[0].position <= reaches]
        last = run[-1][0]
        after = frames.Tip(last.position, last.hash)
        try:
            old_bytes = self.log.old_bytes()
            record = undo_capture.capture(
                applier, [columns for _, columns in run], tip, stamp, after, old_bytes
            )
            if record is None or (record.span.graves and not self._buries):
                why = (
                    "a run took more away than is kept"
                    if record is None
                    else "removed files cannot be kept here"
                )
                self.begin_at(after, why)
                applier.bury_in(None, 0)
                return run
            self.log.append(record, old_bytes)
        except OSError as error:
            self.begin_at(after, f"the disk did not take it: {error.strerror}")
            applier.bury_in(None, 0)
            return run
        applier.bury_in(self.graves, record.next_id)
        self._trim(bool(record.span.graves))
        return run

    def sync(self) -> None:
        """What was kept is durable, so that an orderly end leaves a chain that outlives a power cut after it."""
        self.log.sync()

    def close(self) -> None:
        self.log.close()
        self.graves.close()

    def forget(self) -> None:
        """The directory is nobody's replica any more."""
        if self.log.tip is not None:
            self.log.begin_at(self.log.tip)
        self.graves.clear()

    def _trim(self, buried: bool) -> None:
        if self._grew:
            self._grave_bytes = self.graves.size_bytes()
        self._grew = buried  # once the run is applied
        while gone := self.log.trim(self._grave_bytes):
            self.graves.remove(gone)
            self._grave_bytes = self.graves.size_bytes()

    def _is_other_boot(self) -> bool:
        return self._boot_noted()[0] != _boot()

    def _is_at_risk(self, start: positions.Position) -> bool:
        """Whether a power cut may have taken records of runs after ``start`` that had been applied; or, where records
        were synced, parts of files that those runs removed, which nothing writes again.
        """
        durable = self._boot_noted()[1]
        return not durable or any(
            span.graves for span in self.log.spans_back() if span.after.position > start
        )

    def _boot_noted(self) -> tuple[str, bool]:
        try:
            boot, _, mark = self._boot_file.read_text().partition(" ")
        except FileNotFoundError:
            return "", False
        return boot, mark == _DURABLE


def out_of_reach(target: positions.Position, floor: positions.Position | None) -> errors.Refused:
    reach = f"reaches back to {floor}" if floor is not None else "holds nothing"
    return errors.Refused(
        f"the directory cannot be brought back to {target}: its undo {reach}; nothing was changed",
        reason="undo-out-of-reach",
        hint="keep more (undo_bytes, undo_frames), or restore from the journal",
        floor=str(floor) if floor is not None else "",
    )


def _holds(journal: Journal, tip: frames.Tip) -> bool:
    try:
        return journal.read(tip.position).hash == tip.hash
    except errors.NotFound:
        return False


def remove_beside(root: Path) -> None:
    """What was kept of a directory that is a replica no longer."""
    if os.path.lexists(root):
        Graves(root).clear()


def _boot() -> str:
    return _BOOT_ID.read_text().strip()
