"""Positions order by epoch, then sequence, and are written so that they can be read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffkeeper.domain import errors, positions
from diffkeeper.domain.positions import Position

POSITIONS = st.builds(Position, st.integers(0, 10**17), st.integers(0, 10**17))


@given(POSITIONS)
def test_what_is_written_is_read(position: Position) -> None:
    assert positions.parse(str(position)) == position


@given(POSITIONS, POSITIONS)
def test_order_is_by_epoch_then_sequence(one: Position, other: Position) -> None:
    assert (one < other) == ((one.epoch, one.sequence) < (other.epoch, other.sequence))


@given(POSITIONS)
def test_the_next_comes_after_and_start_before_all(position: Position) -> None:
    assert positions.START <= position < position.next()
    assert position.next().epoch == position.epoch


@pytest.mark.parametrize(
    "text", ["", "1", "1.", ".1", "1.2.3", "-1.2", "1.2 ", " 1.2", "\u0661.\u0662", "1.2\n", "9" * 19 + ".1"]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(errors.Refused):
        positions.parse(text)
