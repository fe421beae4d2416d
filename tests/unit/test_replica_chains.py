"""Which link of a chain is read next, and what a frame found there is: a table."""

from __future__ import annotations

import pytest
from tests.support.made_logs import FrameChain

from diffkeeper.domain import errors, frames, positions
from diffkeeper_replicator import chains


def tip(text: str, mark: int = 0) -> frames.Tip:
    return frames.Tip(positions.parse(text), bytes([mark]) * 32)


START = frames.ORIGIN_TIP
CHAIN = (
    chains.Link("east", 1, START),
    chains.Link("west", 2, tip("1.100")),
    chains.Link("east", 4, tip("2.150")),
)
# The leaders of epochs 2 and 3 died before anybody saw a frame of theirs.
VOID = (
    chains.Link("east", 1, START),
    chains.Link("west", 2, tip("1.7")),
    chains.Link("east", 3, tip("1.7")),
    chains.Link("west", 4, tip("1.7")),
)
OPEN = (CHAIN[0], chains.Link("west", 2, None))


@pytest.mark.parametrize(
    ("at", "chain", "index", "end"),
    [
        (START, CHAIN, 0, tip("1.100")),
        (tip("1.99"), CHAIN, 0, tip("1.100")),
        (tip("1.100"), CHAIN, 1, tip("2.150")),
        (tip("2.101"), CHAIN, 1, tip("2.150")),
        (tip("2.150"), CHAIN, 2, None),
        (tip("4.151"), CHAIN, 2, None),
        (tip("1.6"), VOID, 0, tip("1.7")),
        (tip("1.7"), VOID, 3, None),
        (tip("4.8"), VOID, 3, None),
        (tip("1.7"), VOID[:2], 1, None),
        (tip("1.7"), OPEN, 0, None),
        (tip("2.8"), OPEN, 1, None),
    ],
)
def test_the_link_that_continues_the_tip_is_read_up_to_the_next_ones_parent(
    at: frames.Tip, chain: tuple[chains.Link, ...], index: int, end: frames.Tip | None
) -> None:
    reading = chains.next_reading(at, chain)
    assert reading is not None
    assert (reading.index, reading.end) == (index, end)
    assert reading.end_unknown == (chain is OPEN and index == 0)


@pytest.mark.parametrize(
    ("at", "reason"),
    [
        (tip("1.101"), "tail-beyond-parent"),
        (tip("1.100", 7), "tail-beyond-parent"),  # another frame in the parent's place
        (tip("2.151"), "tail-beyond-parent"),
        (tip("3.120"), "tail-beyond-parent"),  # a reign that the chain does not have
        (tip("5.1"), "epoch-unknown"),
    ],
)
def test_a_tip_that_is_not_on_the_chain_is_told_and_never_read_on_from(at: frames.Tip, reason: str) -> None:
    with pytest.raises(errors.Corrupt) as caught:
        chains.next_reading(at, CHAIN)
    assert caught.value.reason == reason


@pytest.mark.parametrize("at", [tip("2.8"), tip("3.8"), tip("1.7", 7)])
def test_a_frame_of_a_reign_that_nobody_continued_is_told(at: frames.Tip) -> None:
    with pytest.raises(errors.Corrupt, match="nothing was mixed"):
        chains.next_reading(at, VOID)


def test_without_a_chain_nothing_is_read() -> None:
    assert chains.next_reading(START, ()) is None


def test_a_frame_is_taken_passed_by_compared_or_ends_the_link() -> None:
    made = FrameChain(volume="orders", origin="east")
    first, second, third = made.frame(), made.frame(), made.frame()
    at = frames.Tip(first.position, first.hash)
    end = frames.Tip(second.position, second.hash)
    reading = chains.Reading(0, CHAIN[0], end, False)
    fence = FrameChain(origin="east", tip=frames.Tip(positions.Position(2, 1), at.hash)).frame(
        flags=frames.Flag.FENCE
    )
    newer = FrameChain(origin="east", tip=frames.Tip(positions.Position(2, 1), at.hash)).frame()
    for frame, expected in (
        (first, chains.Seen()),
        (second, chains.Take()),
        (third, chains.Over()),
        (fence, chains.Skip()),
        (newer, chains.Over()),
    ):
        assert chains.judge("orders", at, reading, frame) == expected
    later = chains.Reading(2, CHAIN[2], None, False)
    assert chains.judge("orders", at, later, second) == chains.Skip()
