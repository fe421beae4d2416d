"""Laws of frames: sealed and opened they are the same; altered, forged or oversized they are refused,
cheaply.
"""

from __future__ import annotations

import struct
import tracemalloc
from dataclasses import replace
from typing import Any

import msgpack
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from tests.support.delta_strategies import any_delta

from diffkeeper.domain import deltas, errors, frames, limits
from diffkeeper.domain.deltas import Delta
from diffkeeper.domain.frames import Flag, Follows, Frame, Tip
from diffkeeper.domain.positions import Position

PLACE, PARENT = Position(2, 8), Position(2, 7)
COMPRESSOR = frames.Compressor()


def sealed(
    run: list[Delta] | None = None,
    position: Position = PLACE,
    parent: Position = PARENT,
    parent_hash: bytes = b"\1" * 32,
    flags: Flag | None = None,
    successor: str = "",
) -> Frame:
    columns = deltas.Columns()
    for delta in run or []:
        columns.add(delta)
    return frames.seal(
        frames.pack(columns, COMPRESSOR),
        volume="v",
        origin="east",
        position=position,
        parent=parent,
        parent_hash=parent_hash,
        first=10,
        last=20,
        flags=Flag(0) if flags is None else flags,
        successor=successor,
    )


def with_header(frame: Frame, **changes: Any) -> bytes:
    """A frame's bytes with its header altered: what a forger or another version would send."""
    head_bytes = frame.body_at - 8
    fields = msgpack.unpackb(frame.wire[8 : 8 + head_bytes])
    fields.update(changes)
    head: bytes = msgpack.packb({key: value for key, value in fields.items() if value is not None})
    return b"DKF1" + struct.pack("<I", len(head)) + head + frame.wire[frame.body_at :]


def refusal(wire: bytes) -> str:
    with pytest.raises(errors.Corrupt) as caught:
        frames.open_frame(wire).columns()
    return caught.value.reason


@given(st.lists(any_delta(), max_size=12), st.sampled_from([Flag(0), *Flag, Flag.BARRIER | Flag.GAP]))
def test_what_is_sealed_is_opened(run: list[Delta], flags: Flag) -> None:
    frame = sealed(run, flags=flags, successor="west")
    opened = frames.open_frame(frame.wire)
    assert opened == frame
    assert list(opened.columns()) == run


@given(st.lists(any_delta(), min_size=1, max_size=5), st.data())
def test_any_altered_byte_changes_the_hash_or_is_refused(run: list[Delta], data: st.DataObject) -> None:
    frame = sealed(run)
    wire = bytearray(frame.wire)
    wire[data.draw(st.integers(0, len(wire) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        opened = frames.open_frame(bytes(wire))
        list(opened.columns())
    except errors.Corrupt:
        return
    assert opened.hash != frame.hash


@given(st.binary(max_size=200))
def test_noise_is_refused(noise: bytes) -> None:
    assert refusal(noise) == "malformed-frame"
    assert refusal(b"DKF1" + noise) == "malformed-frame"


@given(st.integers(0, 400))
def test_a_cut_frame_is_refused(keep: int) -> None:
    wire = sealed([deltas.write(2, 0, bytes(range(256)))]).wire
    assert keep >= len(wire) or refusal(wire[:keep]).startswith("malformed")


def test_trailing_bytes_are_refused() -> None:
    assert refusal(sealed([deltas.write(2, 0, b"x" * 1000)]).wire + b"!") == "malformed-frame"
    assert refusal(sealed().wire + b"!") == "malformed-frame"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"v": 2}, "unknown-version"),
        ({"new": 1}, "unknown-version"),
        ({"fl": 1 << 9}, "unknown-flag"),
        ({"cod": 7}, "malformed-frame"),
        ({"fid": 9}, "malformed-frame"),
        ({"seq": 0}, "malformed-frame"),
        ({"ep": 0}, "malformed-frame"),
        ({"pep": 3}, "malformed-frame"),
        ({"par": b"short"}, "malformed-frame"),
        ({"par": None}, "malformed-frame"),
        ({"vol": 5}, "malformed-frame"),
        ({"seq": True}, "malformed-frame"),
        ({"seq": 1.5}, "malformed-frame"),
        ({"h0": 21}, "malformed-frame"),
        ({"n": limits.FRAME_MAX_DELTAS + 1}, "malformed-frame"),
        ({"sz": limits.FRAME_MAX_BODY_BYTES + 1}, "malformed-frame"),
        ({"sz": 11}, "malformed-frame"),
        ({"vol": "x" * 300}, "malformed-frame"),
        ({"vol": {}}, "malformed-frame"),
        ({"v": None}, "malformed-frame"),
    ],
)
def test_headers_that_make_no_sense_are_refused(changes: dict[str, Any], reason: str) -> None:
    assert refusal(with_header(sealed([deltas.write(2, 0, b"x" * 100)]), **changes)) == reason


