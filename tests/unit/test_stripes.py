"""Geometry, its words, and placement."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffkeeper.domain import errors, stripes

NODES = st.lists(
    st.builds(
        stripes.Node,
        st.integers(1, 40).map(lambda number: f"node-{number:02}"),
        st.sampled_from(["east", "west", "north"]),
    ),
    min_size=1,
    max_size=20,
    unique_by=lambda node: node.name,
)
SEGMENTS = st.binary(min_size=32, max_size=32)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("4+2", "survives the loss of any 2 of 6 nodes at 1.5 times the bytes"),
        ("2+8", "survives the loss of any 8 of 10 nodes at 5 times the bytes"),
        ("1+1", "survives the loss of either 1 of 2 nodes at 2 times the bytes"),
        ("3+0", "survives the loss of none of its 3 nodes"),
    ],
)
def test_a_geometry_says_what_it_survives(text: str, words: str) -> None:
    geometry = stripes.parse(text)
    assert str(geometry) == text
    assert geometry.words() == words


@pytest.mark.parametrize(
    "text", ["", "2", "2+", "+2", "0+2", "2+31", "17+17", "2+8 ", "-1+3", "٢+٨", "2+888"]
)
def test_what_is_no_geometry_is_refused(text: str) -> None:
    with pytest.raises(errors.Refused) as caught:
        stripes.parse(text)
    assert caught.value.reason == "bad-geometry"


@pytest.mark.parametrize(
    ("nodes", "geometry"),
    [(2, "1+1"), (3, "2+1"), (4, "2+2"), (6, "4+2"), (10, "7+3"), (12, "8+4"), (16, "12+4"), (60, "12+4")],
)
def test_the_default_follows_from_the_number_of_nodes(nodes: int, geometry: str) -> None:
    assert str(stripes.default(nodes)) == geometry


def test_one_node_protects_nothing() -> None:
    with pytest.raises(errors.Refused):
        stripes.default(1)


@given(NODES, SEGMENTS)
def test_no_two_shards_share_a_node_and_domains_take_turns(nodes: list[stripes.Node], segment: bytes) -> None:
    geometry = stripes.Geometry(2, 4)
    placed = stripes.place(segment, nodes, geometry)
    assert len(placed) == min(len(nodes), geometry.shards)
    assert len(set(placed.values())) == len(placed)
    domain_of = {node.name: node.domain for node in nodes}
    there = Counter(domain_of.values())
    load = Counter(domain_of[name] for name in placed.values())
    # A domain has two more than another only when the other has no node left.
    for one in there:
        for other in there:
            assert load[one] <= load[other] + 1 or load[other] == there[other]


@given(NODES, SEGMENTS)
def test_losing_a_node_moves_only_what_stood_there_when_all_are_alike(
    nodes: list[stripes.Node], segment: bytes
) -> None:
    alike = [stripes.Node(node.name, "east") for node in nodes]
    order = stripes.order(segment, alike)
    gone = order[0]
    assert stripes.order(segment, [node for node in alike if node != gone]) == order[1:]


@given(NODES, SEGMENTS)
def test_a_replacement_is_free_and_in_the_emptiest_domain(nodes: list[stripes.Node], segment: bytes) -> None:
    taken, free = nodes[: len(nodes) // 2], nodes[len(nodes) // 2 :]
    found = stripes.replacement(segment, nodes, taken)
    assert found in free
    load = Counter(node.domain for node in taken)
    assert found is not None and load[found.domain] == min(load[node.domain] for node in free)
    assert stripes.replacement(segment, taken, taken) is None


def test_whether_a_whole_domain_may_be_lost_is_known() -> None:
    nodes = [stripes.Node(f"node-{number}", ("east", "west")[number % 2]) for number in range(6)]
    for geometry, survives in ((stripes.Geometry(3, 3), True), (stripes.Geometry(4, 2), False)):
        placed = stripes.place(b"s", nodes, geometry)
        assert stripes.survives_a_domain(placed, nodes, geometry) is survives


def test_the_fewest_spare_shards_come_first() -> None:
    assert stripes.endangered([("c", 2), ("b", 0), ("a", 2), ("d", -1)]) == ["d", "b", "a", "c"]
