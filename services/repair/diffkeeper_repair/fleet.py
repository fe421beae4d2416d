"""The storage nodes: who answers, since when, and what each says it holds.

Each node is asked once a second. When one answers for the first time, again, or with another store than before,
its whole listing is taken anew; what it had and has no more is damage. What a node is away for is remembered over
restarts, so that its grace is not counted from our own start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog

from diffkeeper.domain import errors, stripes
from diffkeeper.domain.shard_headers import Key
from diffkeeper.shards import shard_store
from diffkeeper_repair.catalogue import Catalogue
from diffkeeper_repair.damages import Cause, DamageBook
from diffkeeper_repair.memory import Memory
from diffkeeper_repair.planner import Copy, Fleet, NodeState

CHECK_EVERY_S = 1.0

_log = structlog.get_logger("fleet")


@dataclass(slots=True)
class StorageNode:
    node: stripes.Node
    store: shard_store.ShardStore
    incarnation: str | None = None
    stored_bytes: int = 0
    # None while it answers.
    trouble: errors.DiffKeeperError | None = None
    listed: bool = False
    full: bool = False
    # One listing at a time; what is put (True) or removed (False) while it is made is not undone by it.
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    meanwhile: dict[Key, bool] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def answers(self) -> bool:
        return self.listed and self.trouble is None


class StorageFleet:
    def __init__(
        self,
        nodes: Sequence[StorageNode],
        catalogue: Catalogue,
        book: DamageBook,
        memory: Memory,
        now_us: Callable[[], int],
        grace_s: float,
    ) -> None:
        self.nodes = {node.name: node for node in nodes}
        self.changed = asyncio.Event()
        self._catalogue = catalogue
        self._book = book
        self._memory = memory
        self._now_us = now_us
        self._grace_s = grace_s

    def state(self, node: StorageNode) -> NodeState:
        if not node.answers:
            since_us = self._memory.away_since(node.name)
            beyond = since_us is not None and self._now_us() - since_us > self._grace_s * 1e6
            return NodeState.GONE if beyond else NodeState.AWAY
        return NodeState.DRAINING if self._memory.is_draining(node.name) else NodeState.UP

    def view(self) -> Fleet:
        return Fleet({node.node: self.state(node) for node in self.nodes.values()})

    def up(self) -> list[stripes.Node]:
        """Nodes that take new shards."""
        return [node for node in self.view().up() if not self.nodes[node.name].full]

    def store(self, name: str) -> shard_store.ShardStore:
        return self.nodes[name].store

    def answers(self, name: str) -> bool:
        return name in self.nodes and self.nodes[name].answers

    async def watch(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(CHECK_EVERY_S)

    async def look(self) -> None:
        """Ask every node once."""
        await asyncio.gather(*(self._look_at(node) for node in self.nodes.values()))

    async def _look_at(self, node: StorageNode) -> None:
        try:
            vitals = await node.store.check()
            if vitals.incarnation != node.incarnation or not node.listed:
                await self._list(node)
        except errors.DiffKeeperError as error:
            self._lose(node, error)
            return
        node.incarnation, node.stored_bytes = vitals.incarnation, vitals.stored_bytes
        node.full = False
        if node.trouble is not None or self._memory.away_since(node.name) is not None:
            node.trouble = None
            self._memory.came_back(node.name)
            self.changed.set()
            _log.info("a storage node answers", node=node.name, items=len(self._catalogue.held(node.name)))

    def _lose(self, node: StorageNode, error: errors.DiffKeeperError) -> None:
        if node.trouble is None:
            _log.warning("a storage node is away", node=node.name, error=error.message)
            self.changed.set()
        node.trouble = error
        node.incarnation = None
        self._memory.went_away(node.name, self._now_us())

    async def relist(self, name: str) -> None:
        """Ask a node again for everything it holds; a node that does not answer is left as it was known."""
        node = self.nodes[name]
        try:
            await self._list(node)
        except errors.DiffKeeperError as error:
            self._lose(node, error)

    async def _list(self, node: StorageNode) -> None:
        async with node.lock:
            node.meanwhile = {}
            listing = await node.store.keys()
            put = {key for key, is_there in node.meanwhile.items() if is_there}
            removed = node.meanwhile.keys() - put
            whole = (set(listing.whole) | put) - removed
            lost = self._catalogue.replace(node.name, whole, set(listing.torn) - put - removed)
            node.listed = True
        for key in lost:
            self._book.report(node.name, key, Cause.MISSING, "the node no longer has it")
        for key in self._catalogue.torn[node.name]:
            self._book.report(node.name, key, Cause.TORN, "only parts of it are there")
        self.changed.set()

    async def put(self, name: str, key: Key, data: bytes) -> None:
        """Write an item, read it back, and only then count on it; raises Corrupt when the node gives other bytes."""
        node = self.nodes[name]
        try:
            await node.store.put(key, data)
            found = await node.store.get(key)
        except errors.Refused as error:
            node.full = node.full or error.reason == "node-full"
            raise
        if found != data:
            raise errors.Corrupt(
                f"storage node {name} gave other bytes than were just written to it; it is not counted on",
                reason="read-back",
                hint="check the disk of the node",
                node=name,
            )
        node.meanwhile[key] = True
        self._catalogue.add(name, key)
        # The same item again, where it was missing or damaged, ends that.
        self._book.repaired(name, key)
        self._catalogue.torn.get(name, set()).discard(key)

    async def remove(self, name: str, key: Key) -> None:
        node = self.nodes[name]
        # Noted first: a listing made while it is removed may find it gone, and that is no damage.
        node.meanwhile[key] = False
        self._catalogue.discard(name, key)
        self._catalogue.torn.get(name, set()).discard(key)
        await node.store.remove(key)

    def copies(self, entry_where: dict[Key, set[str]]) -> list[Copy]:
        return [
            Copy(node, key, not self._book.is_bad(node, key))
            for key, nodes in sorted(entry_where.items())
            for node in sorted(nodes)
        ]

    async def close(self) -> None:
        await asyncio.gather(*(node.store.close() for node in self.nodes.values()))
