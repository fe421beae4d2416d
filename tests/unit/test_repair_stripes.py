"""Sealing, losing nodes, rot, lies and rebuilding, with the real service on nodes in memory."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import random
from pathlib import Path
from typing import Any

import pytest
from tests.support import framing
from tests.support.repair_rig import ORIGIN, RepairRig

from diffkeeper.domain import errors, frames, manifests
from diffkeeper_repair.damages import Cause


def sealed(rig: RepairRig) -> list[bytes]:
    return [wire for wire in rig.broker.stream("east", ORIGIN).messages if wire is not None]


async def rig_with_frames(
    path: Path, nodes: int, geometry: str, count: int = 40, size: int = 900, **settings: Any
) -> RepairRig:
    rig = RepairRig(path, nodes, geometry, **settings)
    await rig.begin()
    await rig.log(framing.chain(count, size=size))
    await rig.seal()
    return rig


async def test_every_way_to_keep_two_of_ten_nodes_restores_every_frame(tmp_path: Path) -> None:
    rig = await rig_with_frames(tmp_path, 10, "2+8")
    assert await rig.read_all() == sealed(rig)
    for kept in itertools.combinations(rig.stores, 2):
        for name, store in rig.stores.items():
            store.down = name not in kept
        await rig.service.fleet.look()
        assert await rig.read_all() == sealed(rig), kept


async def test_a_killed_service_goes_on_where_the_nodes_say_it_was(tmp_path: Path) -> None:
    rig = await rig_with_frames(tmp_path, 6, "4+2")
    before = rig.items()
    rig.make()
    await rig.begin()
    assert rig.service.catalogue.frontier(ORIGIN) == 40
    await rig.seal()
    assert rig.items() == before, "nothing is sealed twice"


async def test_flipped_bits_are_found_and_repaired_and_never_give_wrong_bytes(tmp_path: Path) -> None:
    rng = random.Random(6)
    rig = await rig_with_frames(tmp_path, 6, "4+2", count=12, size=300)
    for _ in range(60):
        node, key = rng.choice(rig.items() + rig.items(manifests=True))
        rig.flip(node, key, rng.randrange(8 * len(rig.stores[node].items[key])))
        found = await rig.service.scrub()
        assert found["found"] == 1, (node, key)
        assert await rig.read_all() == sealed(rig)
        await rig.mend()
        assert rig.service.book.open == []
        assert (await rig.service.scrub())["found"] == 0
    assert rig.service.book.repaired_total == 60
    assert len(rig.items()) == 6


async def test_a_wiped_node_is_filled_again(tmp_path: Path) -> None:
    rig = await rig_with_frames(tmp_path, 6, "4+2")
    rig.stores["node-03"].wipe()
    await rig.service.fleet.look()
    assert {damage.cause for damage in rig.service.book.open} == {Cause.MISSING}
    await rig.mend(patient=True)
    assert len([key for key in rig.stores["node-03"].items if key.index >= 0]) == 1
    assert rig.service.health()["ok"], rig.service.health()


async def test_a_node_that_stays_away_is_replaced_after_its_grace_and_gets_its_place_back(
    tmp_path: Path,
) -> None:
    rig = await rig_with_frames(tmp_path, 8, "4+2", grace_s=60)
    node, _ = rig.items()[0]
    rig.stores[node].down = True
    await rig.mend(patient=True)
    assert len(rig.items()) == 6, "within its grace it is waited for"
    assert rig.service.health()["volumes"][0]["waiting"] == 1
    rig.now_us += 61_000_000
    await rig.mend(patient=True)
    assert len(rig.items()) == 7
    assert rig.service.health()["volumes"][0]["spare"] == 2
    rig.stores[node].down = False
    await rig.mend(patient=True)
    await rig.mend(patient=True)
    assert len(rig.items()) == 6
    assert len({name for name, _ in rig.items()}) == 6, "no node holds two shards of a stripe"
    assert await rig.read_all() == sealed(rig)
    assert rig.service.health()["ok"], rig.service.health()


async def test_a_liar_is_found_by_the_segments_hash(tmp_path: Path) -> None:
    rig = await rig_with_frames(tmp_path / "one", 6, "4+2", count=8)
    other = await rig_with_frames(tmp_path / "two", 6, "4+2", count=9)
    # A valid shard of another segment, under the name of the one it replaces.
    node, key = rig.items()[2]
    strange = next(other.stores[name].items[k] for name, k in other.items() if k.index == key.index)
    rig.stores[node].items[key] = strange
    await rig.service.scrub()
    assert [damage.cause for damage in rig.service.book.open] == [Cause.FOREIGN]
    assert await rig.read_all() == sealed(rig)
    await rig.mend()
    assert rig.service.book.open == []


async def test_more_lost_than_parity_covers_is_named_and_the_rest_stays_usable(tmp_path: Path) -> None:
    rig = await rig_with_frames(tmp_path, 4, "2+2", count=10)
    await rig.log(framing.chain(5, parent=tip(rig), seed=9))
    await rig.seal()
    spans = rig.service.catalogue.spans(ORIGIN)
    assert len(spans) == 2
    rig.lose_streams(count=10)
    doomed = spans[0][1].stripe
    for store in list(rig.stores.values())[:3]:
        for key in [key for key in store.items if key.stripe == doomed and key.index >= 0]:
            del store.items[key]
    await rig.service.scrub()
    await rig.mend()
    with pytest.raises(errors.Corrupt) as caught:
        await rig.service.io.read(spans[0][1])
    assert caught.value.reason == "too-few-shards"
    assert "1.1 to 1.10" in caught.value.message
    volume = rig.service.health()["volumes"][0]
    assert [one["words"] for one in volume["lost"]] == ["orders from east, positions 1.1 to 1.10"]
    assert (await rig.service.io.read(spans[1][1])).segment.first_sequence == 11


def tip(rig: RepairRig) -> frames.Tip:
    last = frames.open_frame(sealed(rig)[-1])
    return frames.Tip(last.position, last.hash)


async def test_draining_empties_a_node(tmp_path: Path) -> None:
    rig = await rig_with_frames(tmp_path, 8, "4+2")
    node, _ = rig.items()[0]
    await rig.service.drain(node, draining=True)
    await rig.mend(patient=True)
    await rig.mend(patient=True)
    assert rig.stores[node].items == {}
    assert len(rig.items()) == 6


async def test_a_frame_that_a_stream_lost_is_served_from_the_shards(tmp_path: Path) -> None:
    rig = await rig_with_frames(tmp_path, 6, "4+2")
    wire = sealed(rig)[6]
    for site in ("east", "west"):
        rig.broker.stream(site, ORIGIN).messages[6] = None
    frame = await rig.service.finder.find(ORIGIN, 7, "west")
    assert frame.wire == wire
    assert rig.service.finder.served_from_shards_total == 1


async def test_a_message_that_one_site_lost_is_sealed_from_the_other(tmp_path: Path) -> None:
    rig = RepairRig(tmp_path, 6, "4+2")
    await rig.begin()
    sent = await rig.log(framing.chain(20))
    rig.broker.stream("east", ORIGIN).messages[4] = None
    rig.broker.stream("east", ORIGIN).messages[5] = b"DKF1 nonsense"
    await rig.seal()
    assert await rig.read_all() == [frame.wire for frame in sent]
    assert {damage.cause for damage in rig.service.book.past} == {Cause.STREAM}
    assert rig.service.book.open == [], "what the stream lost stands in shards now"


async def test_filling_a_wiped_node_again_touches_no_other_node(tmp_path: Path) -> None:
    rig = await rig_with_frames(tmp_path, 6, "4+2")
    before = {name: dict(store.items) for name, store in rig.stores.items()}
    rig.stores["node-03"].wipe()
    await rig.mend()
    assert {name: dict(store.items) for name, store in rig.stores.items()} == before
    # Where the manifests lie about the shard, nothing is filled in by their word.
    ((_, entry),) = rig.service.catalogue.spans(ORIGIN)
    known = entry.manifest
    assert known is not None
    index = next(index for index, node in known.placed.items() if node == "node-03")
    digests = [bytes(32) if place == index else digest for place, digest in enumerate(known.digests)]
    lie = manifests.encode(dataclasses.replace(known, digests=tuple(digests)))
    for store in rig.stores.values():
        store.items[known.key] = lie
    rig.stores["node-03"].wipe()
    rig.make()
    await rig.begin()
    await rig.mend()
    ((_, entry),) = rig.service.catalogue.spans(ORIGIN)
    assert entry.manifest is not None and entry.manifest.digests == known.digests
    assert await rig.read_all() == sealed(rig)
    await rig.mend()
    assert (await rig.service.scrub())["found"] == 0 and rig.service.book.open == []


async def test_rebuilding_by_itself_keeps_to_its_budget_unless_nothing_is_to_spare(tmp_path: Path) -> None:
    rig = await rig_with_frames(tmp_path, 5, "2+3", rebuild_bytes_per_s=1)
    rig.stores["node-01"].wipe()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await rig.mend(patient=True)
    assert rig.stores["node-01"].items == {}
    for name in ("node-02", "node-03"):
        rig.stores[name].wipe()
    async with asyncio.timeout(20):
        await rig.mend(patient=True)
    assert all(store.items for store in rig.stores.values()) and rig.service.health()["ok"]
    # Whoever asks for it now does not wait.
    rig.stores["node-01"].wipe()
    async with asyncio.timeout(20):
        await rig.mend()
    assert rig.stores["node-01"].items
