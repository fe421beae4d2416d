"""Segments whose shards are damaged on more nodes than parity covers."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import framing
from tests.support.repair_rig import RepairRig

from diffkeeper.domain import errors, segments, stripes
from diffkeeper.shards.file_shard_store import SUFFIX
from diffkeeper_repair import assembly, coder, rescue, salvage


def payloads_of(geometry: stripes.Geometry, data: bytes) -> dict[int, bytearray]:
    return {index: bytearray(one) for index, one in enumerate(coder.of(geometry).encode(data))}


def mended(
    geometry: stripes.Geometry, data: bytes, shards: dict[int, bytearray], bad: Iterable[int]
) -> bytes:
    damaged = {index: bytes(shards[index]) for index in bad}
    good = {index: bytes(shard) for index, shard in shards.items() if index not in damaged}
    return salvage.mend(geometry, good, damaged, len(data), blake3(data).digest())


@pytest.mark.parametrize("text", ["4+2", "2+8", "1+2", "10+4"])
def test_every_shard_damaged_in_another_place_gives_the_segment_back(text: str) -> None:
    geometry = stripes.parse(text)
    chance = random.Random(text)
    data = chance.randbytes(200_003)
    shards = payloads_of(geometry, data)
    length = geometry.payload_bytes(len(data))
    # One stretch each, none over another.
    room = length // geometry.shards
    for index, shard in shards.items():
        at = index * room
        shard[at : at + room // 2] = chance.randbytes(room // 2)
    assert mended(geometry, data, shards, list(shards)) == data


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["4+2", "2+3", "3+1", "2+8"]), st.integers(1, 5000), st.randoms(use_true_random=False))
def test_flipped_bits_give_the_segment_or_a_refusal_and_never_anything_else(
    text: str, size: int, chance: random.Random
) -> None:
    geometry = stripes.parse(text)
    data = chance.randbytes(size)
    shards = payloads_of(geometry, data)
    lost = chance.sample(sorted(shards), chance.randint(0, geometry.parity))
    for index in lost:
        del shards[index]
    bad = chance.sample(sorted(shards), chance.randint(len(shards) - geometry.data + 1, len(shards)))
    for index in bad:
        for _ in range(chance.randint(1, 4)):
            shards[index][chance.randrange(len(shards[index]))] ^= 1 << chance.randrange(8)
    try:
        found, refusal = mended(geometry, data, shards, bad), ""
    except errors.Corrupt as error:
        found, refusal = data, error.reason
    assert found == data and refusal in ("", "beyond-salvage")


def test_one_damaged_cell_without_a_second_witness_is_found_by_the_segments_hash() -> None:
    geometry = stripes.Geometry(4, 2)
    data = random.Random(1).randbytes(40_000)
    shards = payloads_of(geometry, data)
    del shards[5]
    # Five are left, two of them with a wrong byte in the same cell or not: one more than needed, and no witness.
    shards[0][3] ^= 1
    shards[1][9_000] ^= 1
    assert mended(geometry, data, shards, [0, 1]) == data


def test_garbage_is_refused_soon_and_too_few_at_once() -> None:
    geometry = stripes.Geometry(2, 8)
    data = random.Random(2).randbytes(1_000_000)
    shards = payloads_of(geometry, data)
    chance = random.Random(3)
    garbage = {index: bytearray(chance.randbytes(len(shard))) for index, shard in shards.items()}
    with pytest.raises(errors.Corrupt) as caught:
        mended(geometry, data, garbage, list(garbage))
    assert caught.value.reason == "beyond-salvage"
    with pytest.raises(errors.Corrupt) as caught:
        mended(geometry, data, {3: shards[3]}, [3])
    assert caught.value.reason == "too-few-shards"


def test_a_shard_of_another_segment_among_damaged_ones_does_no_harm() -> None:
    geometry = stripes.Geometry(2, 2)
    wires = tuple(frame.wire for frame in framing.chain(40))
    made = assembly.code(segments.Segment("orders", "east", 1, wires[:20]), geometry)
    other = assembly.code(segments.Segment("orders", "east", 21, wires[20:]), geometry)
    shards = [_open(made, index, flip=100 * index) for index in range(4)]
    stray = replace(_open(other, 1, flip=7), source="stray")
    stripe = shards[0].header.key.stripe
    found = assembly.mend(stripe, [], [stray, *shards])
    assert found.data == made.data and {one.source for one in found.liars} == {"stray", "0", "1", "2", "3"}


def _open(coded: assembly.Coded, index: int, flip: int) -> assembly.Shard:
    key, data = coded.shard(index, 1)
    damaged = bytearray(data)
    damaged[600 + flip] ^= 0xFF
    return assembly.open_header(bytes(damaged), str(index), key.stripe)


async def test_rot_on_every_node_at_once_is_mended_from_what_the_shards_still_agree_on(
    tmp_path: Path,
) -> None:
    rig = RepairRig(tmp_path, nodes=6, geometry="4+2")
    sent = await rig.log(framing.chain(60))
    await rig.begin()
    await rig.seal()
    chance = random.Random(5)
    assert len(rig.items()) == 6
    for number, (node, key) in enumerate(rig.items()):
        rig.flip(node, key, 8 * (600 + 70 * number + chance.randrange(60)))
    assert (await rig.service.scrub())["found"] == 6
    assert await rig.read_all() == [frame.wire for frame in sent]
    await rig.mend()
    assert rig.service.book.open == [] and (await rig.service.scrub())["found"] == 0
    assert rig.service.health()["ok"], rig.service.health()


async def test_rescue_mends_what_is_damaged_in_every_directory(tmp_path: Path) -> None:
    geometry = stripes.Geometry(2, 1)
    made = assembly.code(
        segments.Segment("orders", "east", 1, tuple(frame.wire for frame in framing.chain(30))), geometry
    )
    for index in range(3):
        key, data = made.shard(index, 1)
        damaged = bytearray(data)
        damaged[600 + 90 * index] ^= 1
        (tmp_path / f"node-{index}").mkdir()
        (tmp_path / f"node-{index}" / f"{key}{SUFFIX}").write_bytes(damaged)
    report = await rescue.rescue(
        [str(tmp_path / f"node-{index}") for index in range(3)], tmp_path / "back", None
    )
    (volume,) = report["volumes"]
    assert volume["frames"] == 30 and not volume["lost"] and len(report["damaged"]) == 3


def test_the_widest_stripes_are_given_up_without_counting_their_choices() -> None:
    """Of 32 shards there are 601 million ways to take 16."""
    geometry = stripes.Geometry(16, 16)
    chance = random.Random(11)
    data = chance.randbytes(3000)
    garbage = {index: bytearray(chance.randbytes(188)) for index in range(32)}
    assert geometry.payload_bytes(len(data)) == 188
    with pytest.raises(errors.Corrupt) as caught:
        mended(geometry, data, garbage, list(garbage))
    assert caught.value.reason == "beyond-salvage"
    with pytest.raises(errors.Corrupt):
        salvage.mend(
            geometry,
            {},
            {index: bytes(one) for index, one in garbage.items()},
            len(data),
            blake3(data).digest(),
            [data[:100] + b"".join(bytes(one) for one in garbage.values())],
        )
