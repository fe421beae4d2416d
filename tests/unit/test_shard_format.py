"""Segments, shard headers and manifests: what is written is read again, and flipped bits never pass."""

from __future__ import annotations

import random

import msgpack
import pytest
import reedsolo
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import framing

from diffkeeper.domain import errors, frames, manifests, positions, segments, shard_headers, stripes

SPAN = segments.Span("orders", "east", 7, 5, positions.Position(1, 7), positions.Position(2, 11), 10, 20)
PAYLOAD = bytes(range(250))
HEADER = shard_headers.Header(
    stripes.Geometry(4, 2), 5, 3, blake3(b"segment").digest(), 1000, blake3(PAYLOAD).digest(), SPAN
)
MANIFEST = manifests.Manifest(
    stripes.Geometry(4, 2),
    3,
    HEADER.segment_hash,
    1000,
    SPAN,
    tuple(blake3(bytes([index])).digest() for index in range(6)),
    {0: "node-01", 5: "node-06"},
    99,
)


def a_segment() -> segments.Segment:
    return segments.Segment("orders", "east", 1, tuple(frame.wire for frame in framing.chain(9)))


def flipped(data: bytes, bits: list[int]) -> bytes:
    damaged = bytearray(data)
    for bit in bits:
        damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def test_a_segment_comes_back_and_is_the_same_bytes_each_time() -> None:
    data = segments.encode(a_segment())
    assert data == segments.encode(a_segment())
    found = segments.decode(data, blake3(data).digest())
    assert found == a_segment()
    assert found.span().words() == "orders from east, positions 1.1 to 1.9"
    assert found.wire(4) == a_segment().wires[3]


def test_no_flipped_bit_of_a_segment_passes() -> None:
    rng = random.Random(1)
    data = segments.encode(a_segment())
    digest = blake3(data).digest()
    for _ in range(2000):
        with pytest.raises(errors.Corrupt):
            segments.decode(flipped(data, [rng.randrange(8 * len(data))]), digest)


@pytest.mark.parametrize(
    "change",
    [
        {"n": 1 << 40},
        {"n": 0},
        {"n": True},
        {"at": 0},
        {"at": -1},
        {"vol": "../../etc"},
        {"vol": "a/b"},
        {"org": ""},
        {"v": 2},
        {"extra": 1},
    ],
)
def test_a_segment_of_a_forger_is_refused_even_with_its_own_hash(change: dict[str, object]) -> None:
    whole = a_segment()
    fields = {"v": 1, "vol": "orders", "org": "east", "at": 1, "n": 9} | change
    head = msgpack.packb(fields)
    data = segments._PREFIX.pack(segments.MAGIC, len(head)) + head + b"".join(whole.wires)
    with pytest.raises(errors.Corrupt):
        segments.decode(data, blake3(data).digest())


def test_what_does_not_continue_its_stream_is_not_sealed() -> None:
    one, two, three = framing.chain(3)
    segments.continues(None, one, framing.ORIGIN)
    segments.continues(one, two, framing.ORIGIN)
    with pytest.raises(errors.Corrupt) as caught:
        segments.continues(one, three, framing.ORIGIN)
    assert caught.value.reason == "broken-chain"
    (fork,) = framing.chain(1, parent=frames.Tip(one.position, bytes(32)))
    with pytest.raises(errors.Corrupt):
        segments.continues(one, fork, framing.ORIGIN)


# -- headers -----------------------------------------------------------------------------------------------------


def test_the_check_bytes_are_those_of_reedsolo() -> None:
    raw = shard_headers.encode(HEADER)
    for block in (raw[0::2], raw[1::2]):
        assert bytes(reedsolo.RSCodec(64).encode(block[:191])) == block


@given(
    st.integers(1, 16),
    st.integers(0, 16),
    st.integers(0, shard_headers.EPOCH_MAX),
    st.integers(1, segments.MAX_BYTES),
)
def test_a_header_comes_back(data: int, parity: int, epoch: int, size: int) -> None:
    geometry = stripes.Geometry(data, parity)
    header = shard_headers.Header(geometry, geometry.shards - 1, epoch, bytes(32), size, bytes(32), SPAN)
    assert shard_headers.decode(shard_headers.encode(header)) == (header, False)


def test_flipped_bits_in_a_header_are_found_and_put_right_wherever_they_are() -> None:
    rng = random.Random(2)
    raw = shard_headers.encode(HEADER)
    for _ in range(100):
        bits = rng.sample(range(8 * len(raw)), rng.randrange(1, 25))
        assert shard_headers.decode(flipped(raw, bits)) == (HEADER, True), bits


