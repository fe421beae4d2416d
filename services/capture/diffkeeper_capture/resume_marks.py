"""One volume's marks while it is captured: made when a group of frames is closed, written when the group is in
the spool, and the reason why the ring keeps what is not.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Protocol

import structlog

from diffkeeper.domain import frames
from diffkeeper_capture.framer import Framer
from diffkeeper_capture.resume_journal import Mark, Memory, ResumeJournal
from diffkeeper_capture.resuming import Recollection

# Frames that filled up by themselves wait for a mark no longer than until there are so many of them.
GROUP_FRAMES = 4

_log = structlog.get_logger("capture")


class Ring(Protocol):
    """Of the drain loop: where it is for one volume."""

    @property
    def identity(self) -> str: ...

    def position_of(self, slot: int) -> int:
        """All records before it have been delivered to the volume in ``slot``."""

    @property
    def lost_records(self) -> int: ...


@dataclass(frozen=True, slots=True)
class _Closed:
    """A mark whose last frame has a number and no hash yet."""

    sequence: int
    at: int
    lost: int
    gaps: int
    memory: Memory


class Marks:
    """``begin`` or ``go_on``, and from then on every frame that is shipped is followed by a mark."""

    def __init__(
        self,
        volume: str,
        journal: ResumeJournal,
        recollection: Recollection,
        ring: Ring,
        slot: int,
        framer: Framer,
    ) -> None:
        self.is_on = False
        # All records before it are in frames that the spool has, and what they taught is in the journal.
        self.at = 0
        self._volume = volume
        self._journal = journal
        self._recollection = recollection
        self._ring, self._slot = ring, slot
        self._framer = framer
        self._closed: deque[_Closed] = deque()
        self._last_sequence = 0

    # -- being on ---------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """The volume is what the log says, nothing is pending: from here on a successor can go on."""
        self._last_sequence = self._framer.last_closed
        self.is_on = True
        self._note(self._framer.tip, self._close(0), anew=True)

    def go_on(self, mark: Mark) -> None:
        """From a predecessor's last mark."""
        self._journal.go_on()
        self._last_sequence = mark.tip.position.sequence
        self.at = mark.at
        self.is_on = True

    def begin_anew(self) -> None:
        """The tree was saved at the tip: what came before is not needed any more."""
        if self.is_on and not self._closed:
            closed = _Closed(0, *self._where(), self._recollection.whole())
            self._note(self._framer.tip, closed, anew=True)

    def end(self) -> None:
        """Nothing is to be gone on with."""
        self.is_on = False
        self._closed.clear()
        self._journal.break_off()

    def close(self) -> None:
        """Leave the file to a successor."""
        self._journal.close()

    # -- marks ------------------------------------------------------------------------------------------------

    def close_group(self, *, is_due: bool) -> None:
        """After a turn: frames that filled up in the middle of it get a mark at its end, when there are enough."""
        framer = self._framer
        waiting = framer.last_closed - self._last_sequence
        if self.is_on and waiting and (is_due or waiting >= GROUP_FRAMES or not framer.pending):
            framer.close()
            self.closed()

    def closed(self) -> None:
        """All that was observed is in frames that are closed, but for marks of sync calls that wait for company."""
        if self.is_on and self._framer.last_closed > self._last_sequence:
            assert not self._framer.pending, "it would be observed twice"
            self._last_sequence = self._framer.last_closed
            self._closed.append(self._close(self._last_sequence))

    def group_end(self) -> int | None:
        """The sequence of the frame that the next mark follows."""
        return self._closed[0].sequence if self._closed else None

    def group_is_kept(self, tip: frames.Tip) -> None:
        """The frames up to ``group_end`` are in the spool, and nowhere else."""
        self._note(tip, self._closed.popleft())

    def idle(self) -> None:
        """Nothing is pending or waits: what was learnt without a frame is kept too, and the ring let go."""
        if not self.is_on or self._closed or self._framer.last_closed > self._last_sequence:
            return
        if self._recollection.is_due:
            self._note(self._framer.tip, self._close(0))
        else:
            self.at = self._ring.position_of(self._slot)

    def _close(self, sequence: int) -> _Closed:
        return _Closed(sequence, *self._where(), self._recollection.take())

    def _where(self) -> tuple[int, int, int]:
        return self._ring.position_of(self._slot), self._ring.lost_records, self._framer.gaps

    def _note(self, tip: frames.Tip, closed: _Closed, *, anew: bool = False) -> None:
        mark = Mark(self._ring.identity, self._slot, closed.at, tip, closed.lost, closed.gaps, closed.memory)
        try:
            if anew:
                self._journal.begin(mark)
            else:
                self._journal.note(mark)
        except OSError as error:
            _log.error(
                "a restart of the agent will be a gap: a mark was not written",
                volume=self._volume,
                error=str(error),
            )
            self.end()
        self.at = max(self.at, closed.at)
