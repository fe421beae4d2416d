"""What every storage node must do, held against the memory, file and real NATS adapters."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support import brokers as support

from diffkeeper import nats_server
from diffkeeper.domain import errors, shard_headers, stripes
from diffkeeper.domain.shard_headers import MANIFEST, Key, Stripe
from diffkeeper.log import nats_connection
from diffkeeper.shards import file_shard_store, memory_shard_store, nats_shard_store, shard_store

STRIPE = Stripe("orders", "0123456789abcdef" * 2, stripes.Geometry(2, 8))


def key(index: int, epoch: int = 1, stripe: Stripe = STRIPE) -> Key:
    return Key(stripe, epoch, index)


class ShardStoreContract:
    async def test_what_was_put_is_given_back_and_listed(self, store: shard_store.ShardStore) -> None:
        await store.check()
        wanted = {key(0): b"zero", key(9): b"nine" * 999, key(MANIFEST): b"manifest", key(0, 2): b"again"}
        for name, data in wanted.items():
            await store.put(name, data)
        for name, data in wanted.items():
            assert await store.get(name) == data
        assert list((await store.keys()).whole) == sorted(wanted)
        assert list((await store.keys()).torn) == []

    async def test_an_item_larger_than_a_message_comes_back_whole(
        self, store: shard_store.ShardStore
    ) -> None:
        await store.check()
        data = random.Random(5).randbytes(2 * nats_shard_store.PART_BYTES + 17)
        await store.put(key(3), data)
        assert await store.get(key(3)) == data
        assert list((await store.keys()).whole) == [key(3)]

    async def test_putting_again_replaces_and_removing_removes(self, store: shard_store.ShardStore) -> None:
        await store.check()
        await store.put(key(1), b"one")
        await store.put(key(1), b"other")
        await store.put(key(2), b"two")
        assert await store.get(key(1)) == b"other"
        await store.remove(key(1))
        await store.remove(key(1))
        assert await store.get(key(1)) is None
        assert list((await store.keys()).whole) == [key(2)]

    async def test_keys_that_begin_alike_are_different_items(self, store: shard_store.ShardStore) -> None:
        await store.check()
        await store.put(key(1), b"1")
        await store.put(key(1, 11), b"11")
        await store.remove(key(1))
        assert await store.get(key(1, 11)) == b"11"

    async def test_an_absent_item_is_none_and_a_check_twice_changes_nothing(
        self, store: shard_store.ShardStore
    ) -> None:
        before = await store.check()
        assert await store.get(key(4)) is None
        assert (await store.check()).incarnation == before.incarnation


class TestMemoryShardStore(ShardStoreContract):
    @pytest.fixture
    def store(self) -> shard_store.ShardStore:
        return memory_shard_store.MemoryShardStore("node-01")


class TestFileShardStore(ShardStoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> shard_store.ShardStore:
        return file_shard_store.FileShardStore("node-01", tmp_path / "shards")

    async def test_names_that_no_service_writes_are_not_listed(self, tmp_path: Path) -> None:
        store = file_shard_store.FileShardStore("node-01", tmp_path)
        await store.check()
        for name in ("..", "orders", f"../x.{'0' * 32}.2-8.1.0", f"UP.{'0' * 32}.2-8.1.0"):
            assert shard_headers.parse_key(name) is None
        (tmp_path / "nonsense.dkshard").write_bytes(b"")
        assert list((await store.keys()).whole) == []


class TestNatsShardStore(ShardStoreContract):
    @pytest.fixture
    async def node(self, brokers: support.Brokers) -> nats_server.NatsServer:
        return await brokers.start("node-01")

    @pytest.fixture
    async def store(self, node: nats_server.NatsServer) -> AsyncIterator[nats_shard_store.NatsShardStore]:
        store = await connect(node)
        yield store
        await store.close()

    async def test_items_survive_the_kill_of_the_server(
        self, store: nats_shard_store.NatsShardStore, node: nats_server.NatsServer, brokers: support.Brokers
    ) -> None:
        before = await store.check()
        await store.put(key(1), b"one" * 1000)
        await node.kill()
        with pytest.raises(errors.Transient):
            await store.check()
        await brokers.restart("node-01")
        await store.wait(10)
        assert (await store.check()).incarnation != before.incarnation, "it must be listed anew"
        assert await store.get(key(1)) == b"one" * 1000

    async def test_a_part_that_is_missing_makes_the_item_torn(
        self, store: nats_shard_store.NatsShardStore, node: nats_server.NatsServer
    ) -> None:
        await store.check()
        await store.put(key(3), bytes(nats_shard_store.PART_BYTES + 1))
        await store.put(key(4), b"whole")
        await purge(node, f"dks.{key(3)}.1-2")
        listing = await store.keys()
        assert (list(listing.whole), list(listing.torn)) == ([key(4)], [key(3)])
        assert await store.get(key(3)) is None
        await store.remove(key(3))
        assert list((await store.keys()).torn) == []

    async def test_a_full_node_refuses_and_says_so(self, brokers: support.Brokers) -> None:
        store = await connect(await brokers.start("node-02", max_file_store_bytes=1 << 20))
        try:
            await store.check()
            with pytest.raises(errors.Refused) as caught:
                await asyncio.gather(*(store.put(key(number), bytes(300_000)) for number in range(8)))
            assert caught.value.reason == "node-full"
        finally:
            await store.close()

    async def test_another_nodes_server_is_refused(self, brokers: support.Brokers) -> None:
        server = await brokers.start("node-03")
        store = await nats_shard_store.NatsShardStore.open(
            "node-04", [server.config.client_url], password=support.SECRET
        )
        try:
            await store.wait(10)
            with pytest.raises(errors.Misconfigured) as caught:
                await store.check()
            assert caught.value.reason == "wrong-node"
        finally:
            await store.close()


async def purge(server: nats_server.NatsServer, subject: str) -> None:
    connection = nats_connection.NatsConnection(
        [server.config.client_url], nats_server.USER, support.SECRET, "a test"
    )
    await connection.open()
    try:
        await connection.api(f"$JS.API.STREAM.PURGE.{nats_shard_store.STREAM}", {"filter": subject})
    finally:
        await connection.close()


async def connect(server: nats_server.NatsServer) -> nats_shard_store.NatsShardStore:
    store = await nats_shard_store.NatsShardStore.open(
        server.config.site, [server.config.client_url], password=support.SECRET
    )
    await store.wait(10)
    return store
