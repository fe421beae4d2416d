"""When a capture's tree is saved while it goes on, for short restarts and a small spool."""

from __future__ import annotations

import time
from pathlib import Path

from diffkeeper.domain import positions, trees
from diffkeeper_capture import volume_state
from diffkeeper_capture.shipper import Shipper

# After this time, or this much of the log, whichever comes first.
SAVE_INTERVAL_S = 30.0
SAVE_AFTER_BYTES = 256 * 1024 * 1024
# Saving reads the attributes of every file: it may take one part in this many of the agent's time.
SAVE_SHARE = 50


class TreeKeeper:
    """The file at ``path`` always holds a tree from which the frames in the spool lead on."""

    def __init__(self, path: Path, shipper: Shipper, saved: positions.Position) -> None:
        self.saved = saved
        self._path = path
        self._shipper = shipper
        self._saved_at = time.monotonic()
        self._took_s = 0.0
        shipper.releasable = saved

    def is_due(self, position: positions.Position, bytes_since: int) -> bool:
        if position == self.saved:
            return False
        waited_s = time.monotonic() - self._saved_at
        return waited_s >= max(SAVE_INTERVAL_S, SAVE_SHARE * self._took_s) or bytes_since > SAVE_AFTER_BYTES

    def save(self, state: trees.TreeState) -> None:
        """Every frame up to the state's position must be in the spool or behind it."""
        began = time.monotonic()
        volume_state.save(self._path, state)
        self.saved = self._shipper.releasable = state.position
        self._saved_at = time.monotonic()
        self._took_s = self._saved_at - began
