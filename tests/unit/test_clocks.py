"""Laws of the hybrid logical clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffkeeper.domain import clocks, errors, limits

MICROS = st.integers(0, 1 << 51)
STAMPS = MICROS.map(clocks.from_micros)


@given(STAMPS, st.lists(MICROS, max_size=20))
def test_ticks_only_go_up_whatever_the_wall_does(stamp: int, wall: list[int]) -> None:
    for now_us in wall:
        after = clocks.tick(stamp, now_us)
        assert after > stamp
        assert clocks.to_micros(after) >= now_us
        stamp = after


@given(STAMPS, STAMPS, MICROS)
def test_what_is_heard_comes_before_what_follows(last: int, remote: int, now_us: int) -> None:
    drift_ms = (clocks.to_micros(remote) - now_us) // 1000
    if drift_ms > limits.CLOCK_MAX_DRIFT_MS:
        with pytest.raises(errors.Refused, match="ahead of this clock"):
            clocks.receive(last, remote, now_us)
    else:
        after = clocks.receive(last, remote, now_us)
        assert after > last
        assert after > remote


@given(MICROS)
def test_micros_survive_the_way_there_and_back(micros: int) -> None:
    assert clocks.to_micros(clocks.from_micros(micros)) == micros


@given(STAMPS, MICROS)
def test_a_stamp_runs_ahead_of_the_wall_by_its_counter_only(stamp: int, now_us: int) -> None:
    after = clocks.tick(stamp, now_us)
    assert after == max(stamp + 1, clocks.from_micros(now_us))
