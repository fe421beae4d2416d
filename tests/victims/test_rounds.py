"""The rounds on a twin whose failover is a copy: they pass when it is perfect, and see when it is not."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from tests.victims import copying_twin, redis_victim, rounds, sqlite_victim, victims

# More than four clients have under way at any instant.
CUT_BYTES = 10_000


@pytest.mark.disaster
def test_rounds_pass_on_a_perfect_failover_and_back(open_folder: Path, base_seed: int) -> None:
    print(f"DK_SEED={base_seed}")
    with contextlib.closing(copying_twin.CopyingTwin(open_folder)) as twin:
        arena = rounds.Arena(twin, sqlite_victim.SqliteVictim("wal"), open_folder, "remote")
        for seed in (base_seed, base_seed + 1):
            outcome = arena.lose_leader(seed)
            assert outcome.problems() == []
            assert outcome.verdict.acknowledged > 0
        assert arena.leader == "east"
        assert arena.hand_over(base_seed).problems() == []


@pytest.mark.disaster
def test_rounds_see_an_end_that_was_cut_at_remote(open_folder: Path, base_seed: int) -> None:
    outcome = _cut_round(open_folder, base_seed, "remote", lag_ms=60_000)
    assert outcome.verdict.missing


@pytest.mark.disaster
def test_rounds_see_a_loss_beyond_the_reported_lag_at_observe(open_folder: Path, base_seed: int) -> None:
    """The lag said to be zero: what was acknowledged before the last answer must be there."""
    outcome = _cut_round(open_folder, base_seed, "observe", lag_ms=0, cut_bytes=100_000_000)
    assert outcome.verdict.missing


@pytest.mark.disaster
def test_rounds_allow_a_loss_within_the_reported_lag_at_observe(open_folder: Path, base_seed: int) -> None:
    outcome = _cut_round(open_folder, base_seed, "observe", lag_ms=60_000)
    assert outcome.problems() == []
    assert outcome.verdict.lost_in_lag


def _cut_round(
    folder: Path, seed: int, durability: str, lag_ms: float, cut_bytes: int = CUT_BYTES
) -> rounds.Outcome:
    print(f"DK_SEED={seed}")
    # Never rewritten, so that there is one file, whose end is the end of the history.
    victim = redis_victim.RedisVictim(rewrite_from="64mb")
    victims.needs(victim)
    twin = copying_twin.CopyingTwin(folder, cut_bytes=cut_bytes, lag_ms=lag_ms)
    with contextlib.closing(twin):
        arena = rounds.Arena(twin, victim, folder, durability)
        return arena.lose_leader(seed)
