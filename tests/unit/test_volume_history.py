"""The history of a volume follows its journal, gives every position exactly, and survives what happens to
it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import histories
from tests.support.history_rigs import Rig
from tests.support.made_logs import FrameChain

from diffkeeper.domain import errors, frames, positions
from diffkeeper.domain.deltas import ROOT_ID, Delta, Op, write
from diffkeeper_replicator import checkpoints, volume_history
from diffkeeper_replicator.path_index import NAMELESS, Wanted

NOW = 1_800_000_000_000_000


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()


@pytest.fixture
def cheap_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volume_history, "REPLAY_MAX_COST", 60_000)


@pytest.mark.usefixtures("cheap_checkpoints")
def test_every_position_is_the_replay_of_the_log_up_to_it(rig: Rig) -> None:
    log = histories.made_frames(11, 500)
    rig.append(log[:30])
    rig.history.grow()
    rig.append(log[30:])
    rig.history.grow()
    assert len(checkpoints.found(rig.history.checkpoints)) > 3
    order = list(range(len(log)))
    random.Random(1).shuffle(order)
    for nth in order[:25]:
        state = rig.history.state_at(log[nth].position)
        assert histories.snapshot(state) == histories.replayed(log, nth + 1), log[nth].position


@pytest.mark.usefixtures("cheap_checkpoints")
def test_a_history_that_is_opened_again_goes_on(rig: Rig) -> None:
    log = histories.made_frames(12, 300)
    for start in range(0, len(log), 20):
        rig.append(log[start : start + 20])
        rig.reopened().grow(most_steps=15)
    rig.history.grow()
    assert rig.history.index.tip().position == log[-1].position
    assert histories.snapshot(rig.history.state_at(log[-1].position)) == histories.replayed(log)
    assert rig.history.index.totals(Wanted())["frames"] == len(log)


@pytest.mark.usefixtures("cheap_checkpoints")
def test_a_lost_index_and_damaged_checkpoints_are_made_again_from_the_log(rig: Rig) -> None:
    log = histories.made_frames(13, 300)
    rig.append(log)
    rig.history.grow()
    before = rig.history.index.rows(Wanted(limit=1000))
    folder = rig.history.folder
    for position in checkpoints.found(folder / "checkpoints")[1:]:
        path = checkpoints.path_of(folder / "checkpoints", position)
        path.write_bytes(path.read_bytes()[:-1])
    rig.histories.close()
    for path in folder.glob("index.db*"):
        path.unlink()
    rig.histories = rig._opened()
    rig.history.grow()
    assert rig.history.index.rows(Wanted(limit=1000)) == before
    for nth in (len(log) // 2, len(log) - 1):
        state = rig.history.state_at(log[nth].position)
        assert histories.snapshot(state) == histories.replayed(log, nth + 1)


@pytest.mark.usefixtures("cheap_checkpoints")
def test_a_tail_that_the_chain_left_behind_leaves_the_history_too(rig: Rig) -> None:
    log = histories.made_frames(14, 200)
    rig.append(log)
    rig.history.grow()
    parent = log[15]
    chain = FrameChain(tip=frames.Tip(parent.position, parent.hash))
    chain.epoch = 2
    new = [chain.frame([Delta(Op.BARRIER, 0, args=("fsync", n))]) for n in range(60)]
    rig.journal.cut_after(parent.position)
    rig.append(new)
    rig.history.grow()
    assert rig.history.index.tip() == frames.Tip(new[-1].position, new[-1].hash)
    expected = histories.replayed(log, 16)
    assert histories.snapshot(rig.history.state_at(new[-1].position)) == expected
    assert rig.history.at(log[20].position) is None
    with pytest.raises(errors.NotFound):
        rig.history.state_at(log[20].position)


def test_a_frame_can_be_entered_in_the_middle(rig: Rig) -> None:
    chain = FrameChain()
    log = [
        chain.frame([Delta(Op.CREATE, 2, args=(ROOT_ID, b"f", 0o644, 0, 0))]),
        chain.frame([write(2, n, b"abc"[n : n + 1]) for n in range(3)]),
    ]
    rig.append(log)
    rig.history.grow()
    for upto, content in enumerate([b"", b"a", b"ab", b"abc"]):
        state = rig.history.state_at(positions.Position(1, 2), upto)
        assert histories.content(state, 2) == content


def test_the_index_knows_each_path_at_the_moment_of_its_delta(rig: Rig) -> None:
    chain = FrameChain()
    made = [
        Delta(Op.MKDIR, 2, args=(ROOT_ID, b"d", 0o755, 0, 0)),
        Delta(Op.CREATE, 3, args=(2, b"f", 0o644, 0, 0)),
        write(3, 0, b"x" * 10),
        Delta(Op.RENAME, 2, args=(ROOT_ID, b"d", ROOT_ID, b"e", False)),
        write(3, 10, b"y" * 5),
    ]
    log = [
        chain.frame(made),
        chain.frame([write(3, 0, b"z" * 100), Delta(Op.BARRIER, 0, args=("fsync", 1))]),
        chain.frame([Delta(Op.UNLINK, 3, args=(2, b"f"))]),
        chain.frame([write(3, 0, b"late")]),
    ]
    rig.append(log)
    rig.history.grow()
    rows = rig.history.index.rows(Wanted())
    paths = [{touch.path: touch.bytes for touch in row["paths"]} for row in rows]
    assert paths == [{b"d": 0, b"d/f": 10, b"e": 0, b"e/f": 5}, {b"e/f": 100}, {b"e/f": 0}, {NAMELESS: 4}]

    def found(**wanted: object) -> list[str]:
        return [row["position"] for row in rig.history.index.rows(Wanted(**wanted))]  # type: ignore[arg-type]

    assert found(path=b"d") == ["1.1"]
    assert found(path=b"e") == ["1.1", "1.2", "1.3"]
    assert found(path=b"*/f") == ["1.1", "1.2", "1.3"]
    assert found(path=b"e/f", limit=1) == ["1.3"]
    assert found(path=b"e/f", limit=1, after=1) == ["1.2"]
    assert found(path=b"nothing") == []
    assert found(min_bytes=len(log[0].wire)) == [
        row["position"] for row in rows if row["bytes"] >= len(log[0].wire)
    ]
    assert rig.history.index.totals(Wanted(path=b"e"))["frames"] == 3


def test_activity_counts_everything_once(rig: Rig) -> None:
    log = histories.made_frames(15, 300)
    rig.append(log)
    rig.history.grow()
    found = rig.history.index.activity(Wanted(), 17)
    assert found is not None
    assert sum(found["deltas"]) == sum(frame.header.count for frame in log)
    assert len(found["bytes"]) == 17


def test_when_is_answered_from_the_index(rig: Rig) -> None:
    log = histories.made_frames(16, 60)
    rig.append(log)
    assert rig.history.resolve("latest", NOW).position == log[-1].position
    assert rig.history.resolve("before:1.5", NOW).position == log[3].position
    rig.history.set_tag("good", log[2].position)
    assert rig.reopened().resolve("tag:good", NOW).position == log[2].position
    with pytest.raises(errors.NotFound) as missing:
        rig.history.resolve("1.99999", NOW)
    assert missing.value.facts["before"] == str(log[-1].position)


def test_a_torn_record_at_the_end_is_not_there_yet(rig: Rig) -> None:
    log = histories.made_frames(17, 60)
    rig.append(log)
    last = max((rig.folder / "orders" / "journal").glob("*.journal"))
    with last.open("ab") as file:
        file.write(last.read_bytes()[:150])
    assert rig.history.grow() == len(log)
    assert rig.history.grow() == 0
