"""What an agent makes ready for a reign to come: used where it is what the order asks for, else out of the way."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.test_tree_increments import BASE, END, as_told, increment_of, told

from diffkeeper import tree_files
from diffkeeper.domain import errors, frames, tree_increments, trees
from diffkeeper.domain.receipts import Level
from diffkeeper.domain.volumes import UnmetPolicy
from diffkeeper.tree_store import TreeStore
from diffkeeper_capture import volume_recovery
from diffkeeper_capture.spool import Spool
from diffkeeper_capture.staged import Staged
from diffkeeper_capture.volume_order import Order, VolumeFiles
from diffkeeper_capture.volume_recovery import Beginning

SPOOL_BYTES = 1 << 20


class Handed:
    """A tree state as a replicator hands it over: a whole one, and what became of it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        before, self.after, touched = told(list(range(3, 250)), 6)
        self.base, self.state = folder / tree_files.BASE, folder / "promoted.state"
        self.base.write_bytes(trees.encode(before))
        self.state.write_bytes(tree_increments.encode(increment_of(self.after, touched)))

    def order(self, parent: frames.Tip = END) -> Order:
        return Order("v", Path("/nowhere"), 4, parent, Level.SITE, UnmetPolicy.BLOCK, self.state, "auto")


async def test_a_reign_begins_with_what_was_made_ready_and_what_became_of_it(tmp_path: Path) -> None:
    handed, files = Handed(tmp_path / "replicator"), VolumeFiles(tmp_path / "agent")
    staged = Staged.make(files, "v", handed.base, SPOOL_BYTES)
    spool = staged.take_spool()
    assert spool is not None
    start = await volume_recovery.find_start(handed.order(), files, spool, END, None, staged)
    assert (start.beginning, start.tip, start.based) == (Beginning.TRUST, END, True)
    assert start.stamp == handed.after.stamp
    reign = files.read_reign()
    assert reign is not None
    assert reign.epoch == 4
    start.tree.close()
    spool.close()
    again = TreeStore.open(files.tree_store)
    assert as_told(again.load()) == as_told(handed.after)
    again.close()


async def test_another_state_than_was_foreseen_begins_without_it(tmp_path: Path) -> None:
    handed, files = Handed(tmp_path / "replicator"), VolumeFiles(tmp_path / "agent")
    staged = Staged.make(files, "v", handed.base, SPOOL_BYTES)
    handed.state.write_bytes(trees.encode(handed.after))
    wanted = as_told(trees.decode(handed.state.read_bytes()))
    spool = staged.take_spool()
    assert spool is not None
    start = await volume_recovery.find_start(handed.order(), files, spool, END, None, staged)
    assert staged.store is None
    start.tree.close()
    spool.close()
    again = TreeStore.open(files.tree_store)
    assert as_told(again.load()) == wanted
    again.close()


async def test_what_is_told_on_from_elsewhere_is_refused_and_nothing_stays_open(tmp_path: Path) -> None:
    handed, files = Handed(tmp_path / "replicator"), VolumeFiles(tmp_path / "agent")
    staged = Staged.make(files, "v", handed.base, SPOOL_BYTES)
    spool = staged.take_spool()
    assert spool is not None
    with pytest.raises(errors.Corrupt) as caught:
        await volume_recovery.find_start(handed.order(BASE), files, spool, BASE, None, staged)
    assert caught.value.reason == "no-tree-state"
    spool.close()
    staged.close()
    staged.close()  # again does no harm
    Spool.open(files.spool, SPOOL_BYTES).close()


async def test_after_a_power_cut_the_tree_is_made_again_of_what_was_handed_over(tmp_path: Path) -> None:
    """The tree's file is as it was prepared: what became of it had not reached the disk."""
    handed, files = Handed(tmp_path / "replicator"), VolumeFiles(tmp_path / "agent")
    Staged.make(files, "v", handed.base, SPOOL_BYTES).close()
    order = handed.order()
    files.write_reign(order, based=True)
    spool = Spool.open(files.spool, SPOOL_BYTES)
    start = volume_recovery._restart(order, files, spool, END)
    assert (start.tip, start.stamp) == (END, handed.after.stamp)
    assert list(start.tree.paths()) == list(handed.after.tree.paths())
    start.tree.close()
    spool.close()


def test_a_state_of_another_volume_is_not_made_ready(tmp_path: Path) -> None:
    handed, files = Handed(tmp_path / "replicator"), VolumeFiles(tmp_path / "agent")
    with pytest.raises(errors.Corrupt):
        Staged.make(files, "other", handed.base, SPOOL_BYTES)
    assert not files.tree_store.exists()
