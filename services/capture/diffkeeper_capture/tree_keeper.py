"""When a capture's tree is saved while it goes on, for short restarts and a small spool; it costs what changed since."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice

from diffkeeper.domain import deltas, errors, positions, trees
from diffkeeper.tree_store import TreeStore
from diffkeeper_capture.contents import Fingerprint
from diffkeeper_capture.shadow import Shadow
from diffkeeper_capture.shipper import Shipper

# After this time, or this much of the log, whichever comes first.
SAVE_INTERVAL_S = 30.0
SAVE_AFTER_BYTES = 256 * 1024 * 1024
# Saving asks for the attributes of every file that was written: it may take one part in this many of the
# agent's time.
SAVE_SHARE = 50
# Changes of names that are brought to the store at once, while others wait: some milliseconds.
FEED_A_STEP = 256


class TreeKeeper:
    """The store always opens as a tree from which the frames in the spool lead on. Owns it."""

    def __init__(self, store: TreeStore, shadow: Shadow, shipper: Shipper, device: int) -> None:
        """``shadow.unsaved`` begins with what leads from the store's position to where the shadow is."""
        self._store = store
        self._shadow = shadow
        self._shipper = shipper
        self._device = device
        self._saved_at = time.monotonic()
        self._took_s = 0.0
        # A disk that was full may have taken back all since the last commit: then the store is made anew.
        self._is_behind = False
        shipper.releasable = store.position

    @property
    def saved(self) -> positions.Position:
        return self._store.position

    def is_due(self, position: positions.Position, bytes_since: int) -> bool:
        if position == self.saved:
            return False
        waited_s = time.monotonic() - self._saved_at
        return waited_s >= max(SAVE_INTERVAL_S, SAVE_SHARE * self._took_s) or bytes_since > SAVE_AFTER_BYTES

    def feed(self, limit: int | None = FEED_A_STEP) -> bool:
        """Bring changes to the store, none of which counts before ``commit``; whether there are more."""
        if self._is_behind:
            return False
        try:
            return self._feed(limit)
        except errors.Transient:
            self._is_behind = True
            raise

    def _feed(self, limit: int | None) -> bool:
        shadow, store = self._shadow, self._store
        some: list[deltas.Delta] = shadow.unsaved[:limit]
        del shadow.unsaved[: len(some)]
        for delta in some:
            if store.tree.is_changed_by(delta):
                store.tree.apply(delta)
        if not shadow.unsaved:  # an id is bound after it was made
            for file_id in list(islice(shadow.unsaved_ids, limit)):
                shadow.unsaved_ids.discard(file_id)
                self._identify(file_id)
        return bool(shadow.unsaved or shadow.unsaved_ids)

    def _identify(self, file_id: int) -> None:
        inode = self._shadow.inode_of.get(file_id)
        if inode is None:
            self._store.identities.pop(file_id, None)
        else:
            generation = self._shadow.generation_of.get(file_id, 0)
            self._store.identities[file_id] = trees.Identity(self._device, inode, generation)

    def commit(
        self,
        position: positions.Position,
        frame_hash: bytes,
        stamp: int,
        prints: dict[int, Fingerprint | None],
        whole: Callable[[], trees.TreeState],
    ) -> None:
        """A successor of this process finds the tree as it is now. Every frame up to ``position`` must be in the
        spool or behind it. ``whole`` gives all of it, which is slow and rarely needed.
        """
        began = time.monotonic()
        try:
            if self._is_behind:
                self._make_anew(whole())
            else:
                self._commit(position, frame_hash, stamp, prints)
        except errors.Transient:
            self._is_behind = True
            raise
        finally:
            self._saved_at = time.monotonic()
            self._took_s = self._saved_at - began

    def _commit(
        self,
        position: positions.Position,
        frame_hash: bytes,
        stamp: int,
        prints: dict[int, Fingerprint | None],
    ) -> None:
        self._feed(None)
        for file_id, print_ in prints.items():
            if print_ is not None:
                self._store.fingerprints[file_id] = print_
            else:
                self._store.fingerprints.pop(file_id, None)
        self._store.commit(position, frame_hash, stamp)

    def _make_anew(self, state: trees.TreeState) -> None:
        path = self._store.path
        self._store.close()
        self._store = TreeStore.create(path, state)
        self._shadow.unsaved.clear()
        self._shadow.unsaved_ids.clear()
        self._is_behind = False

    def sync(self) -> None:
        """What was committed outlives the machine's power too: only now the spool may let go of what leads there.

        Blocking; may run in a thread beside the owner.
        """
        position = self.saved
        self._store.sync()
        self._shipper.releasable = position

    def close(self) -> None:
        self._store.close()
