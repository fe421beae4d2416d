"""Ten thousand flipped bits over headers, payloads and manifests: all found, all repaired or named, none spread."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

from tests.support import framing
from tests.support.repair_rig import ORIGIN, RepairRig

from diffkeeper.domain import errors, frames, shard_headers
from diffkeeper.domain.shard_headers import Key, Stripe
from diffkeeper_repair.damages import State

FLIPS = 10_000
FLIPS_A_ROUND = 500
SEGMENTS = 3
Item = tuple[str, Key]


async def rig_with_segments(path: Path) -> tuple[RepairRig, dict[Stripe, tuple[bytes, ...]]]:
    rig = RepairRig(path, 6, "2+3")
    await rig.begin()
    sent: list[frames.Frame] = []
    for number in range(SEGMENTS):
        tip = frames.Tip(sent[-1].position, sent[-1].hash) if sent else frames.ORIGIN_TIP
        sent += await rig.log(framing.chain(6, parent=tip, seed=number, size=300))
        await rig.seal()
    wires = {
        entry.stripe: tuple(one.wire for one in sent[span.first_sequence - 1 : span.last_sequence])
        for span, entry in rig.service.catalogue.spans(ORIGIN)
    }
    assert len(wires) == SEGMENTS
    return rig, wires


def all_items(rig: RepairRig) -> list[Item]:
    return rig.items() + rig.items(manifests=True)


def flip_bits(rig: RepairRig, item: Item, count: int, rng: random.Random) -> None:
    """Different bits of one item; of a shard as often in its header as behind it."""
    node, key = item
    data = rig.stores[node].items[key]
    header = 8 * shard_headers.HEADER_BYTES
    where = range(8 * len(data)) if key.index < 0 or rng.random() < 0.5 else range(header)
    for bit in rng.sample(where, count):
        rig.flip(node, key, bit)


async def test_ten_thousand_flipped_bits_are_all_found_and_all_repaired(tmp_path: Path) -> None:
    rng = random.Random(10_000)
    rig, wires = await rig_with_segments(tmp_path)
    flipped = rounds = 0
    while flipped < FLIPS:
        # Of each stripe at least two shards and one manifest stay as they are.
        hit = [
            item
            for stripe in wires
            for among, most in ((rig.items(), 3), (rig.items(manifests=True), 4))
            for item in rng.sample([one for one in among if one[1].stripe == stripe], rng.randint(1, most))
        ]
        untouched = {item: rig.stores[item[0]].items[item[1]] for item in set(all_items(rig)) - set(hit)}
        bits = Counter(rng.choices(hit, k=FLIPS_A_ROUND - len(hit))) + Counter(hit)
        for item, count in bits.items():
            flip_bits(rig, item, count, rng)
        flipped += bits.total()
        assert (await rig.service.scrub())["found"] == len(hit), f"round {rounds}"
        assert {(one.node, one.item) for one in rig.service.book.open} == {(n, str(k)) for n, k in hit}
        await rig.mend()
        assert rig.service.book.open == [], f"round {rounds}"
        assert (await rig.service.scrub())["found"] == 0, f"round {rounds}"
        for (node, key), data in untouched.items():
            # What was good stays, unless it is a manifest that a newer one replaced.
            assert key.index < 0 or rig.stores[node].items[key] == data, (node, key)
        rounds += 1
    assert flipped >= FLIPS
    for _, entry in rig.service.catalogue.spans(ORIGIN):
        assert (await rig.service.io.read(entry)).segment.wires == wires[entry.stripe]
    assert rig.service.health()["ok"]


async def test_bits_flipped_in_every_shard_are_repaired_or_named_and_never_read(tmp_path: Path) -> None:
    rng = random.Random(7)
    rig, wires = await rig_with_segments(tmp_path)
    rig.lose_streams()
    seen: Counter[str] = Counter()
    for _ in range(12):
        doomed = rng.choice(list(wires))
        kept = {(node, key): rig.stores[node].items[key] for node, key in all_items(rig)}
        for item in [one for one in rig.items() if one[1].stripe == doomed]:
            # From a bit or two, which what the shards agree on puts right, to more than anything can bear.
            flip_bits(rig, item, 1 << rng.randint(0, 11), rng)
        await rig.service.scrub()
        await rig.mend()
        for _, entry in rig.service.catalogue.spans(ORIGIN):
            try:
                found: tuple[bytes, ...] | None = (await rig.service.io.read(entry)).segment.wires
            except errors.Corrupt:
                found = None
            assert found == wires[entry.stripe] or (found is None and entry.stripe == doomed)
            seen["named"] += found is None
            seen["repaired"] += found is not None and entry.stripe == doomed
        lost = {one.item for one in rig.service.book.open if one.state is State.LOST}
        named = [one["segment"] for one in rig.service.health()["volumes"][0]["lost"]]
        assert bool(lost) == bool(named) and set(named) <= {doomed.segment}
        if lost:  # the nodes return with what they had
            for node, key in all_items(rig):
                del rig.stores[node].items[key]
            for (node, key), data in kept.items():
                rig.stores[node].items[key] = data
            rig.make()
            (tmp_path / "damages.json").unlink(missing_ok=True)
            await rig.begin()
    assert seen["repaired"] and seen["named"], seen
