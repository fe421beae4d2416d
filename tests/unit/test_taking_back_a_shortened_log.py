"""A directory that a fenced writer left is taken back although the journal was shortened meanwhile."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import histories
from tests.support.history_rigs import VOLUME, Rig

from diffkeeper.domain import clocks, errors, frames
from diffkeeper.domain.retention import Policy
from diffkeeper_replicator import backward, orphan_branches, pruning, reclaim, verify, volume_history
from diffkeeper_replicator.pruning import Pruner

NOTE = orphan_branches.Note(
    name="east-1",
    volume=VOLUME,
    site="east",
    epoch=1,
    parent="1.1",
    parent_hash="",
    end="1.1",
    frames=0,
    why="forced failover",
    made_us=1,
    path="/data",
)


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(volume_history, "REPLAY_MAX_COST", 60_000)
    monkeypatch.setattr(pruning, "ARCHIVE_BYTES", 30_000)
    made = Rig(tmp_path)
    yield made
    made.close()


def shortened(rig: Rig, seed: int) -> list[frames.Frame]:
    log = histories.made_frames(seed, 700)
    rig.append(log)
    rig.history.grow()
    rig.history.set_policy(Policy(10**9))
    done = Pruner(rig.history).prune(clocks.to_micros(log[-1].header.last) + 1000)
    rig.journal.drop_upto(done["archived"])
    assert rig.journal.first > 1
    return log


def left_behind(folder: Path, log: list[frames.Frame], seed: int) -> Path:
    root = folder / "left"
    root.mkdir()
    verify.replay(VOLUME, log, root)
    rng = random.Random(seed)
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink() and rng.random() < 0.5:
            with path.open("r+b") as file:
                file.seek(rng.randrange(6000))
                file.write(rng.randbytes(rng.randrange(1, 3000)))
    (root / "new").write_bytes(rng.randbytes(5000))
    return root


@pytest.mark.parametrize("seed", [31, 32, 33])
def test_a_directory_is_taken_back_with_a_journal_that_was_shortened(rig: Rig, seed: int) -> None:
    log = shortened(rig, seed)
    root = left_behind(rig.folder, log, seed)
    tip = frames.Tip(log[-1].position, log[-1].hash)
    taken = reclaim.reclaim(
        rig.folder / VOLUME / "orphans",
        root,
        rig.journal,
        tip,
        reclaim.Left(NOTE, [], {}),
        allow_setid=False,
    )
    twin = rig.folder / "twin"
    twin.mkdir()
    verify.replay(VOLUME, log, twin)
    assert verify.differences(verify.digest(twin), verify.digest(root)) == []
    assert taken.base_end is not None
    for path in twin.rglob("*"):
        there = root / path.relative_to(twin)
        if not path.is_symlink():
            assert sorted(os.listxattr(there)) == sorted(os.listxattr(path)), path


def test_contents_are_not_guessed_where_the_log_does_not_go_back(rig: Rig) -> None:
    log = shortened(rig, 34)
    tip = frames.Tip(log[-1].position, log[-1].hash)
    with pytest.raises(errors.Corrupt, match="what comes before is not known"):
        list(backward.Images({2}).pieces(rig.journal, tip))
