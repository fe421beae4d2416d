"""The history of a volume from frames in any order."""

from __future__ import annotations

import random

from tests.support import framing

from diffkeeper.domain import frames, lineages, positions, volumes


def links(*chains: list[frames.Frame]) -> list[lineages.Link]:
    return [lineages.link_of(frame, number + 1) for chain in chains for number, frame in enumerate(chain)]


def tip(frame: frames.Frame) -> frames.Tip:
    return frames.Tip(frame.position, frame.hash)


def test_the_main_line_is_found_in_any_order_and_tails_are_told_apart() -> None:
    west = volumes.Origin("orders", "west")
    first = list(framing.chain(10))
    # Epoch 2 goes on from 1.7; what the fenced writer put behind it is a tail.
    second = list(framing.chain(5, origin=west, epoch=2, parent=tip(first[6])))
    found = links(first, second)
    random.Random(1).shuffle(found)
    lineage = lineages.trace(found)
    assert [link.hash for link in lineage.main] == [frame.hash for frame in [*first[:7], *second]]
    assert [link.position for link in lineage.tails] == [frame.position for frame in first[7:]]
    assert lineage.tip == positions.Position(2, 12)
    assert not lineage.holes and not lineage.cut_off


def test_a_hole_ends_the_main_line_and_is_named() -> None:
    whole = list(framing.chain(10))
    lineage = lineages.trace(links(whole[:4], whole[6:]))
    assert lineage.tip == positions.Position(1, 4)
    assert [(str(hole.after), str(hole.parent)) for hole in lineage.holes] == [("1.4", "1.6")]
    assert len(lineage.cut_off) == 4


def test_the_same_frame_twice_is_one() -> None:
    whole = list(framing.chain(5))
    assert len(lineages.trace(links(whole, whole[2:])).main) == 5


def test_nothing_is_an_empty_history() -> None:
    assert lineages.trace([]).tip == positions.START
