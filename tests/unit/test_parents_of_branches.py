"""An orphan branch is read and taken out however far the journal still goes back."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import histories
from tests.support.history_rigs import VOLUME, Rig

from diffkeeper.domain import clocks, errors, frames
from diffkeeper.domain.retention import Policy, Step
from diffkeeper_replicator import (
    comparisons,
    orphan_branches,
    parents,
    pruning,
    reclaim,
    verify,
    volume_history,
)
from diffkeeper_replicator.orphan_branches import Branch
from diffkeeper_replicator.pruning import Pruner

# The branch leaves the main line after so many frames.
PARENT = 25


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(volume_history, "REPLAY_MAX_COST", 60_000)
    monkeypatch.setattr(pruning, "ARCHIVE_BYTES", 30_000)
    made = Rig(tmp_path)
    yield made
    made.close()


def left_at(rig: Rig, log: list[frames.Frame], seed: int) -> Branch:
    """What a writer that was fenced after ``log`` had in its directory, as a branch."""
    root, rng = rig.folder / "left", random.Random(seed)
    root.mkdir()
    verify.replay(VOLUME, log, root)
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with path.open("r+b") as file:
                file.seek(rng.randrange(6000))
                file.write(rng.randbytes(rng.randrange(1, 3000)))
    (root / "new").write_bytes(rng.randbytes(5000))
    parent = frames.Tip(log[-1].position, log[-1].hash)
    note = orphan_branches.Note(
        name="east-1",
        volume=VOLUME,
        site="east",
        epoch=1,
        parent=str(parent.position),
        parent_hash=parent.hash.hex(),
        end=str(parent.position),
        frames=0,
        why="forced failover",
        made_us=1,
        path="/data",
    )
    orphans = rig.folder / VOLUME / orphan_branches.FOLDER
    reclaim.reclaim(orphans, root, rig.journal, parent, reclaim.Left(note, [], {}), allow_setid=False)
    return orphan_branches.find(orphans, "east-1")


def branched(rig: Rig, seed: int) -> tuple[Branch, list[frames.Frame]]:
    log = histories.made_frames(seed, 700)
    assert len(log) > 2 * PARENT
    rig.append(log[:PARENT])
    branch = left_at(rig, log[:PARENT], seed)
    rig.append(log[PARENT:])
    return branch, log


def shorten(rig: Rig, log: list[frames.Frame], policy: Policy) -> None:
    rig.history.grow()
    rig.history.set_policy(policy)
    done = Pruner(rig.history).prune(clocks.to_micros(log[-1].header.last) + 1000)
    rig.journal.drop_upto(done["archived"])
    assert rig.journal.first > PARENT + 1, "the journal has to begin after the parent"


def files_of(root: Path) -> dict[bytes, bytes]:
    found = (path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    return {os.fsencode(path.relative_to(root)): path.read_bytes() for path in found}


@pytest.mark.parametrize("seed", [41, 42])
def test_a_branch_is_taken_out_the_same_when_the_journal_begins_after_its_parent(rig: Rig, seed: int) -> None:
    branch, log = branched(rig, seed)
    changes = branch.changes()
    comparisons.write_out(branch, changes, rig.journal, rig.folder / "before")
    before = files_of(rig.folder / "before")
    touched = parents.touched_since(VOLUME, rig.folder / VOLUME, rig.journal, log[PARENT - 1].position)
    shorten(rig, log, Policy(10**9))
    comparisons.write_out(branch, changes, rig.journal, rig.folder / "after")
    assert files_of(rig.folder / "after") == before
    assert before[b"new"]
    again = parents.touched_since(VOLUME, rig.folder / VOLUME, rig.journal, log[PARENT - 1].position)
    assert again == touched


def test_the_parent_of_an_orphan_branch_stays_when_everything_around_it_is_thinned(rig: Rig) -> None:
    branch, log = branched(rig, 43)
    changes = branch.changes()
    comparisons.write_out(branch, changes, rig.journal, rig.folder / "before")
    shorten(rig, log, Policy(0, 0, (Step(10**8, 10**9),)))
    comparisons.write_out(branch, changes, rig.journal, rig.folder / "after")
    assert files_of(rig.folder / "after") == files_of(rig.folder / "before")
    exact = parents.touched_since(VOLUME, rig.folder / VOLUME, rig.journal, log[PARENT - 1].position)
    assert exact == {one for frame in log[PARENT:] for one in frame.columns().file_ids}


def test_a_parent_that_is_not_kept_is_named_and_everything_counts_as_changed(rig: Rig) -> None:
    branch, log = branched(rig, 44)
    changes = branch.changes()
    hidden = branch.directory.parent.with_name("elsewhere")
    branch.directory.parent.rename(hidden)
    shorten(rig, log, Policy(0, 0, (Step(1, 1),)))
    hidden.rename(branch.directory.parent)
    with pytest.raises(errors.NotFound, match="does not lead to"):
        comparisons.write_out(branch, changes, rig.journal, rig.folder / "after")
    assert comparisons.changed_in_main(branch, changes, rig.journal, None) == changes
