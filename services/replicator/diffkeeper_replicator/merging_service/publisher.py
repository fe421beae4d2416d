"""Appends a site's records to its merge log, each once: by compare-and-set, and after any doubt by reading where
the log ends.
"""

from __future__ import annotations

from collections.abc import Sequence

from diffkeeper.domain import errors, frames, volumes
from diffkeeper.log import event_log
from diffkeeper_replicator.merging_service import merge_log
from diffkeeper_replicator.merging_service.merge_log import End

# How far back from the end of a log a whole record is looked for.
_LOOK_BACK = 256


class Publisher:
    def __init__(self, origin: volumes.Origin, log: event_log.EventLog) -> None:
        self._origin = origin
        self._log = log
        self._compressor = frames.Compressor()
        self.end = End()

    async def find_end(self) -> None:
        """Where the log ends; makes it if it is not there."""
        await self._log.create_origin(self._origin)
        stored = await self._log.last(self._origin)
        if stored is None:
            self.end = End()
            return
        frame = frames.open_frame(stored.wire)
        merge_log.check(self._origin, None, frame)
        number = await self._last_whole(frame, stored.stream_sequence)
        self.end = End(merge_log.tip_of(frame), stored.stream_sequence, number, frame.header.last)

    async def _last_whole(self, frame: frames.Frame, sequence: int) -> int:
        number = merge_log.last_whole(frame)
        for back in range(1, min(_LOOK_BACK, sequence)):
            if number:
                break
            stored = await self._log.get(self._origin, sequence - back)
            if stored is None:
                raise event_log.stream_gap(self._origin, sequence - back, None)
            number = merge_log.last_whole(frames.open_frame(stored.wire))
        return number

    async def append(self, records: Sequence[tuple[int, bytes]], stamp: int) -> int:
        """Publish records, in order, that follow what is there; the number of the last one that is there then.

        Raises what ``EventLog.append`` raises; ``find_end`` first, before trying again.
        """
        for columns, whole in merge_log.cut(records):
            frame = merge_log.seal(self._origin, self.end, columns, stamp, self._compressor)
            try:
                sequence = await self._log.append(self._origin, frame, self.end.sequence)
            except errors.Fenced as error:
                raise errors.Transient(
                    f"the merge log {self._origin.stream} goes on where it was not expected to",
                    reason="log-moved",
                ) from error
            number = whole or self.end.number
            self.end = End(merge_log.tip_of(frame), sequence, number, frame.header.last)
        return self.end.number