def test_a_header_key_that_stands_twice_is_refused() -> None:
    head = b"\x82\xa1v\x01\xa1v\x01"
    assert refusal(b"DKF1" + struct.pack("<I", len(head)) + head) == "malformed-frame"


def test_another_format_says_to_upgrade() -> None:
    assert refusal(b"DKF2" + sealed().wire[4:]) == "unknown-format"


def test_a_header_longer_than_the_frame_is_refused() -> None:
    assert refusal(b"DKF1" + struct.pack("<I", 4000) + b"\x80") == "malformed-frame"
    assert refusal(b"DKF1" + struct.pack("<I", 1 << 31) + b"\x80") == "malformed-frame"


def bomb(packed: bytes, announced: int) -> bytes:
    frame = sealed()
    wire = with_header(frame, sz=announced, cod=int(frames.Codec.ZSTD))
    return wire[: len(wire) - (len(frame.wire) - frame.body_at)] + packed


@pytest.mark.parametrize("announced", [100, limits.FRAME_MAX_BODY_BYTES])
@pytest.mark.parametrize("states_size", [True, False])
def test_a_zstd_bomb_takes_no_memory(announced: int, states_size: bool) -> None:
    packed = zstandard.ZstdCompressor(level=3, write_content_size=states_size).compress(bytes(1 << 26))
    tracemalloc.start()
    try:
        assert refusal(bomb(packed, announced)) == "malformed-frame"
        assert tracemalloc.get_traced_memory()[1] < 2 * limits.FRAME_MAX_BODY_BYTES
    finally:
        tracemalloc.stop()


def test_a_body_larger_than_announced_is_refused() -> None:
    packed = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(5000))
    assert refusal(bomb(packed, 100)) == "malformed-frame"
    packed = zstandard.ZstdCompressor().compress(bytes(12)) + zstandard.ZstdCompressor().compress(bytes(12))
    assert refusal(bomb(packed, 12)) == "malformed-frame"


def test_an_oversized_frame_is_refused_unread() -> None:
    assert refusal(b"DKF1" + bytes(limits.FRAME_MAX_BYTES)) == "malformed-frame"


# ---- follows

H = b"\1" * 32
TIP = Tip(Position(2, 7), H)


@pytest.mark.parametrize(
    ("position", "parent", "parent_hash", "expected"),
    [
        (Position(2, 8), Position(2, 7), H, Follows.NEXT),
        (Position(3, 8), Position(2, 7), H, Follows.NEXT),  # a new reign
        (Position(2, 8), Position(2, 7), b"\2" * 32, Follows.FORK),
        (Position(2, 9), Position(2, 8), H, Follows.GAP),
        (Position(4, 9), Position(3, 8), H, Follows.GAP),
        (Position(2, 5), Position(2, 4), H, Follows.DUPLICATE),
        (Position(1, 8), Position(1, 7), H, Follows.STALE),
        (Position(3, 6), Position(2, 5), H, Follows.FORK),  # a reign that began before our tip
        (Position(2, 7), Position(2, 6), H, Follows.FORK),  # our place, another hash
    ],
)
def test_where_a_frame_stands_to_a_tip(
    position: Position, parent: Position, parent_hash: bytes, expected: Follows
) -> None:
    assert frames.follows(TIP, sealed(position=position, parent=parent, parent_hash=parent_hash)) is expected


def test_the_tip_itself_is_a_duplicate() -> None:
    frame = sealed(position=Position(2, 7), parent=Position(2, 6))
    assert frames.follows(Tip(frame.position, frame.hash), frame) is Follows.DUPLICATE


@given(
    st.integers(1, 5),
    st.integers(1, 9),
    st.integers(0, 1),
    st.booleans(),
    st.integers(1, 5),
    st.integers(1, 9),
)
def test_only_what_names_the_tip_as_its_parent_is_next(
    epoch: int, sequence: int, older: int, same_hash: bool, tip_epoch: int, tip_sequence: int
) -> None:
    parent = Position(max(0, epoch - older), sequence - 1)
    tip = Tip(Position(tip_epoch, tip_sequence), H)
    frame = sealed(
        position=Position(epoch, sequence), parent=parent, parent_hash=H if same_hash else b"\2" * 32
    )
    is_next = frames.follows(tip, frame) is Follows.NEXT
    assert is_next == (epoch >= tip_epoch and parent == tip.position and same_hash)


def test_message_ids_differ_wherever_frames_differ() -> None:
    one, other = sealed([deltas.write(2, 0, b"x")]), sealed([deltas.write(2, 0, b"y")])
    assert one.message_id != other.message_id
    assert replace(one, hash=other.hash).message_id == other.message_id
