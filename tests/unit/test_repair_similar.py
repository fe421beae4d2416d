"""Beyond parity: what was lost is guessed from what is like it, and counts only where a stored hash proves it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import framing
from tests.support.repair_rig import ORIGIN, RepairRig

from diffkeeper.domain import clocks, deltas, errors, frames, positions, shard_headers, stripes
from diffkeeper.shards.file_shard_store import SUFFIX
from diffkeeper_repair import coder, rescue, salvage, similar
from diffkeeper_repair.damages import State

PAGE_BYTES = 8192


def write_page(tip: frames.Tip, page: bytes) -> frames.Frame:
    columns = deltas.Columns()
    columns.add(deltas.write(2, 0, page))
    stamp = clocks.from_micros(tip.position.sequence + 1)
    return frames.seal(
        frames.pack(columns, frames.Compressor()),
        volume=ORIGIN.volume,
        origin=ORIGIN.site,
        position=positions.Position(1, tip.position.sequence + 1),
        parent=tip.position,
        parent_hash=tip.hash,
        first=stamp,
        last=stamp,
    )


async def rig_with_versions(path: Path, pages: list[bytes]) -> tuple[RepairRig, list[bytes]]:
    """Each version of the page in a segment of its own, and streams that lost everything."""
    rig = RepairRig(path, 3, "2+1")
    await rig.begin()
    tip, wires = frames.ORIGIN_TIP, []
    for page in pages:
        frame = write_page(tip, page)
        wires.append(frame.wire)
        tip = frames.Tip(frame.position, frame.hash)
        await rig.log([frame])
        await rig.seal()
    rig.lose_streams()
    return rig, wires


def rot(rig: RepairRig, version: int, begin: int, size: int, rng: random.Random) -> None:
    """The same stretch of every shard of a version, so that no two of them agree there."""
    stripe = rig.service.catalogue.spans(ORIGIN)[version][1].stripe
    for node, key in [item for item in rig.items() if item[1].stripe == stripe]:
        data = bytearray(rig.stores[node].items[key])
        at = shard_headers.HEADER_BYTES + begin
        data[at : at + size] = rng.randbytes(size)
        rig.stores[node].items[key] = bytes(data)


async def test_an_earlier_version_of_a_page_is_the_only_way_to_restore_and_restores(tmp_path: Path) -> None:
    rng = random.Random(1)
    page = bytearray(rng.randbytes(PAGE_BYTES))
    versions = [bytes(page)]
    for at in (600, 5000):
        page[at : at + 200] = rng.randbytes(200)
        versions.append(bytes(page))
    rig, wires = await rig_with_versions(tmp_path, versions)
    # Neither half of the page has changed there since the version before.
    rot(rig, 2, begin=2000, size=300, rng=rng)
    await rig.service.scrub()
    entry = rig.service.catalogue.spans(ORIGIN)[2][1]
    assert (await rig.service.io.read(entry)).segment.wires == (wires[2],)
    assert rig.service.io.mended_by_likeness_total == 1
    await rig.mend()
    assert rig.service.book.open == [] and (await rig.service.scrub())["found"] == 0
    assert await rig.read_all() == wires
    assert rig.service.health()["ok"]


async def test_a_page_that_changed_where_it_is_lost_is_reported_lost_and_never_guessed(
    tmp_path: Path,
) -> None:
    rng = random.Random(2)
    page = bytearray(rng.randbytes(PAGE_BYTES))
    before = bytes(page)
    page[1900:1910] = rng.randbytes(10)  # ten bytes in the middle of what will be lost
    rig, wires = await rig_with_versions(tmp_path, [before, bytes(page)])
    rot(rig, 1, begin=2000, size=300, rng=rng)
    await rig.service.scrub()
    await rig.mend()
    with pytest.raises(errors.Corrupt):
        await rig.service.io.read(rig.service.catalogue.spans(ORIGIN)[1][1])
    assert rig.service.io.mended_by_likeness_total == 0
    assert [one.state for one in rig.service.book.open if not one.node] == [State.LOST]
    (lost,) = rig.service.health()["volumes"][0]["lost"]
    assert lost["words"] == "orders from east, positions 1.2 to 1.2"
    assert (await rig.service.io.read(rig.service.catalogue.spans(ORIGIN)[0][1])).segment.wires == (wires[0],)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["4+2", "2+1", "3+3"]), st.randoms(use_true_random=False))
def test_donors_give_the_segment_or_a_refusal_and_never_anything_else(
    text: str, chance: random.Random
) -> None:
    geometry = stripes.parse(text)
    data = chance.randbytes(chance.randint(2000, 20_000))
    shards = [bytearray(one) for one in coder.of(geometry).encode(data)]
    for _ in range(chance.randint(1, 3)):
        begin = chance.randrange(len(shards[0]))
        size = chance.randint(1, 300)
        for shard in shards:
            shard[begin : begin + size] = chance.randbytes(len(shard[begin : begin + size]))
    donor = bytearray(chance.randbytes(chance.randint(0, 50)) + data)
    for _ in range(chance.randint(0, 3)):
        at = chance.randrange(len(donor))
        donor[at : at + 20] = chance.randbytes(len(donor[at : at + 20]))
    damaged = {index: bytes(shard) for index, shard in enumerate(shards)}
    try:
        found = salvage.mend(geometry, {}, damaged, len(data), blake3(data).digest(), [bytes(donor)])
    except errors.Corrupt as error:
        assert error.reason == "beyond-salvage"  # noqa: PT017
    else:
        assert found == data


@pytest.mark.parametrize("text", ["2+1", "4+2", "10+4"])
def test_a_donor_and_a_shard_that_is_right_there_vouch_for_each_other(text: str) -> None:
    geometry = stripes.parse(text)
    chance = random.Random(text)
    data = chance.randbytes(60_000)
    shards = {index: bytearray(one) for index, one in enumerate(coder.of(geometry).encode(data))}
    # Many stretches: each on all but k - 1 of the shards, so that only a guess makes them enough.
    length = len(shards[0])
    for number in range(12):
        begin = 256 + number * (length - 512) // 12
        for index in chance.sample(sorted(shards), geometry.shards - geometry.data + 1):
            shards[index][begin : begin + 30] = chance.randbytes(30)
    damaged = {index: bytes(shard) for index, shard in shards.items()}
    wanted = blake3(data).digest()
    assert salvage.mend(geometry, {}, damaged, len(data), wanted, [b"other things" + data]) == data
    with pytest.raises(errors.Corrupt):
        salvage.mend(geometry, {}, damaged, len(data), wanted, [chance.randbytes(60_000)])


def test_a_whole_lost_shard_comes_back_from_a_duplicate() -> None:
    geometry = stripes.Geometry(4, 1)
    data = random.Random(4).randbytes(40_000)
    good = dict(enumerate(coder.of(geometry).encode(data)))
    del good[1], good[4]
    wanted = blake3(data).digest()
    assert salvage.mend(geometry, good, {}, len(data), wanted, [b"x" * 77 + data]) == data
    with pytest.raises(errors.Corrupt) as caught:
        salvage.mend(geometry, good, {}, len(data), wanted)
    assert caught.value.reason == "too-few-shards"


def test_near_duplicates_are_told_from_what_is_unlike() -> None:
    chance = random.Random(5)
    data = chance.randbytes(100_000)
    changed = bytearray(data)
    for _ in range(20):
        at = chance.randrange(len(changed) - 100)
        changed[at : at + 100] = chance.randbytes(100)
    moved = chance.randbytes(777) + data[:70_000]
    unlike = [chance.randbytes(100_000) for _ in range(4)]
    wanted = similar.sketch(data)
    assert similar.likeness(wanted, similar.sketch(bytes(changed))) > 0.7
    assert similar.likeness(wanted, similar.sketch(moved)) > 0.4
    assert all(similar.likeness(wanted, similar.sketch(one)) < 0.1 for one in unlike)
    assert similar.nearest(data, [*unlike, moved, bytes(changed)], 2) == [bytes(changed), moved]
    assert similar.nearest(b"", [b"", b"short"], 1) == [b""]


def test_what_stood_between_like_surroundings_is_found_though_they_changed_nearby() -> None:
    chance = random.Random(6)
    older, newer = chance.randbytes(5000), bytearray()
    newer += chance.randbytes(100) + older
    # The surroundings of the gap were rewritten for a hundred bytes before it and for twenty behind it.
    begin, size = 2100, 50
    lost = bytes(newer[begin : begin + size])
    newer[begin - 100 : begin] = chance.randbytes(100)
    newer[begin + size : begin + size + 20] = chance.randbytes(20)
    before, after = bytes(newer[begin - 1000 : begin]), bytes(newer[begin + size : begin + size + 1000])
    assert similar.fills(before, after, size, [chance.randbytes(3000), older]) == [lost]
    assert similar.fills(b"\0" * 1000, b"\0" * 1000, size, [bytes(5000)]) == []


def test_chain_frames_do_not_pass_for_a_page() -> None:
    """Two frames of the same length that share nothing but their form: nothing of one fills a gap of the other."""
    one, other = (next(framing.chain(1, seed=seed, size=4000)).wire for seed in (1, 2))
    assert similar.fills(one[1000:2000], one[2300:3300], 300, [other]) == []


async def test_rescue_asks_what_it_has_rescued_for_what_parity_does_not_give(tmp_path: Path) -> None:
    rng = random.Random(8)
    page = bytearray(rng.randbytes(PAGE_BYTES))
    versions = [bytes(page)]
    page[5000:5200] = rng.randbytes(200)
    versions.append(bytes(page))
    rig, _ = await rig_with_versions(tmp_path / "rig", versions)
    rot(rig, 1, begin=2000, size=300, rng=rng)
    for name, store in rig.stores.items():
        (tmp_path / name).mkdir()
        for key, data in store.items.items():
            (tmp_path / name / f"{key}{SUFFIX}").write_bytes(data)
    sources = [str(tmp_path / name) for name in rig.stores]
    report = await rescue.rescue(sources, tmp_path / "back", None)
    (volume,) = report["volumes"]
    assert volume["frames"] == 2 and not volume["lost"] and not volume["holes"]
    # Without the version before, the same damage is a loss that is named.
    first = rig.service.catalogue.spans(ORIGIN)[0][1].stripe.segment
    for name in rig.stores:
        for file in (tmp_path / name).glob(f"*{first}*"):
            file.unlink()
    (volume,) = (await rescue.rescue(sources, tmp_path / "less", None))["volumes"]
    assert [(one["first"], one["last"]) for one in volume["lost"]] == [("1.2", "1.2")]