def test_more_flipped_bits_than_can_be_put_right_never_give_another_header() -> None:
    rng = random.Random(3)
    raw = shard_headers.encode(HEADER)
    for _ in range(60):
        data = bytearray(raw)
        for place in rng.sample(range(len(raw)), rng.randrange(70, 400)):
            data[place] ^= rng.randrange(1, 256)
        with pytest.raises(errors.Corrupt):
            shard_headers.decode(bytes(data))


def test_a_burst_of_sixty_zeroed_bytes_is_put_right() -> None:
    raw = bytearray(shard_headers.encode(HEADER))
    raw[100:160] = bytes(60)
    assert shard_headers.decode(bytes(raw)) == (HEADER, True)


def test_no_flipped_bit_of_a_payload_passes() -> None:
    rng = random.Random(4)
    shard_headers.check_payload(HEADER, PAYLOAD)
    for _ in range(2000):
        with pytest.raises(errors.Corrupt):
            shard_headers.check_payload(HEADER, flipped(PAYLOAD, [rng.randrange(8 * len(PAYLOAD))]))
    with pytest.raises(errors.Corrupt):
        shard_headers.check_payload(HEADER, PAYLOAD + b"\0")


@pytest.mark.parametrize(
    "field",
    [
        {"data": 0},
        {"data": 30, "parity": 30},
        {"index": 6},
        {"epoch": shard_headers.EPOCH_MAX + 1},
        {"segment_bytes": (1 << 32) - 1},
        {"segment_bytes": 0},
        {"payload_bytes": 1 << 31},
        {"count": 0},
        {"count": 1 << 31},
        {"sequence": 0},
        {"volume": b"../../../etc/cron.d/x"},
        {"volume": b"a/b"},
        {"volume": b""},
        {"volume": b"\xff\xfe"},
        {"origin": b".."},
        {"kind": 9},
        {"magic": b"DKH9"},
    ],
)
def test_a_header_of_a_forger_is_refused_though_its_digest_holds(field: dict[str, object]) -> None:
    fields: dict[str, object] = {
        "magic": b"DKH1",
        "data": 4,
        "parity": 2,
        "index": 5,
        "kind": 0,
        "epoch": 3,
        "segment_bytes": 1000,
        "payload_bytes": 250,
        "sequence": 7,
        "count": 5,
        "numbers": (1, 7, 2, 11, 10, 20),
        "segment_hash": bytes(32),
        "payload_digest": bytes(32),
        "volume": b"orders",
        "origin": b"east",
    } | field
    numbers = fields.pop("numbers")
    assert isinstance(numbers, tuple)
    values = list(fields.values())
    packed = shard_headers._FIELDS.pack(*values[:10], *numbers, *values[10:])
    raw = shard_headers._protect(
        packed + blake3(packed).digest(shard_headers._DIGEST) + shard_headers._PADDING
    )
    with pytest.raises(errors.Corrupt):
        shard_headers.decode(raw)


@pytest.mark.parametrize(
    "text", ["", "orders", "a.b.c.d.e", f"orders.{'0' * 32}.2-8.1.10", f"orders.{'0' * 32}.02-8.1.1"]
)
def test_names_that_no_service_writes_are_no_keys(text: str) -> None:
    assert shard_headers.parse_key(text) is None


def test_a_key_is_read_as_it_was_written() -> None:
    for index in (shard_headers.MANIFEST, 0, 5):
        key = shard_headers.Key(HEADER.key.stripe, 3, index)
        assert shard_headers.parse_key(str(key)) == key


# -- manifests ---------------------------------------------------------------------------------------------------


def test_a_manifest_comes_back_and_knows_its_shards_headers() -> None:
    assert manifests.decode(manifests.encode(MANIFEST)) == MANIFEST
    assert MANIFEST.header(5).key.index == 5
    assert MANIFEST.stripe == HEADER.key.stripe


def test_no_flipped_bit_of_a_manifest_passes() -> None:
    data = manifests.encode(MANIFEST)
    for bit in range(8 * len(data)):
        with pytest.raises(errors.Corrupt):
            manifests.decode(flipped(data, [bit]))


@settings(max_examples=30)
@given(
    st.recursive(
        st.integers() | st.binary(max_size=40) | st.text(max_size=8) | st.none(), st.lists, max_leaves=30
    )
)
def test_a_manifest_of_a_forger_is_refused(value: object) -> None:
    try:
        packed = msgpack.packb(value)
    except OverflowError:
        return
    with pytest.raises(errors.Corrupt):
        manifests.decode(manifests.MAGIC + blake3(packed).digest() + packed)
