"""The ladder applied: every point that stays is exact, what goes is answered with the nearest, and a replica
whose journal was shortened is verified and rebuilt all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import histories
from tests.support.history_rigs import VOLUME, Rig

from diffkeeper.domain import clocks, errors, frames, positions
from diffkeeper.domain.retention import Policy, Step
from diffkeeper_replicator import archives, checkpoints, directory, pruning, verify, volume_history
from diffkeeper_replicator.cursor import VolumeFiles
from diffkeeper_replicator.pruning import Pruner

EVERYTHING_S = 10**9


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(volume_history, "REPLAY_MAX_COST", 60_000)
    monkeypatch.setattr(pruning, "ARCHIVE_BYTES", 30_000)
    made = Rig(tmp_path)
    yield made
    made.close()


def now_us(log: list[frames.Frame]) -> int:
    return clocks.to_micros(log[-1].header.last) + 1000


def kept(rig: Rig) -> list[int]:
    return [sequence for sequence, _, _ in rig.history.index.kept(0, 1 << 60)]


def all_kept_are_exact(rig: Rig, log: list[frames.Frame]) -> None:
    some = kept(rig)
    some = some[:: max(1, len(some) // 25)] + some[-1:]
    for sequence, expected in histories.replays_at(log, frozenset(some)):
        state = rig.history.state_at(log[sequence - 1].position)
        assert histories.snapshot(state) == expected, sequence


def test_every_barrier_stays_and_the_rest_goes(rig: Rig) -> None:
    log = histories.made_frames(21, 700)
    rig.append(log)
    rig.history.grow()
    sealed = rig.history.journal.sealed_sequence()
    rig.history.set_policy(Policy(0, None))
    done = Pruner(rig.history).prune(now_us(log))
    assert done["archived"] == sealed
    assert len(archives.found(rig.history.builder.archives)) > 1
    ends = {archive.last for archive in archives.found(rig.history.builder.archives)}
    barriers = {f.position.sequence for f in log if f.header.flags & frames.Flag.BARRIER}
    in_archives = {sequence for sequence in kept(rig) if sequence <= sealed}
    assert in_archives == {one for one in barriers if one <= sealed} | ends
    rig.journal.drop_upto(done["archived"])
    all_kept_are_exact(rig, log)
    gone = next(f for f in log if f.position.sequence not in kept(rig))
    with pytest.raises(errors.NotFound) as missing:
        rig.history.resolve(str(gone.position), now_us(log))
    assert missing.value.facts["before"] or missing.value.facts["after"]
    with pytest.raises(errors.NotFound):
        rig.history.state_at(gone.position)
    assert Pruner(rig.history).prune(now_us(log))["folded"] == 0, "applying it again changes nothing"


def test_tags_and_branches_stay_whatever_the_policy_says(rig: Rig) -> None:
    log = histories.made_frames(22, 500)
    rig.append(log)
    rig.history.grow()
    rig.history.set_tag("good", log[7].position)
    point = rig.history.resolve(str(log[11].position), now_us(log))
    rig.history.branches.create("test1", point, rig.history.state_at(point.position))
    rig.history.set_policy(Policy(0, 0, (Step(EVERYTHING_S, EVERYTHING_S),)))
    Pruner(rig.history).prune(now_us(log))
    assert {8, 12} <= set(kept(rig))
    all_kept_are_exact(rig, log)


def test_what_is_older_than_the_ladder_goes_and_its_room_is_given_back(rig: Rig) -> None:
    log = histories.made_frames(23, 900)
    rig.append(log)
    rig.history.grow()
    before = sum(path.stat().st_size for path in rig.history.checkpoints.iterdir())
    rig.history.set_policy(Policy(0, 0))
    done = Pruner(rig.history).prune(now_us(log))
    rig.journal.drop_upto(done["archived"])
    rig.histories.drop_unused_chunks()
    assert done["dropped"] > 0
    assert sum(path.stat().st_size for path in rig.history.checkpoints.iterdir()) < before
    all_kept_are_exact(rig, log)
    history = rig.reopened()
    all_kept_are_exact(rig, log)
    assert history.resolve("latest", now_us(log)).position == log[-1].position


def test_a_lost_index_is_made_again_from_archives_and_journal(rig: Rig) -> None:
    log = histories.made_frames(24, 700)
    rig.append(log)
    rig.history.grow()
    rig.history.set_policy(Policy(0, None))
    done = Pruner(rig.history).prune(now_us(log))
    rig.journal.drop_upto(done["archived"])
    before = kept(rig)
    rig.histories.close()
    for path in (rig.folder / VOLUME / "history").glob("index.db*"):
        path.unlink()
    rig.histories = rig._opened()
    rig.history.grow()
    assert kept(rig) == before
    all_kept_are_exact(rig, log)


def test_a_replica_is_rebuilt_from_a_shortened_journal(rig: Rig) -> None:
    log = histories.made_frames(25, 700)
    rig.append(log)
    rig.history.grow()
    rig.history.set_policy(Policy(EVERYTHING_S))
    done = Pruner(rig.history).prune(now_us(log))
    assert done["folded"] == 0
    assert rig.journal.drop_upto(done["archived"]) > 0
    assert rig.journal.first > 1
    all_kept_are_exact(rig, log)
    path = rig.folder / "replica"
    made = directory.open_or_begin(VolumeFiles(rig.folder / VOLUME), VOLUME, path, rig.journal)
    for frame in rig.journal.frames_after(made.tip.position):
        made.apply(frame, frame.columns())
    found = made.digest()
    made.close(clean=True)
    twin = rig.folder / "twin"
    twin.mkdir()
    verify.replay(VOLUME, log, twin)
    assert verify.differences(verify.digest(twin), found) == []


def test_a_damaged_archive_is_told_and_nothing_wrong_is_served(rig: Rig) -> None:
    log = histories.made_frames(26, 700)
    rig.append(log)
    rig.history.grow()
    rig.history.set_policy(Policy(EVERYTHING_S))
    done = Pruner(rig.history).prune(now_us(log))
    rig.journal.drop_upto(done["archived"])
    for position in checkpoints.found(rig.history.checkpoints):
        checkpoints.path_of(rig.history.checkpoints, position).unlink()
    archive = archives.found(rig.history.builder.archives)[0]
    raw = bytearray(archive.path.read_bytes())
    raw[-5] ^= 1
    archive.path.write_bytes(raw)
    history = rig.reopened()
    assert list(history.damaged_archives) == [archive.path.name]
    with pytest.raises(errors.Corrupt):
        history.state_at(positions.Position(1, archive.last))


def test_without_a_policy_of_its_own_nothing_younger_than_a_week_goes_and_the_old_is_thinned(
    rig: Rig,
) -> None:
    log = histories.made_frames(29, 700)
    rig.append(log)
    rig.history.grow()
    assert not rig.history.has_own_policy
    week_us = 7 * 86_400 * 1_000_000
    oldest = clocks.to_micros(log[0].header.first)
    nothing = {"archived": 0, "folded": 0, "dropped": 0}
    assert Pruner(rig.history).prune(oldest + week_us) == nothing
    rig.history.set_tag("good", log[0].position)
    assert not rig.reopened().has_own_policy, "a tag is no policy"
    done = Pruner(rig.history).prune(now_us(log) + 2 * week_us)
    assert done["folded"] > 0
    barriers = {f.position.sequence for f in log if f.header.flags & frames.Flag.BARRIER}
    assert barriers | {1} <= set(kept(rig)), "a month goes by before barriers are thinned"
    Pruner(rig.history).prune(now_us(log) + 500 * week_us)
    assert len(kept(rig)) < len(barriers)
    assert {1, len(log)} <= set(kept(rig)), "never all of it"
    all_kept_are_exact(rig, log)
