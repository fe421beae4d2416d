"""Geometry and placement of stripes: how many shards, what they survive, on which nodes they stand. Pure.

A segment is coded into k data and m parity shards; any k of the n = k + m give it back. Placement is by rendezvous
hashing (Thaler and Ravishankar, 1998): each segment ranks the nodes in an order of its own, so a node more or
less moves only its own share; failure domains take turns in that order, and no two shards of a stripe ever
share a node.
"""

from __future__ import annotations

import enum
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from blake3 import blake3

from diffkeeper.domain import errors

# liberasurecode refuses more.
MAX_SHARDS = 32
_WRITTEN = re.compile(r"([0-9]{1,2})\+([0-9]{1,2})")


@dataclass(frozen=True, slots=True, order=True)
class Geometry:
    """``data`` shards carry the segment, ``parity`` shards make any ``data`` of them enough."""

    data: int
    parity: int

    def __post_init__(self) -> None:
        if self.data < 1 or self.parity < 0 or self.shards > MAX_SHARDS:
            raise errors.Refused(
                f"{self.data}+{self.parity} is no geometry",
                reason="bad-geometry",
                hint=f"at least one data shard, and at most {MAX_SHARDS} shards in all, such as 4+2",
            )

    @property
    def shards(self) -> int:
        return self.data + self.parity

    @property
    def overhead(self) -> float:
        """Bytes stored for each byte of a segment."""
        return self.shards / self.data

    def payload_bytes(self, segment_bytes: int) -> int:
        """Of one shard: its share of the segment, the last one padded with zeros."""
        return -(-segment_bytes // self.data)

    def words(self) -> str:
        if self.parity == 0:
            return f"survives the loss of none of its {self.shards} nodes"
        which = "any" if self.parity > 1 or self.shards > 2 else "either"
        return f"survives the loss of {which} {self.parity} of {self.shards} nodes at {self.overhead:.3g} times the bytes"

    def __str__(self) -> str:
        return f"{self.data}+{self.parity}"


def parse(text: str) -> Geometry:
    """``"4+2"`` as a geometry; raises Refused for anything else."""
    match = _WRITTEN.fullmatch(text)
    if match is None:
        raise errors.Refused(
            f"{text!r} is no geometry",
            reason="bad-geometry",
            hint="data and parity shards, such as 4+2 or 2+8",
        )
    return Geometry(int(match[1]), int(match[2]))


def default(nodes: int) -> Geometry:
    """What so many nodes are best used for when nobody says: about a third of them may be lost, four at most.

    Wider stripes than 16 save little more and touch more nodes for each rebuild.
    """
    if nodes < 2:
        raise errors.Refused(
            f"{nodes} storage nodes cannot protect anything",
            reason="too-few-nodes",
            hint="at least two, such as --storage-nodes 6",
        )
    shards = min(nodes, 16)
    parity = 1 if shards <= 3 else 2 if shards <= 7 else 3 if shards <= 10 else 4
    return Geometry(shards - parity, parity)


@dataclass(frozen=True, slots=True, order=True)
class Node:
    """A storage node. ``domain`` is what may fail as a whole: a site, a rack."""

    name: str
    domain: str


def place(segment: bytes, nodes: Iterable[Node], geometry: Geometry) -> dict[int, str]:
    """The node of each shard index; fewer than all when there are fewer nodes, never two on one."""
    return {index: node.name for index, node in enumerate(order(segment, nodes)[: geometry.shards])}


def order(segment: bytes, nodes: Iterable[Node]) -> list[Node]:
    """The nodes as this segment prefers them, failure domains in turn."""
    ranked = _rank(segment, nodes)
    by_domain: dict[str, list[Node]] = {}
    for node in ranked:
        by_domain.setdefault(node.domain, []).append(node)
    ordered: list[Node] = []
    turn = 0
    while len(ordered) < len(ranked):
        ordered += [members[turn] for members in by_domain.values() if turn < len(members)]
        turn += 1
    return ordered


def replacement(segment: bytes, free: Iterable[Node], taken: Collection[Node]) -> Node | None:
    """The best of the ``free`` nodes for one more shard of a stripe that stands on ``taken``: in the domain with the
    fewest, then by rank. None when all are taken.
    """
    load = Counter(node.domain for node in taken)
    ranked = [node for node in _rank(segment, free) if node not in taken]
    return min(ranked, key=lambda node: load[node.domain], default=None)


def survives_a_domain(placed: Mapping[int, str], nodes: Iterable[Node], geometry: Geometry) -> bool:
    """Whether the loss of any one failure domain leaves enough shards."""
    domain_of = {node.name: node.domain for node in nodes}
    load = Counter(domain_of.get(name, name) for name in placed.values())
    return len(placed) - max(load.values(), default=0) >= geometry.data


def _rank(segment: bytes, nodes: Iterable[Node]) -> list[Node]:
    return sorted(nodes, key=lambda node: blake3(segment + node.name.encode()).digest())


class CopyState(enum.Enum):
    """What is known of one shard where it should be."""

    GOOD = "good"
    DAMAGED = "damaged"  # there, and not what it must be: never read again
    MISSING = "missing"  # its node answers and does not have it
    AWAY = "away"  # its node does not answer


def spare(geometry: Geometry, states: Mapping[int, CopyState]) -> int:
    """How many more shards of a stripe can be lost; negative when it cannot be read now."""
    return sum(state is CopyState.GOOD for state in states.values()) - geometry.data


def endangered(stripes: Sequence[tuple[str, int]]) -> list[str]:
    """Ids of stripes in the order in which they must be rebuilt: the fewest spare shards first."""
    return [name for name, _ in sorted(stripes, key=lambda one: (one[1], one[0]))]
