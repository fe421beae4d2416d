"""What a volume's next reign here is built of, made ready while another site still reigns.

To begin a reign an agent opens its spool and makes the tree's file out of a tree state, which takes the longer the more
files there are. Both can be had before: the tree of a moment ago, and at the end only what became of it
(``tree_increments``). Nothing here captures or publishes; whoever attaches with another state than was foreseen
begins without this.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diffkeeper import tree_files
from diffkeeper.domain import errors, frames, tree_increments
from diffkeeper.tree_store import TreeStore
from diffkeeper_capture import syncers
from diffkeeper_capture.spool import Spool
from diffkeeper_capture.volume_order import Order, VolumeFiles

# Of a tree's file in memory: there may be many volumes, and the kernel keeps what is asked for too.
PAGES_KIB = 1024


@dataclass(slots=True)
class Staged:
    """Owned by whoever holds it, until ``spool`` and ``store`` are taken out of it."""

    files: VolumeFiles
    spool: Spool | None
    store: TreeStore | None

    @classmethod
    def make(cls, files: VolumeFiles, volume: str, tree_state: Path, spool_bytes: int) -> Staged:
        """Blocking. The reign that was here before is over: its files are not gone on with after this."""
        files.directory.mkdir(parents=True, exist_ok=True)
        state = tree_files.load(tree_state)
        if state.volume != volume:
            raise errors.Corrupt(
                f"{tree_state} is of volume {state.volume}, not of {volume}", reason="no-tree-state"
            )
        files.reign.unlink(missing_ok=True)
        files.resume_journal.unlink(missing_ok=True)
        store = TreeStore.create(files.tree_store, state, PAGES_KIB)
        try:
            spool = Spool.open(files.spool, spool_bytes, make_syncer=syncers.best)
        except BaseException:
            store.close()
            raise
        return cls(files, spool, store)

    def take_spool(self) -> Spool | None:
        spool, self.spool = self.spool, None
        return spool

    def take_store(self, order: Order) -> TreeStore | None:
        """The tree as the order has it, durable at the latest with ``TreeStore.sync``; None where it cannot be had from
        this, and then the file is closed: another may be made in its place. Blocking.
        """
        store, self.store = self.store, None
        if store is None:
            return None
        is_right = False
        try:
            is_right = self._brought_to(store, order)
        finally:
            if not is_right:
                store.close()
        return store if is_right else None

    def _brought_to(self, store: TreeStore, order: Order) -> bool:
        if order.tree_state is None or self.files.is_ours(order.tree_state):
            return False
        try:
            found = tree_files.read(order.tree_state)
        except OSError:
            return False  # whoever needs it says so
        if not isinstance(found, tree_increments.Increment):
            return False
        at = frames.Tip(store.position, store.frame_hash)
        if (found.base, found.tip, found.volume) != (at, order.parent, store.volume):
            return False
        store.advance(found)
        return True

    def close(self) -> None:
        spool, store = self.spool, self.store
        self.spool = self.store = None
        if store is not None:
            store.close()
        if spool is not None:
            spool.close()
