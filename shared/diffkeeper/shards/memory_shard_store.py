"""A storage node in memory, for tests: can be down, full, wiped, rotten and lie."""

from __future__ import annotations

from diffkeeper.domain.shard_headers import Key
from diffkeeper.shards import shard_store


class MemoryShardStore:
    def __init__(self, node: str) -> None:
        self.node = node
        self.down = False
        self.max_bytes = 1 << 62
        self.items: dict[Key, bytes] = {}
        self.torn: set[Key] = set()
        self._lives = 0

    def wipe(self) -> None:
        """A new, empty disk."""
        self.items.clear()
        self.torn.clear()
        self._lives += 1

    async def check(self) -> shard_store.Vitals:
        self._check_up()
        return shard_store.Vitals(str(self._lives), self._stored())

    async def put(self, key: Key, data: bytes) -> None:
        self._check_up()
        if self._stored() - len(self.items.get(key, b"")) + len(data) > self.max_bytes:
            raise shard_store.full(self.node, f"{self.max_bytes} bytes")
        self.torn.discard(key)
        self.items[key] = data

    async def get(self, key: Key) -> bytes | None:
        self._check_up()
        return self.items.get(key)

    async def remove(self, key: Key) -> None:
        self._check_up()
        self.torn.discard(key)
        self.items.pop(key, None)

    async def keys(self) -> shard_store.Listing:
        self._check_up()
        return shard_store.Listing(sorted(self.items), sorted(self.torn))

    async def close(self) -> None:
        """Nothing to end."""

    def _stored(self) -> int:
        return sum(map(len, self.items.values()))

    def _check_up(self) -> None:
        if self.down:
            raise shard_store.unreachable(self.node, "it is down")
