"""Coding and assembling: every choice of shards, shards that lie, shards of a forger."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
from blake3 import blake3
from pyeclib.ec_iface import ECDriver
from tests.support import framing

from diffkeeper.domain import errors, segments, shard_headers, stripes
from diffkeeper_repair import assembly, coder, isal, liberasurecode


def a_segment(count: int = 5) -> segments.Segment:
    return segments.Segment("orders", "east", 1, tuple(frame.wire for frame in framing.chain(count)))


def shards_of(coded: assembly.Coded) -> list[assembly.Shard]:
    return [
        assembly.open_shard(coded.shard(index, 1)[1], f"node-{index}")
        for index in range(coded.geometry.shards)
    ]


@pytest.mark.parametrize("text", ["1+1", "1+5", "2+8", "3+2", "4+2", "5+3", "4+4", "2+0"])
def test_every_choice_of_enough_shards_gives_the_segment_back(text: str) -> None:
    geometry = stripes.parse(text)
    rng = random.Random(text)
    for size in (1, geometry.data, 1000, 4097):
        data = rng.randbytes(size)
        payloads = coder.of(geometry).encode(data)
        for chosen in itertools.combinations(range(geometry.shards), geometry.data):
            assert coder.of(geometry).decode({index: payloads[index] for index in chosen}, size) == data


@pytest.mark.parametrize("text", ["10+4", "12+4", "8+8", "2+30", "16+16"])
def test_wide_stripes_come_back_from_any_choice_tried(text: str) -> None:
    geometry = stripes.parse(text)
    rng = random.Random(text)
    data = rng.randbytes(999)
    payloads = coder.of(geometry).encode(data)
    for _ in range(200):
        chosen = rng.sample(range(geometry.shards), geometry.data)
        assert coder.of(geometry).decode({index: payloads[index] for index in chosen}, 999) == data


@pytest.mark.parametrize("text", ["2+8", "4+2", "10+4"])
def test_the_head_made_for_the_library_is_the_one_it_makes(text: str) -> None:
    geometry = stripes.parse(text)
    twin = liberasurecode.Liberasurecode(geometry)
    driver = ECDriver(k=geometry.data, m=geometry.parity, ec_type=liberasurecode.EC_TYPE)
    for size in (1, 17, 100_001):
        for index, fragment in enumerate(driver.encode(bytes(size))):
            made = twin.head(index, geometry.payload_bytes(size), size)
            assert fragment[:80] == made, (size, index)


@pytest.mark.parametrize("text", ["1+1", "1+5", "2+8", "3+2", "4+2", "7+3", "10+4", "16+16", "31+1"])
def test_the_arithmetic_called_directly_gives_the_bytes_of_its_twin(text: str) -> None:
    assert isal.library() is not None, "pyeclib brings it"
    geometry, rng = stripes.parse(text), random.Random(text)
    twin = liberasurecode.Liberasurecode(geometry)
    for size in (1, 2, 31, 33, geometry.data, 1000, 65_537):
        data = rng.randbytes(size)
        payloads = coder.of(geometry).encode(data)
        assert list(payloads) == list(twin.encode(data)), size
        for _ in range(5):
            chosen = {index: payloads[index] for index in rng.sample(range(geometry.shards), geometry.data)}
            assert coder.of(geometry).decode(chosen, size) == data
            assert twin.decode(chosen, size) == data


def test_liars_are_named_and_never_believed() -> None:
    rng = random.Random(7)
    geometry = stripes.Geometry(3, 5)
    data = rng.randbytes(3000)
    payloads = coder.of(geometry).encode(data)
    for count in range(6):
        lying = sorted(rng.sample(range(8), count))
        claims = [(i, rng.randbytes(1000) if i in lying else payload) for i, payload in enumerate(payloads)]
        found, named = coder.decode_believed(geometry, claims, 3000, blake3(data).digest())
        assert found == data and named == lying
    claims = [(i, payload if i < 2 else rng.randbytes(1000)) for i, payload in enumerate(payloads)]
    with pytest.raises(errors.Corrupt) as caught:
        coder.decode_believed(geometry, claims, 3000, blake3(data).digest())
    assert caught.value.reason == "no-good-subset"


def test_too_few_shards_are_an_error_that_says_how_many() -> None:
    with pytest.raises(errors.Corrupt) as caught:
        coder.decode_believed(stripes.Geometry(3, 2), [(0, b"a"), (0, b"b"), (4, b"c")], 3, bytes(32))
    assert (caught.value.facts["have"], caught.value.facts["need"]) == (2, 3)


def test_a_segment_is_assembled_among_shards_that_claim_another_hash() -> None:
    coded = assembly.code(a_segment(), stripes.Geometry(2, 2))
    stripe = coded.manifest(1, {}, 0).stripe
    shards = shards_of(coded)
    # The beginning of the hash, which is the name, is the same; the rest is not.
    forged_hash = coded.segment_hash[:16] + bytes(16)
    forged = [
        replace(one, header=replace(one.header, segment_hash=forged_hash), source=f"liar-{one.header.index}")
        for one in shards[:3]
    ]
    found = assembly.assemble(stripe, [*forged, *shards[2:]])
    assert found.segment == a_segment()
    assert {liar.source for liar in found.liars} == {"liar-0", "liar-1", "liar-2"}


def test_a_shard_under_a_foreign_name_is_refused() -> None:
    coded = assembly.code(a_segment(), stripes.Geometry(2, 2))
    other = shard_headers.Stripe("invoices", coded.manifest(1, {}, 0).name, coded.geometry)
    with pytest.raises(errors.Corrupt) as caught:
        assembly.open_shard(coded.shard(0, 1)[1], "node", other)
    assert caught.value.reason == "foreign-shard"


def test_random_bytes_and_cut_shards_are_no_shards() -> None:
    rng = random.Random(8)
    whole = assembly.code(a_segment(), stripes.Geometry(2, 2)).shard(1, 1)[1]
    for _ in range(30):
        with pytest.raises(errors.Corrupt):
            assembly.open_shard(rng.randbytes(rng.randrange(1500)), "node")
        with pytest.raises(errors.Corrupt):
            assembly.open_shard(whole[: rng.randrange(len(whole))], "node")
