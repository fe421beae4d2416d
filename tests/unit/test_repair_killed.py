"""The repair service killed at each of its steps, and run twice at once: what is left is enough, the next run converges."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
from tests.support import framing
from tests.support.repair_rig import ORIGIN, RepairRig

from diffkeeper.domain import frames
from diffkeeper.domain.shard_headers import Key
from diffkeeper.shards import shard_store
from diffkeeper.shards.memory_shard_store import MemoryShardStore


class Killed(BaseException):
    """Not an error that anything handles: the process is gone."""


class Fate:
    """Kills the service at its ``at``-th change of a node, before or after the change is done."""

    def __init__(self, at: int, *, after: bool) -> None:
        self.at = at
        self.after = after
        self.changes = 0
        self.is_dead = False

    def step(self, *, after: bool) -> None:
        if self.is_dead:
            raise Killed
        if not after:
            self.changes += 1
        if self.changes == self.at and after == self.after:
            self.is_dead = True
            raise Killed


class MortalStore:
    """A store as a service sees it that is about to die; what reached the node stays there."""

    def __init__(self, store: MemoryShardStore, fate: Fate) -> None:
        self.node = store.node
        self._store = store
        self._fate = fate

    async def check(self) -> shard_store.Vitals:
        return await self._store.check()

    async def put(self, key: Key, data: bytes) -> None:
        self._fate.step(after=False)
        await self._store.put(key, data)
        self._fate.step(after=True)

    async def get(self, key: Key) -> bytes | None:
        if self._fate.is_dead:
            raise Killed
        return await self._store.get(key)

    async def remove(self, key: Key) -> None:
        self._fate.step(after=False)
        await self._store.remove(key)
        self._fate.step(after=True)

    async def keys(self) -> shard_store.Listing:
        return await self._store.keys()

    async def close(self) -> None:
        """Nothing to end."""


def doom(rig: RepairRig, fate: Fate) -> None:
    for node in rig.service.fleet.nodes.values():
        node.store = MortalStore(rig.stores[node.name], fate)


async def mend(rig: RepairRig) -> None:
    for _ in range(3):
        await rig.mend()
    await rig.service.rebuilder.sweep()


async def check_whole(rig: RepairRig, wires: list[bytes]) -> None:
    assert await rig.read_all() == wires
    assert (await rig.service.scrub())["found"] == 0
    assert rig.service.health()["ok"], rig.service.health()
    stripes = {key.stripe for _, key in rig.items()}
    for items in (rig.items(), rig.items(manifests=True)):
        assert len({(name, key.stripe) for name, key in items}) == len(items) == 5 * len(stripes)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", range(1, 11))
async def test_killed_while_sealing(tmp_path: Path, at: int, after: bool) -> None:
    """Five shards, then five manifests: ten changes."""
    rig = RepairRig(tmp_path, 5, "2+3")
    await rig.begin()
    wires = [frame.wire for frame in await rig.log(framing.chain(12))]
    fate = Fate(at, after=after)
    doom(rig, fate)
    with contextlib.suppress(Killed, BaseExceptionGroup):
        await rig.seal()
    assert fate.is_dead
    rig.make()
    await rig.begin()
    await mend(rig)
    await rig.seal()
    await mend(rig)
    await check_whole(rig, wires)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", range(1, 13))
async def test_killed_while_mending(tmp_path: Path, at: int, after: bool) -> None:
    """Two nodes are wiped and a third is rotten: what is written, told and removed are twelve changes."""
    rig = RepairRig(tmp_path, 5, "2+3")
    await rig.begin()
    wires = [frame.wire for frame in await rig.log(framing.chain(12))]
    await rig.seal()
    nodes = list(rig.stores)
    rig.stores[nodes[0]].wipe()
    rig.stores[nodes[1]].wipe()
    node, key = next(item for item in rig.items() if item[0] == nodes[2])
    rig.flip(node, key, 8 * 700)
    await rig.service.scrub()
    fate = Fate(at, after=after)
    doom(rig, fate)
    with contextlib.suppress(Killed, BaseExceptionGroup):
        await mend(rig)
    assert fate.is_dead
    rig.make()
    await rig.begin()
    assert await rig.read_all() == wires
    await mend(rig)
    await check_whole(rig, wires)


async def test_two_services_at_once_do_each_other_no_harm(tmp_path: Path) -> None:
    one = RepairRig(tmp_path / "one", 7, "2+3", grace_s=0)
    other = RepairRig(tmp_path / "other", 7, "2+3", grace_s=0)
    other.stores, other.logs, other.broker = one.stores, one.logs, one.broker
    other.make()
    for rig in (one, other):
        await rig.begin()
    wires = [frame.wire for frame in await one.log(framing.chain(12))]
    await asyncio.gather(one.seal(), other.seal())
    for name in list(one.stores)[:5]:
        one.stores[name].down = True
        for _ in range(2):
            await asyncio.gather(one.mend(), other.mend())
        one.stores[name].down = False
    for _ in range(4):
        await asyncio.gather(*(rig.service.fleet.relist(name) for rig in (one, other) for name in one.stores))
        await asyncio.gather(one.mend(), other.mend())
    for rig in (one, other):
        assert await rig.read_all() == wires
        assert rig.service.health()["volumes"][0]["spare"] == 3, rig.service.health()
    assert len(one.items()) == 5 * len({key.stripe for _, key in one.items()})
    assert one.service.catalogue.frontier(ORIGIN) == 12


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", [1, 5, 6, 10, 11, 15, 16, 50, 90])
async def test_killed_while_merging(tmp_path: Path, at: int, after: bool) -> None:
    """Five shards and five manifests of the large segment, then ten items of each of eight small ones are removed."""
    rig = RepairRig(tmp_path, 5, "2+3")
    await rig.begin()
    sent: list[frames.Frame] = []
    for number in range(8):
        tip = frames.Tip(sent[-1].position, sent[-1].hash) if sent else frames.ORIGIN_TIP
        sent += await rig.log(framing.chain(2, parent=tip, seed=number))
        await rig.seal()
    wires = [frame.wire for frame in sent]
    fate = Fate(at, after=after)
    doom(rig, fate)
    with contextlib.suppress(Killed, BaseExceptionGroup):
        await rig.service.merger.round()
    assert fate.is_dead
    rig.make()
    await rig.begin()
    assert await rig.read_all() == wires
    for _ in range(2):
        await mend(rig)
        await rig.service.merger.round()
    assert len(rig.service.catalogue.spans(ORIGIN)) == 1
    await check_whole(rig, wires)
