"""How long frames stay open, and how often the ring is looked at, at rates from calm to flooded."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffkeeper_capture.pace import LOOK_BYTES, Pace

LEAST_S, MOST_S = 0.002, 0.05


def settled(records_a_second: float, bytes_a_second: float, *, is_behind: bool = False) -> Pace:
    """After two seconds of an even load, looked at every 5 ms."""
    pace = Pace(LEAST_S, MOST_S, 0.0)
    for tick in range(1, 401):
        now = tick * 0.005
        pace.adapt(now, int(now * records_a_second), int(now * bytes_a_second), is_behind=is_behind)
    return pace


@pytest.mark.parametrize("rate", [0, 100, 1000, 1190])
def test_a_calm_program_has_the_shortest_frames(rate: int) -> None:
    assert settled(rate, rate * 4096).linger_s == pytest.approx(LEAST_S)


@pytest.mark.parametrize("rate", [2100, 15_000, 100_000])
def test_a_busy_program_has_the_longest_frames(rate: int) -> None:
    assert settled(rate, rate * 4096).linger_s == pytest.approx(MOST_S)


def test_more_records_never_mean_shorter_frames() -> None:
    lingers = [settled(rate, rate * 100).linger_s for rate in range(500, 6000, 250)]
    assert all(before <= after + 1e-9 for before, after in itertools.pairwise(lingers))


def test_frames_get_longer_while_the_stream_is_behind_and_short_again_afterwards() -> None:
    pace = settled(10, 1000, is_behind=True)
    assert pace.linger_s == pytest.approx(MOST_S)
    for tick in range(1, 40):
        pace.adapt(2 + tick * 0.01, 20, 2000, is_behind=False)
    assert pace.linger_s == pytest.approx(LEAST_S)


def test_a_flood_of_bytes_is_looked_at_more_often_than_frames_are_cut() -> None:
    pace = settled(8000, 100e6)
    assert pace.linger_s == pytest.approx(MOST_S)
    assert pace.look_s * 100e6 <= 1.1 * LOOK_BYTES


@given(
    st.lists(
        st.tuples(st.floats(0.0001, 1), st.integers(0, 10**6), st.integers(0, 10**9), st.booleans()),
        max_size=8,
    )
)
def test_the_times_stay_within_what_was_set_whatever_comes(
    looks: list[tuple[float, int, int, bool]],
) -> None:
    pace = Pace(LEAST_S, MOST_S, 0.0)
    now, records, byte_count = 0.0, 0, 0
    for after, more, more_bytes, is_behind in looks:
        now, records, byte_count = now + after, records + more, byte_count + more_bytes
        pace.adapt(now, records, byte_count, is_behind=is_behind)
        assert LEAST_S <= pace.look_s <= pace.linger_s <= MOST_S
