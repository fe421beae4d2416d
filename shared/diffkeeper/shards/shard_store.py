"""The port to one storage node: items (shards and manifests) put, read and removed by their key.

An adapter promises: when ``put`` returns, the item is on the node's disk and survives its power cut; an item is there
whole or it is not there; ``put`` of a key that is there gives the same item again or replaces it by what is put. It
does not promise that what it gives is what was put: bytes from a node are verified by whoever reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from diffkeeper.domain import errors
from diffkeeper.domain.shard_headers import Key


@dataclass(frozen=True, slots=True)
class Listing:
    """What a node says it holds."""

    whole: Sequence[Key]
    # Parts of an item without the others: its writer died, or the node lost some of it.
    torn: Sequence[Key]


@dataclass(frozen=True, slots=True)
class Vitals:
    """A node's answer to "are you there?"."""

    # Changes when the node was away, or lost its store: what was known of its items must be asked anew.
    incarnation: str
    stored_bytes: int


class ShardStore(Protocol):
    """One node. Every call raises Unreachable or TimedOut when it does not answer."""

    node: str

    async def check(self) -> Vitals:
        """Ask whether the node works; makes its store when it has none. Raises Misconfigured for another node's."""

    async def put(self, key: Key, data: bytes) -> None:
        """Write an item durably; raises Refused (reason ``node-full``) when there is no room."""

    async def get(self, key: Key) -> bytes | None:
        """The item's bytes as the node has them, or None when it has not all of it."""

    async def remove(self, key: Key) -> None:
        """Remove an item, or what is left of it; nothing to do for one that is not there."""

    async def keys(self) -> Listing: ...

    async def close(self) -> None: ...


def full(node: str, why: str) -> errors.Refused:
    return errors.Refused(
        f"storage node {node} has no room: {why}",
        reason="node-full",
        hint="free or add disk at the node, or add a node; the shard is kept elsewhere meanwhile",
        node=node,
    )


def unreachable(node: str, why: str) -> errors.Unreachable:
    return errors.Unreachable(
        f"storage node {node} does not answer: {why}",
        reason="node-unreachable",
        hint="dkctl nodes shows which nodes are away",
        node=node,
    )
