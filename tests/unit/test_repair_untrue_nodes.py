"""Nodes that come back with old data or another volume's disk, that lie, and that an attacker has filled."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from blake3 import blake3
from tests.support import framing
from tests.support.repair_rig import ORIGIN, RepairRig

from diffkeeper.domain import errors, frames, manifests, segments, shard_headers, stripes, volumes
from diffkeeper.domain.shard_headers import MANIFEST, Key, Stripe
from diffkeeper_repair.damages import Cause

OTHER = volumes.Origin("invoices", "east")


async def sealed_rig(
    path: Path, nodes: int = 6, geometry: str = "2+3", parts: int = 2
) -> tuple[RepairRig, list[bytes]]:
    rig = RepairRig(path, nodes, geometry)
    await rig.begin()
    sent: list[frames.Frame] = []
    for number in range(parts):
        tip = frames.Tip(sent[-1].position, sent[-1].hash) if sent else frames.ORIGIN_TIP
        sent += await rig.log(framing.chain(6, parent=tip, seed=number, size=400))
        await rig.seal()
    return rig, [frame.wire for frame in sent]


async def check_whole(rig: RepairRig, wires: Sequence[bytes]) -> None:
    for _ in range(3):
        await rig.mend()
    assert await rig.read_all() == wires
    assert (await rig.service.scrub())["found"] == 0, rig.service.book.open
    health = rig.service.health()
    assert health["ok"], health
    stripes_now = {entry.stripe for _, entry in rig.service.catalogue.spans(ORIGIN)}
    shards = [item for item in rig.items() if item[1].stripe in stripes_now]
    assert len(shards) == sum(stripe.geometry.shards for stripe in stripes_now)


async def test_a_node_restored_from_an_old_backup_gets_what_it_lacks_and_misleads_nobody(
    tmp_path: Path,
) -> None:
    rig, wires = await sealed_rig(tmp_path, parts=2)
    node = rig.items()[0][0]
    backup = dict(rig.stores[node].items)
    # Since the backup its shards were made anew elsewhere, and more was sealed.
    rig.stores[node].down = True
    await rig.mend()
    before = frames.open_frame(wires[-1])
    more = await rig.log(framing.chain(6, parent=frames.Tip(before.position, before.hash), seed=8, size=400))
    rig.stores[node].down = False
    await rig.mend()
    await rig.seal()
    wires += [frame.wire for frame in more]
    rig.stores[node].wipe()
    rig.stores[node].items.update(backup)
    await rig.service.fleet.look()
    await check_whole(rig, wires)
    newest = {key.stripe: key.epoch for _, key in rig.items(manifests=True)}
    assert all(key.epoch == newest[key.stripe] for _, key in rig.items(manifests=True)), (
        "no old manifest stays"
    )


async def test_a_node_with_the_disk_of_another_deployment_does_no_harm(tmp_path: Path) -> None:
    rig, wires = await sealed_rig(tmp_path / "one")
    other = RepairRig(tmp_path / "two", 5, "3+2")
    await other.begin()
    await other.log(framing.chain(4, origin=OTHER), OTHER)
    await other.seal()
    node = "node-02"
    strange = dict(other.stores[node].items)
    assert strange
    rig.stores[node].wipe()
    rig.stores[node].items.update(strange)
    await rig.service.fleet.look()
    for _ in range(3):
        await rig.mend()
    assert await rig.read_all() == wires
    assert [entry.stripe.volume for _, entry in rig.service.catalogue.spans(ORIGIN)] == ["orders", "orders"]
    volume = next(row for row in rig.service.health()["volumes"] if row["volume"] == "orders")
    assert volume["spare"] == 3
    # What it brought is nobody's to remove: it may be the last copy of its own deployment.
    assert strange.items() <= rig.stores[node].items.items()


async def test_a_node_with_the_disk_of_another_node_keeps_one_shard_of_each_stripe(tmp_path: Path) -> None:
    rig, wires = await sealed_rig(tmp_path)
    first, second = [name for name, store in rig.stores.items() if store.items][:2]
    rig.stores[first].wipe()
    rig.stores[first].items.update(rig.stores[second].items)
    await rig.service.fleet.look()
    await check_whole(rig, wires)
    assert len({(name, key.stripe) for name, key in rig.items()}) == len(rig.items())


def lie(data: bytes, rng: random.Random) -> bytes:
    """A shard like this one, of other content, with a digest and a header that hold."""
    header, _ = shard_headers.decode(data)
    wrong = rng.randbytes(header.payload_bytes)
    return shard_headers.encode(replace(header, payload_digest=blake3(wrong).digest())) + wrong


def lie_in_manifest(data: bytes, index: int, shard: bytes) -> bytes:
    """The manifest that vouches for such a shard."""
    manifest, digests = manifests.decode(data), list(manifests.decode(data).digests)
    digests[index] = shard_headers.decode(shard)[0].payload_digest
    return manifests.encode(replace(manifest, digests=tuple(digests)))


@pytest.mark.parametrize("with_manifests", [False, True])
@pytest.mark.parametrize("liars", [1, 2, 3])
async def test_nodes_that_lie_are_found_out_and_outvoted_by_the_segments_hash(
    tmp_path: Path, liars: int, with_manifests: bool
) -> None:
    rng = random.Random(liars)
    rig, wires = await sealed_rig(tmp_path, nodes=5, parts=1)
    lying = rng.sample(sorted(rig.stores), liars)
    for node, key in rig.items():
        if node in lying:
            store = rig.stores[node].items
            store[key] = lie(store[key], rng)
            if with_manifests:
                told = replace(key, index=MANIFEST)
                store[told] = lie_in_manifest(store[told], key.index, store[key])
    # What was read before the nodes began to lie is forgotten.
    rig.make()
    await rig.begin()
    assert await rig.read_all() == wires, "also before anybody has scrubbed"
    await rig.service.scrub()
    accused = {one.node for one in rig.service.book.open if one.cause in (Cause.LIE, Cause.MANIFEST)}
    assert set(lying) <= accused
    await check_whole(rig, wires)


async def test_a_node_that_lies_again_after_each_repair_costs_only_itself(tmp_path: Path) -> None:
    rng = random.Random(5)
    rig, wires = await sealed_rig(tmp_path, nodes=5, parts=1)
    node = "node-03"
    for _ in range(4):
        for key in [key for key in rig.stores[node].items if key.index >= 0]:
            rig.stores[node].items[key] = lie(rig.stores[node].items[key], rng)
        await rig.service.scrub()
        assert {one.node for one in rig.service.book.open} == {node}
        assert await rig.read_all() == wires
        await rig.mend()
    await check_whole(rig, wires)


async def test_more_liars_than_parity_are_named_and_never_believed(tmp_path: Path) -> None:
    rng = random.Random(6)
    rig, wires = await sealed_rig(tmp_path, nodes=5, geometry="3+2", parts=1)
    for node, key in rig.items()[:3]:
        rig.stores[node].items[key] = lie(rig.stores[node].items[key], rng)
    ((_, entry),) = rig.service.catalogue.spans(ORIGIN)
    rig.lose_streams()
    with pytest.raises(errors.Corrupt):
        await rig.service.io.read(entry)
    await rig.service.scrub()
    await rig.mend()
    lost = rig.service.health()["volumes"][0]["lost"]
    assert [one["words"] for one in lost] == ["orders from east, positions 1.1 to 1.6"]
    assert lost[0]["first_us"] <= lost[0]["last_us"]
    assert len(wires) == 6


# -- an attacker's shards ------------------------------------------------------------------------------------------


def forged(header: shard_headers.Header, payload: bytes) -> bytes:
    return shard_headers.encode(header) + payload


def bomb(header: shard_headers.Header, rng: random.Random) -> bytes:
    """Announces the most that a header may, and has nothing behind it."""
    return forged(replace(header, segment_bytes=segments.MAX_BYTES), b"")


def other_geometry(header: shard_headers.Header, rng: random.Random) -> bytes:
    geometry = stripes.Geometry(1, 31)
    return forged(replace(header, geometry=geometry, index=31), rng.randbytes(header.segment_bytes))


def other_volume(header: shard_headers.Header, rng: random.Random) -> bytes:
    return forged(
        replace(header, span=replace(header.span, volume="invoices")), rng.randbytes(header.payload_bytes)
    )


def other_index(header: shard_headers.Header, rng: random.Random) -> bytes:
    index = (header.index + 1) % header.geometry.shards
    wrong = rng.randbytes(header.payload_bytes)
    return forged(replace(header, index=index, payload_digest=blake3(wrong).digest()), wrong)


def climbing_origin(header: shard_headers.Header, rng: random.Random) -> bytes:
    """Not even its maker can write it with a name that climbs, so the bytes of the name are changed and protected anew."""
    return forged(header, b"")[:100] + rng.randbytes(header.payload_bytes)


def whole_segment(header: shard_headers.Header, rng: random.Random) -> bytes:
    return forged(header, rng.randbytes(4 * header.payload_bytes))


@pytest.mark.parametrize(
    "forge", [bomb, other_geometry, other_volume, other_index, climbing_origin, whole_segment]
)
async def test_an_attackers_shards_in_the_place_of_true_ones_are_found_and_replaced(
    tmp_path: Path, forge: Callable[[shard_headers.Header, random.Random], bytes]
) -> None:
    rng = random.Random(9)
    rig, wires = await sealed_rig(tmp_path, nodes=5, parts=1)
    hit = rng.sample(rig.items(), 3)
    for node, key in hit:
        header, _ = shard_headers.decode(rig.stores[node].items[key])
        rig.stores[node].items[key] = forge(header, rng)
    assert await rig.read_all() == wires
    await rig.service.scrub()
    assert {one.node for one in rig.service.book.open} == {node for node, _ in hit}
    await check_whole(rig, wires)


async def test_an_attackers_own_stripes_are_named_and_take_nobodys_place(tmp_path: Path) -> None:
    """Well-formed shards of segments that never were, under the volume's name: nothing decodes, and it is told."""
    rng = random.Random(10)
    rig, wires = await sealed_rig(tmp_path, nodes=5, parts=1)
    node, key = rig.items()[0]
    header, _ = shard_headers.decode(rig.stores[node].items[key])
    for _ in range(20):
        invented = replace(header, segment_hash=rng.randbytes(32), payload_digest=bytes(32))
        stripe = Stripe("orders", segments.name_of(invented.segment_hash), header.geometry)
        rig.stores[node].items[Key(stripe, 1, header.index)] = forged(
            invented, rng.randbytes(header.payload_bytes)
        )
    await rig.service.fleet.relist(node)
    await rig.service.survey()
    await rig.service.scrub()
    await rig.mend()
    assert await rig.read_all() == wires
    volume = rig.service.health()["volumes"][0]
    assert volume["lost_segments"] == 20
    assert all("unfinished" in one["words"] for one in volume["lost"])
    assert rig.service.catalogue.frontier(ORIGIN) == 6
