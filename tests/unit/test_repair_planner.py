"""The plan for one stripe: carried out again and again it ends, and on its way never makes things worse."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from diffkeeper.domain import stripes
from diffkeeper.domain.shard_headers import MANIFEST, Key, Stripe
from diffkeeper.domain.stripes import CopyState
from diffkeeper_repair import planner
from diffkeeper_repair.planner import Copy, Fleet, NodeState

GEOMETRY = stripes.Geometry(2, 2)
SEGMENT = bytes(range(16))
STRIPE = Stripe("orders", SEGMENT.hex(), GEOMETRY)
NODES = [stripes.Node(f"node-{number}", ("east", "west")[number % 2]) for number in range(7)]

STATES = st.lists(st.sampled_from(NodeState), min_size=len(NODES), max_size=len(NODES))
COPIES = st.lists(
    st.builds(
        lambda node, index, epoch, good: Copy(NODES[node].name, Key(STRIPE, epoch, index), good),
        st.integers(0, len(NODES) - 1),
        st.integers(MANIFEST, GEOMETRY.shards - 1),
        st.integers(1, 3),
        st.booleans(),
    ),
    max_size=14,
    unique_by=lambda copy: (copy.node, copy.key),
)


def carry_out(copies: list[Copy], plan: planner.Plan) -> list[Copy]:
    """What the rebuilder does in one pass, when nothing fails."""
    newest = max((copy.key.epoch for copy in copies), default=0)
    manifests = [copy for copy in copies if copy.key.index == MANIFEST and copy.key.epoch == newest]
    fresh = (
        bool(plan.write)
        or not any(copy.good for copy in manifests)
        or any(not copy.good for copy in manifests)
    )
    epoch = newest + 1 if fresh else newest
    there = {(copy.node, copy.key): copy for copy in copies}
    for index, node in plan.write.items():
        there[node, Key(STRIPE, epoch, index)] = Copy(node, Key(STRIPE, epoch, index), True)
    holders = {copy.node for copy in there.values() if copy.good and copy.key.index >= 0}
    for node in holders if fresh else plan.tell:
        there[node, Key(STRIPE, epoch, MANIFEST)] = Copy(node, Key(STRIPE, epoch, MANIFEST), True)
    for copy in plan.remove:
        there.pop((copy.node, copy.key), None)
    return list(there.values())


def readable(copies: list[Copy], fleet: Fleet) -> set[int]:
    return {
        copy.key.index
        for copy in copies
        if copy.good and copy.key.index >= 0 and fleet.state(copy.node).answers
    }


@settings(max_examples=150)
@given(STATES, COPIES)
def test_mending_never_loses_a_shard_and_comes_to_an_end(states: list[NodeState], copies: list[Copy]) -> None:
    fleet = Fleet(dict(zip(NODES, states, strict=True)))
    for _ in range(6):
        before = readable(copies, fleet)
        if len(before) < GEOMETRY.data:
            return  # the rebuilder cannot read it and does nothing
        found = planner.plan(SEGMENT, GEOMETRY, copies, fleet, patient=False)
        if found.is_idle:
            break
        copies = carry_out(copies, found)
        assert readable(copies, fleet) >= before
    assert planner.plan(SEGMENT, GEOMETRY, copies, fleet, patient=False).is_idle
    up = len(fleet.up())
    assert len(readable(copies, fleet)) >= min(GEOMETRY.shards, up)
    good = [copy for copy in copies if copy.good and copy.key.index >= 0 and fleet.state(copy.node).answers]
    if up >= GEOMETRY.shards:
        assert len({copy.node for copy in good}) == len(good) == GEOMETRY.shards
        assert all(fleet.state(copy.node) is NodeState.UP for copy in good), "draining nodes are empty"


def whole() -> list[Copy]:
    return [Copy(f"node-{index}", Key(STRIPE, 1, index), True) for index in range(4)] + [
        Copy(f"node-{index}", Key(STRIPE, 1, MANIFEST), True) for index in range(4)
    ]


def fleet(**states: NodeState) -> Fleet:
    return Fleet({node: states.get(node.name.replace("-", "_"), NodeState.UP) for node in NODES})


def test_a_whole_stripe_is_left_alone() -> None:
    found = planner.plan(SEGMENT, GEOMETRY, whole(), fleet())
    assert found.is_idle
    assert planner.spare(GEOMETRY, found) == 2


def test_a_node_within_its_grace_is_waited_for_unless_nothing_is_to_spare() -> None:
    one_away = planner.plan(SEGMENT, GEOMETRY, whole(), fleet(node_0=NodeState.AWAY))
    assert (one_away.is_idle, list(one_away.waiting)) == (True, [0])
    assert one_away.states[0] is CopyState.AWAY
    two_away = planner.plan(SEGMENT, GEOMETRY, whole(), fleet(node_0=NodeState.AWAY, node_1=NodeState.AWAY))
    assert sorted(two_away.write) == [0, 1]


def test_what_a_node_lost_goes_back_to_it() -> None:
    copies = [copy for copy in whole() if copy.node != "node-2" or copy.key.index == MANIFEST]
    found = planner.plan(SEGMENT, GEOMETRY, copies, Fleet(dict.fromkeys(NODES[:4], NodeState.UP)))
    assert found.write == {2: "node-2"}


def test_without_a_free_node_the_shard_is_called_homeless() -> None:
    copies = whole()
    four = dict.fromkeys(NODES[:4], NodeState.UP) | {NODES[3]: NodeState.GONE}
    found = planner.plan(SEGMENT, GEOMETRY, copies, Fleet(four))
    assert (list(found.homeless), dict(found.write)) == ([3], {})


def test_a_damaged_copy_stays_until_its_replacement_stands() -> None:
    copies = [Copy(copy.node, copy.key, copy.key.index != 1) for copy in whole()]
    three = Fleet(dict.fromkeys(NODES[:4], NodeState.UP) | {NODES[1]: NodeState.GONE})
    assert not [copy for copy in planner.plan(SEGMENT, GEOMETRY, copies, three).remove if copy.key.index == 1]
    found = planner.plan(SEGMENT, GEOMETRY, copies, fleet())
    assert found.write == {1: "node-1"}, "its node works"
    assert [copy for copy in found.remove if copy.key.index == 1]
