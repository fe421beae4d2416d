"""What a deployment notes of its storage: the nodes, their ports and failure domains, the geometry, the repair service."""

from __future__ import annotations

import re

import msgspec

from diffkeeper import nats_server
from diffkeeper.domain import errors, stripes

MAX_NODES = 64


class NotedProcess(msgspec.Struct, frozen=True):
    pid: int
    start_ticks: int
    started_us: int


class StorageNode(msgspec.Struct, kw_only=True):
    # What fails with it: the site it is counted to.
    domain: str
    nats_port: int
    monitor_port: int
    stopped: bool = False
    process: NotedProcess | None = None


class Storage(msgspec.Struct, kw_only=True):
    # In words such as 2+8; None: what suits the number of nodes.
    geometry: str | None
    repair_port: int
    nodes: dict[str, StorageNode] = {}
    repair: NotedProcess | None = None


def wish(known: Storage | None, sites: list[str], count: int | None, parity: str | None) -> Storage | None:
    """The storage a deployment is to have, given what it has: nodes are added, and taken away by nobody but
    ``dkctl nodes remove``. Raises Refused.
    """
    if count is None and parity is None:
        return known
    have = len(known.nodes) if known is not None else 0
    wanted = stripes.parse(parity) if parity is not None else None
    nodes = count if count is not None else max(have, wanted.shards if wanted is not None else 0)
    if nodes == 0 and known is None:
        return None
    if nodes < have:
        raise errors.Refused(
            f"this deployment has {have} storage nodes; {nodes} would leave shards behind",
            reason="too-few-nodes",
            hint="dkctl nodes drain NODE, then dkctl nodes remove NODE",
        )
    if not 2 <= nodes <= MAX_NODES:
        raise errors.Refused(
            f"{nodes} storage nodes cannot be had here", reason="bad-nodes", hint=f"2 to {MAX_NODES}"
        )
    kept = parity or (known.geometry if known is not None else None)
    geometry = stripes.parse(kept) if kept is not None else stripes.default(nodes)
    if geometry.shards > nodes:
        raise errors.Refused(
            f"the geometry {geometry} needs {geometry.shards} storage nodes, not {nodes}",
            reason="too-few-nodes",
            hint=f"--storage-nodes {geometry.shards} --parity {geometry}",
        )
    storage = known or Storage(geometry=None, repair_port=nats_server.free_port())
    storage.geometry = kept
    number = max((_number(name) for name in storage.nodes), default=0)
    for _ in range(nodes - have):
        number += 1
        storage.nodes[f"node-{number:02}"] = StorageNode(
            domain=sites[(number - 1) % len(sites)],
            nats_port=nats_server.free_port(),
            monitor_port=nats_server.free_port(),
        )
    return storage


def _number(name: str) -> int:
    match = re.fullmatch(r"node-([0-9]+)", name)
    return int(match[1]) if match is not None else 0
