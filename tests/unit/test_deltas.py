"""Laws of the body of a frame: what is encoded comes back, and hostile bytes are refused before they cost
anything.
"""

from __future__ import annotations

import contextlib
import struct
import tracemalloc

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.delta_strategies import any_delta

from diffkeeper.domain import deltas, errors, limits
from diffkeeper.domain.deltas import Columns, Delta, Op


def columns_of(run: list[Delta]) -> Columns:
    columns = Columns()
    for delta in run:
        columns.add(delta)
    return columns


def body(
    ops: bytes, args: bytes, data: bytes = b"", *, ids: int = 2, offset: int = 0, length: int = 0
) -> bytes:
    count = len(ops)
    return b"".join(
        (
            struct.pack("<III", count, len(args), len(data)),
            ops,
            struct.pack("<Q", ids) * count,
            struct.pack("<Q", offset) * count,
            struct.pack("<Q", length) * count,
            struct.pack("<I", 0) * count,
            args,
            data,
        )
    )


def refusal(wire: bytes) -> str:
    with pytest.raises(errors.Corrupt) as caught:
        deltas.decode(wire)
    return caught.value.reason


@given(st.lists(any_delta(), max_size=30))
def test_what_is_encoded_comes_back(run: list[Delta]) -> None:
    columns = deltas.decode(columns_of(run).encode())
    assert list(columns) == run
    assert len(columns) == len(run)


@given(st.lists(any_delta(), max_size=8))
def test_writes_by_either_door_are_the_same(run: list[Delta]) -> None:
    by_hand = Columns()
    for delta in run:
        if delta.op is Op.WRITE:
            by_hand.add_write(delta.file_id, delta.offset, memoryview(delta.data), delta.at_us)
        else:
            by_hand.add(delta)
    assert by_hand.encode() == columns_of(run).encode()


@given(st.binary(max_size=300))
def test_noise_is_refused_or_is_well_formed(noise: bytes) -> None:
    with contextlib.suppress(errors.Corrupt):
        assert deltas.decode(noise).encode() is not None


@given(st.lists(any_delta(), min_size=1, max_size=6), st.data())
def test_one_altered_byte_never_raises_anything_but_corrupt(run: list[Delta], data: st.DataObject) -> None:
    wire = bytearray(columns_of(run).encode())
    at = data.draw(st.integers(0, len(wire) - 1))
    wire[at] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(errors.Corrupt):
        list(deltas.decode(bytes(wire)))


@given(st.lists(any_delta(), max_size=6), st.binary(min_size=1, max_size=9))
def test_trailing_and_missing_bytes_are_refused(run: list[Delta], more: bytes) -> None:
    wire = columns_of(run).encode()
    assert refusal(wire + more) == "malformed-body"
    assert refusal(wire[:-1]) == "malformed-body"


def test_unknown_operation_says_to_upgrade() -> None:
    assert refusal(body(b"\x63", msgpack.packb([]))) == "unknown-operation"


@pytest.mark.parametrize(
    ("op", "args"),
    [
        (Op.CREATE, [1, b"a/b", 0o644, 0, 0]),
        (Op.CREATE, [1, b"..", 0o644, 0, 0]),
        (Op.CREATE, [1, b"", 0o644, 0, 0]),
        (Op.CREATE, [1, b"a\0", 0o644, 0, 0]),
        (Op.CREATE, [1, b"x" * 256, 0o644, 0, 0]),
        (Op.CREATE, [1, "text", 0o644, 0, 0]),
        (Op.CREATE, [1, b"a", 0o200000, 0, 0]),
        (Op.CREATE, [1, b"a", True, 0, 0]),
        (Op.CREATE, [-1, b"a", 0, 0, 0]),
        (Op.CREATE, [1 << 63, b"a", 0, 0, 0]),
        (Op.CREATE, [1, b"a", 0, 0]),
        (Op.RENAME, [1, b"a", 1, b"b", 1]),
        (Op.RENAME, [1, b"a", 1, b".", False]),
        (Op.SYMLINK, [1, b"a", b"", 0, 0]),
        (Op.SYMLINK, [1, b"a", b"x\0", 0, 0]),
        (Op.SYMLINK, [1, b"a", b"x" * 4097, 0, 0]),
        (Op.ATTR, [{"size": 4}]),
        (Op.ATTR, [{"mode": 1 << 20}]),
        (Op.ATTR, [[]]),
        (Op.XATTR, [b"", b"v"]),
        (Op.XATTR, [b"user.x", 5]),
        (Op.BARRIER, ["fsync", -1]),
        (Op.GAP, ["cause"]),
        (Op.UNLINK, None),
        (Op.UNLINK, {}),
    ],
)
def test_malformed_arguments_are_refused(op: Op, args: object) -> None:
    assert refusal(body(bytes([op]), msgpack.packb([args]))) == "malformed-body"


def test_a_key_that_stands_twice_is_refused() -> None:
    twice = b"\x91\x91\x82\xa4mode\x01\xa4mode\x02"
    assert refusal(body(bytes([Op.ATTR]), twice)) == "malformed-body"


def test_arguments_must_match_the_operations() -> None:
    args = [[1, b"a"], [1, b"b"]]
    assert refusal(body(bytes([Op.UNLINK]), msgpack.packb(args))) == "malformed-body"
    assert refusal(body(bytes([Op.UNLINK]) * 3, msgpack.packb(args))) == "malformed-body"


def test_ranges_and_ids_have_bounds() -> None:
    empty = msgpack.packb([])
    assert refusal(body(b"\x03", empty, offset=1 << 63)) == "malformed-body"
    assert refusal(body(b"\x02", empty, b"x", offset=limits.FILE_MAX_OFFSET, length=1)) == "malformed-body"
    assert refusal(body(b"\x03", empty, ids=1 << 63)) == "malformed-body"
    assert refusal(body(b"\x02", empty, b"x", length=2)) == "malformed-body"
    assert refusal(body(b"\x02", empty, b"xyz", length=2)) == "malformed-body"


def bombs() -> dict[str, bytes]:
    room = limits.FRAME_MAX_BODY_BYTES - 64
    return {
        "millions of empty lists": b"\xdd" + struct.pack(">I", room - 5) + b"\x90" * (room - 5),
        "a list announced longer than memory": b"\xdd\xff\xff\xff\xff",
        "empty lists in one argument": b"\x91\xdc\xff\xff" + b"\x90" * 65535,
        "lists of five, nested": b"\x91" + b"\x95" * (room - 1),
        "maps of five, nested": b"\x91\x91" + b"\x85\xa1a" * 1000,
        "a text announced longer than memory": b"\x91\x91\xdb\xff\xff\xff\xff",
        "bytes announced longer than memory": b"\x91\x91\xc6\xff\xff\xff\xff",
    }


@pytest.mark.parametrize("name", bombs())
def test_a_bomb_is_refused_within_the_memory_of_its_own_size(name: str) -> None:
    wire = body(bytes([Op.UNLINK]), bombs()[name])
    tracemalloc.start()
    try:
        assert refusal(wire) == "malformed-body"
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * len(wire) + 4_000_000


def test_the_largest_honest_body_is_read() -> None:
    columns = Columns()
    for number in range(5):
        columns.add_write(2, number, bytes(limits.DELTA_MAX_DATA_BYTES), 0)
    assert deltas.decode(columns.encode()).data == columns.data
    columns.add_write(2, 9, bytes(limits.DELTA_MAX_DATA_BYTES), 0)
    assert refusal(columns.encode()) == "malformed-body"
