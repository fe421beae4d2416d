"""When a capture's tree is saved while it goes on, for short restarts, a small spool and little memory; it costs what
changed since.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from diffkeeper.domain import positions
from diffkeeper_capture.contents import Fingerprint
from diffkeeper_capture.shipper import Shipper
from diffkeeper_capture.working_tree import WorkingTree

# After this time, or this much of the log, or so many changed files, which are in memory until then, whichever comes
# first.
SAVE_INTERVAL_S = 30.0
SAVE_AFTER_BYTES = 256 * 1024 * 1024
SAVE_AFTER_CHANGES = 4096
# Saving asks for the attributes of every file that was written: it may take one part in this many of the
# agent's time.
SAVE_SHARE = 50
# Changes that are brought to the file at once, while others wait: some milliseconds.
FEED_A_STEP = 256


class TreeKeeper:
    """The file always opens as a tree from which the frames in the spool lead on. Owns it."""

    def __init__(self, tree: WorkingTree, shipper: Shipper) -> None:
        self._tree = tree
        self._shipper = shipper
        self._saved_at = time.monotonic()
        self._took_s = 0.0
        # A disk that is full is not asked again before the next commit is due.
        self._is_refused = False
        shipper.releasable = tree.saved

    @property
    def saved(self) -> positions.Position:
        return self._tree.saved

    @property
    def is_large(self) -> bool:
        """Whether much of memory waits for a commit."""
        return self._tree.unsaved >= SAVE_AFTER_CHANGES and not self._is_refused

    def is_due(self, position: positions.Position, bytes_since: int) -> bool:
        if position == self.saved:
            return False
        waited_s = time.monotonic() - self._saved_at
        is_much = bytes_since > SAVE_AFTER_BYTES or self.is_large
        return waited_s >= max(SAVE_INTERVAL_S, SAVE_SHARE * self._took_s) or is_much

    def feed(self) -> bool:
        """Bring changes to the file when there are some, none of which counts before ``commit``; whether there are
        more.
        """
        if self._is_refused or self._tree.unfed < FEED_A_STEP:
            return False
        try:
            return self._tree.feed(FEED_A_STEP)
        except BaseException:
            self._is_refused = True
            raise

    def commit(
        self,
        position: positions.Position,
        frame_hash: bytes,
        stamp: int,
        prints: Mapping[int, Fingerprint | None],
    ) -> None:
        """A successor of this process finds the tree as it is now. Every frame up to ``position`` must be in the
        spool or behind it. Raises Transient, and then nothing is different.
        """
        began = time.monotonic()
        self._is_refused = True
        try:
            self._tree.commit(position, frame_hash, stamp, prints)
            self._is_refused = False
        finally:
            self._saved_at = time.monotonic()
            self._took_s = self._saved_at - began

    def sync(self) -> None:
        """What was committed outlives the machine's power too: only now the spool may let go of what leads there.

        Blocking; may run in a thread beside the owner.
        """
        position = self.saved
        self._tree.sync()
        self._shipper.releasable = position

    def close(self) -> None:
        self._tree.close()
