"""What is to be done about one stripe, from everything that is known of it. Pure.

Rules: no node holds two shards of a stripe. A shard is written anew when no good copy answers, at once where its
node answers or where nothing is to spare, after a grace where its node is only away. A copy is removed only
when another good copy of the same shard stands, and of two good copies the one stays whose node ranks first
for this segment, so that two services decide alike and a node that returns gets its place back.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from diffkeeper.domain import stripes
from diffkeeper.domain.shard_headers import MANIFEST, Key
from diffkeeper.domain.stripes import CopyState


class NodeState(enum.Enum):
    UP = "up"
    AWAY = "away"  # does not answer, within its grace
    GONE = "gone"  # does not answer, beyond its grace
    DRAINING = "draining"  # answers, and is to be emptied

    @property
    def answers(self) -> bool:
        return self in (NodeState.UP, NodeState.DRAINING)


@dataclass(frozen=True, slots=True)
class Fleet:
    """The storage nodes as they are now."""

    nodes: Mapping[stripes.Node, NodeState]

    def state(self, name: str) -> NodeState:
        """That of a node nobody lists any more is gone."""
        return next((state for node, state in self.nodes.items() if node.name == name), NodeState.GONE)

    def node(self, name: str) -> stripes.Node:
        return next((node for node in self.nodes if node.name == name), stripes.Node(name, name))

    def up(self) -> list[stripes.Node]:
        return sorted(node for node, state in self.nodes.items() if state is NodeState.UP)


@dataclass(frozen=True, slots=True)
class Copy:
    node: str
    key: Key
    good: bool


@dataclass(frozen=True, slots=True)
class Plan:
    states: Mapping[int, CopyState]
    # index → node to write it to.
    write: Mapping[int, str] = field(default_factory=dict)
    # Copies that are of no more use once what is to be written was proven.
    remove: Sequence[Copy] = ()
    # Nodes that hold a shard, or will, and not the newest manifest.
    tell: Sequence[str] = ()
    # Indexes that should be written and for which no node is free.
    homeless: Sequence[int] = ()
    # Indexes whose node may come back within its grace.
    waiting: Sequence[int] = ()

    @property
    def is_idle(self) -> bool:
        return not (self.write or self.remove or self.tell)


def spare(geometry: stripes.Geometry, plan: Plan) -> int:
    return stripes.spare(geometry, plan.states)


def plan(
    segment: bytes, geometry: stripes.Geometry, copies: Sequence[Copy], fleet: Fleet, *, patient: bool = True
) -> Plan:
    """``copies`` are all shards and manifests of the stripe that nodes are known to hold, also those that are away.

    Without ``patient`` nothing is waited for.
    """
    shards = {index: [copy for copy in copies if copy.key.index == index] for index in range(geometry.shards)}
    states = {index: _state(found, fleet) for index, found in shards.items()}
    urgent = not patient or stripes.spare(geometry, states) <= 0
    kept = _kept(segment, shards, fleet)
    write: dict[int, str] = {}
    homeless: list[int] = []
    waiting: list[int] = []
    alone: set[str] = set()
    for index, found in shards.items():
        if index in kept and fleet.state(kept[index].node) is NodeState.UP and kept[index].node not in alone:
            alone.add(kept[index].node)
            continue
        if index not in kept and _may_return(found, fleet) and not urgent:
            waiting.append(index)
            continue
        target = _target(segment, found, kept, write, fleet)
        if target is not None:
            write[index] = target.name
        elif index not in kept:
            homeless.append(index)
    holders = sorted({copy.node for copy in kept.values()} | set(write.values()))
    newest = max((copy.key.epoch for copy in copies), default=0)
    told = {copy.node for copy in copies if _is_newest_manifest(copy, newest)}
    leaving = {index: copy for index, copy in kept.items() if index in write}
    removable = [
        copy
        for index, found in shards.items()
        if index in kept or index in write
        for copy in found
        if fleet.state(copy.node).answers and (copy is not kept.get(index) or index in leaving)
    ]
    old = [
        copy
        for copy in copies
        if copy.key.index == MANIFEST
        and fleet.state(copy.node).answers
        and (copy.node not in holders or not _is_newest_manifest(copy, newest))
    ]
    untold = [node for node in holders if node not in told]
    # A manifest that replaces another is proven first; without one nothing of the old goes.
    return Plan(states, write, [*removable, *old], untold, homeless, waiting)


def _is_newest_manifest(copy: Copy, newest: int) -> bool:
    return copy.key.index == MANIFEST and copy.good and copy.key.epoch == newest


def _state(found: Sequence[Copy], fleet: Fleet) -> CopyState:
    if any(copy.good and fleet.state(copy.node).answers for copy in found):
        return CopyState.GOOD
    if any(copy.good for copy in found):
        return CopyState.AWAY
    return CopyState.DAMAGED if found else CopyState.MISSING


def _kept(segment: bytes, shards: Mapping[int, Sequence[Copy]], fleet: Fleet) -> dict[int, Copy]:
    """The copy of each shard that stays: at most one for an index and, where it can be, one for a node."""
    rank = {node.name: place for place, node in enumerate(stripes.order(segment, fleet.nodes))}
    kept: dict[int, Copy] = {}
    used: set[str] = set()
    # Shards with the fewest copies choose first.
    for index, found in sorted(shards.items(), key=lambda item: (len(item[1]), item[0])):
        good = [copy for copy in found if copy.good and fleet.state(copy.node).answers]
        choice = min(
            good,
            key=lambda copy: (
                fleet.state(copy.node) is not NodeState.UP,
                copy.node in used,
                rank.get(copy.node, len(rank)),
                -copy.key.epoch,
            ),
            default=None,
        )
        if choice is not None:
            kept[index] = choice
            used.add(choice.node)
    return kept


def _may_return(found: Sequence[Copy], fleet: Fleet) -> bool:
    return any(copy.good and fleet.state(copy.node) is NodeState.AWAY for copy in found)


def _target(
    segment: bytes,
    found: Sequence[Copy],
    kept: Mapping[int, Copy],
    write: Mapping[int, str],
    fleet: Fleet,
) -> stripes.Node | None:
    taken = {copy.node for copy in kept.values()} | set(write.values())
    free = [node for node in fleet.up() if node.name not in taken]
    for copy in found:  # where it stood, if that node still works
        before = fleet.node(copy.node)
        if before in free:
            return before
    return stripes.replacement(segment, free, [fleet.node(name) for name in taken])
