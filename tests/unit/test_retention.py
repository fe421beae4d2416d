"""The ladder, and folding: what is left out is never missed at a point that is kept."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import histories

from diffkeeper.domain import errors, retention
from diffkeeper.domain.retention import Candidate, Policy, Step
from diffkeeper_replicator import archives, folding
from diffkeeper_replicator.states import State

S = 1_000_000
NOW = 10_000 * S
LADDER = Policy(100, 1000, (Step(5000, 600),))

POINTS = st.lists(
    st.tuples(st.integers(0, 10_000), st.booleans()),
    min_size=1,
    max_size=60,
    unique_by=lambda point: point[0],
).map(lambda found: [Candidate(n, at * S, barrier) for n, (at, barrier) in enumerate(sorted(found), 1)])


def test_each_rung_keeps_what_it_says() -> None:
    points = [Candidate(n, at * S, n % 2 == 0) for n, at in enumerate(range(0, 10_000, 50), 1)]
    stay = {
        point.at_us // S: point for point in points if point.sequence in retention.kept(points, LADDER, NOW)
    }
    assert [at for at in stay if at >= 9900] == [9900, 9950]
    assert all(stay[at].is_barrier for at in stay if 9000 <= at < 9900)
    assert sum(9000 <= at < 9900 for at in stay) == 9
    old = [at for at in stay if 5000 <= at < 9000]
    assert len(old) == len({at // 600 for at in old}) >= 6
    assert not [at for at in stay if at < 5000]


@given(POINTS, st.sets(st.integers(1, 60)))
def test_applying_a_policy_again_changes_nothing(points: list[Candidate], pinned: set[int]) -> None:
    once = retention.kept(points, LADDER, NOW, pinned)
    left = [point for point in points if point.sequence in once]
    assert retention.kept(left, LADDER, NOW, pinned) == once
    assert points[-1].sequence in once
    assert {point.sequence for point in points} & pinned <= set(once)


@given(POINTS)
def test_the_policy_that_keeps_all_does(points: list[Candidate]) -> None:
    assert retention.kept(points, retention.KEEP_ALL, NOW) == [point.sequence for point in points]


@pytest.mark.parametrize(
    "policy", [Policy(100, 50), Policy(1, 2, (Step(1, 1),)), Policy(-1), Policy(1, 2, (Step(3, 0),))]
)
def test_a_ladder_that_does_not_rise_is_refused(policy: Policy) -> None:
    with pytest.raises(errors.Refused):
        retention.check(policy)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 30))
def test_folded_steps_lead_to_the_same_states(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    folder = tmp_path_factory.mktemp("f")
    log = histories.made_frames(seed, 80)
    kept = sorted(random.Random(seed).sample(range(1, len(log) + 1), min(4, len(log))))
    state, at = State.empty(folder), 0
    for end in kept:
        alive = histories.state_of(log[:end], folder).tree.nodes
        for body in folding.fold([frame.columns() for frame in log[at:end]], alive):
            state.apply(histories.tip(log[end - 1]), log[end - 1].header.last, body)
        at = end
        assert histories.snapshot(state) == histories.replayed(log, end)


def test_an_archive_reads_back_and_refuses_a_flipped_bit(tmp_path: Path) -> None:
    log = histories.made_frames(3, 200)
    steps = [archives.of_frame(frame, frame.columns()) for frame in log]
    archive = archives.write(tmp_path, 1, steps)
    assert archive is not None
    assert archives.found(tmp_path) == [archive]
    assert archives.head(archive).kept == [frame.position.sequence for frame in log]
    again = list(archives.read(archive, after=5))
    assert [archives.encode(step) for step in again] == [archives.encode(step) for step in steps[5:]]
    raw = bytearray(archive.path.read_bytes())
    for at in (3, 50, len(raw) // 2, len(raw) - 1):
        raw[at] ^= 4
        archive.path.write_bytes(raw)
        with pytest.raises(errors.Corrupt):
            list(archives.read(archive))
        raw[at] ^= 4
