"""What became of a tree state since another one of the same volume: only the ids that were touched.

A role is handed over with a tree state. Where the whole of it was handed over before, while the role was still
another's, what is left to tell at the end is small however large the volume is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgpack
from blake3 import blake3

from diffkeeper.domain import errors, frames, positions, trees
from diffkeeper.domain.trees import Identity, Kind, Node, TreeState

Print = tuple[int, int, int]

_VERSION = 1
MAGIC = b"DKI1"
_HEAD_BYTES = len(MAGIC) + 32


@dataclass(frozen=True, slots=True)
class Increment:
    volume: str
    base: frames.Tip
    tip: frames.Tip
    stamp: int
    next_id: int
    # Every id that may have changed: those that are not in ``nodes`` are gone.
    touched: frozenset[int]
    nodes: dict[int, Node]
    identities: dict[int, Identity]
    prints: dict[int, Print]


def since(base: frames.Tip, state: TreeState, touched: Iterable[int], prints: dict[int, Print]) -> Increment:
    """``touched`` has at least the ids whose node, identity or content changed after ``base``."""
    ids = frozenset(touched)
    nodes = {file_id: state.tree.nodes[file_id] for file_id in ids if file_id in state.tree.nodes}
    return Increment(
        state.volume,
        base,
        frames.Tip(state.position, state.frame_hash),
        state.stamp,
        state.tree.next_id,
        ids,
        nodes,
        {file_id: state.identities[file_id] for file_id in nodes if file_id in state.identities},
        prints,
    )


def applied(state: TreeState, increment: Increment) -> TreeState:
    """The state after it; ``state`` is used up. Raises Corrupt when the increment is not of this state."""
    check_base(frames.Tip(state.position, state.frame_hash), state.volume, increment)
    try:
        nodes = {
            file_id: node for file_id, node in state.tree.nodes.items() if file_id not in increment.touched
        }
        tree = trees.Tree.of((nodes | increment.nodes).items(), increment.next_id)
    except KeyError as error:
        raise _malformed(error) from error
    identities = {key: value for key, value in state.identities.items() if key not in increment.touched}
    prints = {key: value for key, value in state.fingerprints.items() if key not in increment.touched}
    return TreeState(
        state.volume,
        increment.tip.position,
        increment.tip.hash,
        increment.stamp,
        tree,
        identities | increment.identities,
        prints | increment.prints,
    )


def check_base(tip: frames.Tip, volume: str, increment: Increment) -> None:
    if (tip, volume) != (increment.base, increment.volume):
        raise errors.Corrupt(
            f"the tree of {volume} at {tip.position} is not what was told on from, {increment.base.position} of "
            f"{increment.volume}",
            reason="tree-base-differs",
            hint="the replica can be rebuilt from the log",
        )


def encode(increment: Increment) -> bytes:
    """As a file's bytes, with its own checksum in front."""
    nodes = [
        [file_id, int(node.kind), node.mode, node.uid, node.gid, node.target, sorted(node.entries)]
        for file_id, node in increment.nodes.items()
    ]
    packed: bytes = msgpack.packb(
        {
            "v": _VERSION,
            "vol": increment.volume,
            "base": [*_packed(increment.base)],
            "tip": [*_packed(increment.tip)],
            "stamp": increment.stamp,
            "next": increment.next_id,
            "touched": sorted(increment.touched),
            "nodes": nodes,
            "ids": [[key, i.device, i.inode, i.generation] for key, i in increment.identities.items()],
            "prints": [[key, *print_] for key, print_ in increment.prints.items()],
        },
        use_bin_type=True,
    )
    return MAGIC + blake3(packed).digest() + packed


def decode(data: bytes) -> Increment:
    """Raises Corrupt for any other bytes than ``encode`` made."""
    try:
        packed = memoryview(data)[_HEAD_BYTES:]
        if data[:_HEAD_BYTES] != MAGIC + blake3(packed).digest():
            raise ValueError("its checksum does not hold")
        fields: dict[str, Any] = msgpack.unpackb(packed, raw=False, strict_map_key=True)
        if fields["v"] != _VERSION:
            raise ValueError(f"version {fields['v']}")
        nodes = {
            file_id: Node(Kind(kind), mode, uid, gid, target, {(parent, name) for parent, name in entries})
            for file_id, kind, mode, uid, gid, target, entries in fields["nodes"]
        }
        return Increment(
            fields["vol"],
            _tip(fields["base"]),
            _tip(fields["tip"]),
            fields["stamp"],
            fields["next"],
            frozenset(fields["touched"]),
            nodes,
            {file_id: Identity(dev, ino, gen) for file_id, dev, ino, gen in fields["ids"]},
            {file_id: (size, mtime, ctime) for file_id, size, mtime, ctime in fields["prints"]},
        )
    except (ValueError, KeyError, TypeError, msgpack.UnpackException) as error:
        raise _malformed(error) from error


def _packed(tip: frames.Tip) -> tuple[int, int, bytes]:
    return tip.position.epoch, tip.position.sequence, tip.hash


def _tip(fields: list[Any]) -> frames.Tip:
    epoch, sequence, digest = fields
    return frames.Tip(positions.Position(epoch, sequence), digest)


def _malformed(error: Exception) -> errors.Corrupt:
    return errors.Corrupt(
        f"what became of a tree state cannot be read ({error!r}); it was left where it is",
        reason="malformed-tree-state",
        hint="the replica can be rebuilt from the log",
    )
