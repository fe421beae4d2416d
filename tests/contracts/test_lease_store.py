"""What every lease store must do, held against the memory adapter and against three real link servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.support.link_servers import LinkServers

from diffkeeper.domain import errors, leases
from diffkeeper.leases import lease_records
from diffkeeper.leases.lease_store import LeaseStore
from diffkeeper.leases.memory_lease_store import MemoryLeases, MemoryLeaseStore

EAST = leases.Lease("orders", 1, "east", 500)
WEST = leases.Lease("orders", 2, "west", 500)


@dataclass
class Stores:
    one: LeaseStore
    other: LeaseStore
    lose_majority: Callable[[], Awaitable[None]]
    find_majority: Callable[[], Awaitable[None]]
    lead_at: Callable[[str], Awaitable[None]]


@pytest.fixture(params=["memory", "nats"])
async def stores(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stores]:
    if request.param == "memory":
        yield _in_memory()
        return
    servers = LinkServers(tmp_path)
    try:
        await servers.start()
        stores = Stores(
            servers.store(), servers.store(), servers.lose_majority, servers.find_majority, servers.lead_at
        )
        await eventually(lambda: stores.one.prepare("orders"))
        yield stores
    finally:
        await servers.stop()


def _in_memory() -> Stores:
    shared = MemoryLeases()

    async def set_majority(has: bool) -> None:
        shared.has_majority = has

    async def lead_at(site: str) -> None:
        shared.leaders["orders"] = site

    return Stores(
        MemoryLeaseStore(shared),
        MemoryLeaseStore(shared),
        lambda: set_majority(False),
        lambda: set_majority(True),
        lead_at,
    )


async def eventually(ask: Callable[[], Awaitable[Any]], seconds: float = 40) -> Any:
    """The answer once there is one: a cluster elects a leader first."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                return await ask()
            except (errors.Transient, errors.Fenced):
                # A write whose fate was unknown may come true late.
                await asyncio.sleep(0.1)


async def test_a_lease_is_one_for_all_who_ask_and_changes_by_compare_and_set_alone(stores: Stores) -> None:
    one, other = stores.one, stores.other
    with pytest.raises(errors.NotFound):
        await one.read("letters")
    await one.prepare("orders")
    await other.prepare("orders")
    assert await one.read("orders") is None

    first = await one.write(EAST, 0)
    assert first.lease == EAST and first.revision > 0
    assert await other.read("orders") == first

    with pytest.raises(errors.Fenced) as caught:
        await other.write(WEST, 0)
    assert caught.value.reason == "lease-moved"

    renewed = await one.write(leases.renewed(EAST), first.revision)
    assert renewed.revision > first.revision
    with pytest.raises(errors.Fenced):
        await other.write(WEST, first.revision)

    # Of many who try at once, one succeeds.
    tries = [store.write(WEST, renewed.revision) for store in (one, other)]
    answers = await asyncio.gather(*tries, return_exceptions=True)
    won = [answer for answer in answers if isinstance(answer, leases.Held)]
    lost = [answer for answer in answers if isinstance(answer, errors.Fenced)]
    # Two writes of the very same record cannot be told apart: whoever lost may find its own record stored.
    assert len(won) + len(lost) == 2 and won
    found = await one.read("orders")
    assert found is not None and found.lease == WEST

    await stores.lose_majority()
    with pytest.raises(errors.Transient):
        await one.write(leases.renewed(WEST), found.revision)
    await stores.find_majority()
    again = await eventually(lambda: one.read("orders"))
    assert again.lease.epoch == 2
    await eventually(lambda: _renew(one))


async def _renew(store: LeaseStore) -> None:
    held = await store.read("orders")
    assert held is not None
    await store.write(leases.renewed(held.lease), held.revision)


async def test_the_record_is_kept_going_away_from_its_holder(stores: Stores) -> None:
    await stores.one.prepare("orders")
    await stores.one.write(EAST, 0)
    await stores.lead_at("east")
    async with asyncio.timeout(30):
        while not await eventually(lambda: stores.one.lead_elsewhere("orders", "east")):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    held = await eventually(lambda: stores.other.read("orders"))
    assert held.lease == EAST


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b"[" * 900,
        b"x" * 2000,
        lease_records.encode(EAST).replace(b'"v": 1', b'"v": 2'),
        lease_records.encode(EAST).replace(b'"epoch": 1', b'"epoch": -1'),
        lease_records.encode(EAST).replace(b'"epoch": 1', b'"epoch": true'),
        lease_records.encode(EAST).replace(b"500", b"1"),
        lease_records.encode(EAST).replace(b"east", b"../etc"),
    ],
)
def test_what_is_no_lease_is_not_taken_for_one(data: bytes) -> None:
    with pytest.raises(errors.Corrupt):
        lease_records.decode(data)


def test_a_lease_is_read_back_as_it_was_written() -> None:
    assert lease_records.decode(lease_records.encode(leases.renewed(WEST))) == leases.renewed(WEST)
