"""Looks at a few files of a volume, again and again, for changes that the log does not have: the only witness against
a probe that has gone blind. A few entries a second, those that changed last among them every time.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import islice

from diffkeeper.domain.deltas import ROOT_ID
from diffkeeper_capture import rereader
from diffkeeper_capture.observer import Observer

HOT_FILES = 32
OTHERS_A_LOOK = 32
# A file's clock ticks slowly: up to so much its time may be off that of the record.
SLACK_US = 50_000


class SourceSampler:
    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._hot: dict[int, int] = {ROOT_ID: 0}  # id → when it changed, unix microseconds
        self._round: Iterator[int] = iter(())

    def newest_unseen_us(self, captured_us: int) -> int | None:
        """When the newest change was made that is later than ``captured_us``, the last one in the log; None when the
        log has all that was found.
        """
        others = list(islice(self._round, OTHERS_A_LOOK))
        if len(others) < OTHERS_A_LOOK:
            self._round = self._observer.shadow.tree.ids()
        looked = {file_id: self._changed_us(file_id) for file_id in (*self._hot, *others)}
        found = {file_id: at_us for file_id, at_us in looked.items() if at_us is not None}
        hottest = heapq.nlargest(HOT_FILES, found, key=lambda file_id: found[file_id])
        self._hot = {ROOT_ID: 0, **{file_id: found[file_id] for file_id in hottest}}
        newest = max(found.values(), default=0)
        return newest if newest > captured_us + SLACK_US else None

    def _changed_us(self, file_id: int) -> int | None:
        """Of content or names. The time of change of content can be set, that of the inode changes for other reasons
        too: only both together say it.
        """
        if self._observer.mapped.is_followed(file_id):
            return None  # stores into it are found at barriers
        try:
            status = self._observer.reader.status_of(file_id)
        except rereader.Elsewhere:
            return None
        return min(status.st_mtime_ns, status.st_ctime_ns) // 1000
