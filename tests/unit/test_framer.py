"""The framer: an unbroken chain of frames whose deltas are those it was given, in order."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st
from tests.support.replays import Replay

from diffkeeper.domain import clocks, deltas, frames, limits, positions
from diffkeeper.domain.deltas import Delta, Op
from diffkeeper_capture.framer import Framer


class HandClock:
    def __init__(self) -> None:
        self.now_us = 1_000_000
        self.wall_us = 1_700_000_000_000_000

    def unix_us(self) -> int:
        return self.wall_us

    def monotonic_us(self) -> int:
        return self.now_us


def framer(clock: HandClock | None = None, **settings: object) -> Framer:
    tip = frames.Tip(positions.Position(2, 10), b"\7" * 32)
    return Framer(
        volume="v",
        origin="east",
        epoch=3,
        tip=tip,
        clock=clock or HandClock(),
        **settings,  # type: ignore[arg-type]
    )


def deltas_of(run: list[frames.Frame]) -> list[Delta]:
    return [delta for frame in run for delta in frames.open_frame(frame.wire).columns()]


def test_frames_follow_each_other_from_the_tip_given() -> None:
    made = framer()
    tip = made.tip
    for number in range(5):
        made.add_write(2, number, b"x", 1_000_000 + number)
        for frame in made.cut():
            assert frames.follows(tip, frame) is frames.Follows.NEXT
            tip = frames.Tip(frame.position, frame.hash)
    assert tip == made.tip
    assert tip.position == positions.Position(3, 15)


def test_a_full_frame_is_sealed_by_itself_and_taken_in_order() -> None:
    made = framer()
    data = os.urandom(limits.FRAME_TARGET_BYTES // 4)
    for number in range(10):
        made.add_write(2, number * len(data), data, 1_000_000)
    early = made.take()
    assert [frame.header.count for frame in early] == [4, 4]
    rest = made.cut(frames.Flag.BARRIER)
    assert [frame.header.count for frame in rest] == [2]
    assert rest[-1].header.flags == frames.Flag.BARRIER
    assert len(deltas_of(early + rest)) == 10


@given(st.lists(st.integers(0, 200), min_size=1, max_size=50))
def test_tiny_deltas_never_outgrow_a_frame(sizes: list[int]) -> None:
    made = framer()
    for number in range(3000):
        made.add_write(2, number, bytes(sizes[number % len(sizes)]), 1_000_000)
    for frame in made.cut():
        assert frame.header.count <= limits.FRAME_MAX_DELTAS
        assert len(frame.wire) <= limits.FRAME_MAX_BYTES


def test_the_last_frame_of_a_barrier_carries_its_flag_even_when_the_one_before_was_just_full() -> None:
    made = framer()
    made.add_write(2, 0, bytes(limits.FRAME_TARGET_BYTES), 1_000_000)
    flags = [frame.header.flags for frame in made.cut(frames.Flag.BARRIER)]
    assert flags == [frames.Flag(0), frames.Flag.BARRIER]


def test_a_barrier_with_nothing_new_makes_no_frame_and_a_handover_does() -> None:
    made = framer()
    assert made.cut(frames.Flag.BARRIER) == []
    (frame,) = made.cut(frames.Flag.HANDOVER, successor="west")
    assert (frame.header.count, frame.header.successor) == (0, "west")


def test_fidelity_is_that_of_the_worst_delta_and_starts_again_with_each_frame() -> None:
    made = framer()
    made.add_write(2, 0, b"x", 1_000_000)
    made.note_fidelity(frames.Fidelity.SCAN)
    made.note_fidelity(frames.Fidelity.PAGE)
    assert made.cut()[0].header.fidelity is frames.Fidelity.SCAN
    made.add_write(2, 0, b"x", 1_000_000)
    assert made.cut()[0].header.fidelity is frames.Fidelity.EXACT


def test_a_floor_holds_for_every_frame_until_it_is_lifted() -> None:
    made = framer()
    made.set_floor(frames.Fidelity.SCAN)
    for lifted in (False, False, True):
        if lifted:
            made.set_floor(frames.Fidelity.EXACT)
        made.add_write(2, 0, b"x", 1_000_000)
        expected = frames.Fidelity.EXACT if lifted else frames.Fidelity.SCAN
        assert made.cut()[0].header.fidelity is expected


def test_a_gap_flags_its_own_frame_only() -> None:
    made = framer()
    made.gap("lost-records", "7")
    assert made.cut()[0].header.flags == frames.Flag.GAP
    made.add_write(2, 0, b"x", 1_000_000)
    assert made.cut()[0].header.flags == frames.Flag(0)
    assert made.gaps == 1


def test_a_gap_that_fills_a_frame_flags_that_frame() -> None:
    made = framer()
    made.add_write(2, 0, bytes(limits.FRAME_TARGET_BYTES - 60), 1_000_000)
    made.gap("lost-records", "x" * 900)
    (frame,) = made.take()
    assert frame.header.flags == frames.Flag.GAP


def test_base_frames_are_flagged_until_the_base_ends() -> None:
    made = framer(in_base=True)
    made.add_write(2, 0, b"x", 1_000_000)
    assert made.cut()[0].header.flags == frames.Flag.BASE
    assert made.cut(frames.Flag.BASE_END)[0].header.flags == frames.Flag.BASE | frames.Flag.BASE_END
    made.add_write(2, 0, b"x", 1_000_000)
    assert made.cut()[0].header.flags == frames.Flag(0)


def test_stamps_follow_the_wall_and_never_go_back() -> None:
    clock = HandClock()
    made = framer(clock)
    last = 0
    for step_us in (10, 0, -3_600_000_000, 5, 20_000_000):
        clock.wall_us += step_us
        clock.now_us += 100
        made.add_write(2, 0, b"x", clock.now_us - 50)
        made.add_write(2, 0, b"x", clock.now_us - 10)
        header = made.cut()[0].header
        assert last < header.first <= header.last
        last = header.last
    assert clocks.to_micros(last) == clock.wall_us - 10 or clocks.to_micros(last) > clock.wall_us


def test_times_within_a_frame_are_relative_and_bounded() -> None:
    clock = HandClock()
    made = framer(clock)
    made.add_write(2, 0, b"x", 1_000_000)
    made.add_write(2, 0, b"x", 1_000_250)
    made.add_write(2, 0, b"x", 999_000)  # another processor's clock, a little behind
    made.add(Delta(Op.TRUNCATE, 2, 5))
    made.add(deltas.Delta(Op.TRUNCATE, 2, 6, at_us=1_000_300))
    made.add_write(2, 0, b"x", 1 << 60)
    assert [delta.at_us for delta in deltas_of(made.cut())] == [0, 250, 0, 0, 300, (1 << 32) - 1]


def test_the_age_of_the_oldest_pending_delta() -> None:
    clock = HandClock()
    made = framer(clock)
    assert made.oldest_pending_age() == 0
    made.add_write(2, 0, b"x", 1_000_000)
    clock.now_us += 70
    made.add_write(2, 0, b"x", 1_000_070)
    assert made.oldest_pending_age() == 70
    made.cut()
    assert made.oldest_pending_age() == 0


def test_what_went_in_is_replayed_whole() -> None:
    made = framer()
    made.add(Delta(Op.CREATE, 2, args=(1, b"a", 0o644, 0, 0)))
    expected = bytearray()
    for number in range(300):
        data = bytes([number % 251]) * 9000
        made.add_write(2, len(expected), data, 1_000_000 + number)
        expected += data
    replay = Replay().apply_frames(made.cut(frames.Flag.BARRIER))
    assert replay.contents[2] == expected


def test_a_barrier_over_nothing_but_marks_of_sync_calls_makes_no_frame() -> None:
    made = framer()
    tip = made.tip
    for _ in range(3):
        made.add(Delta(Op.BARRIER, 2, args=("fsync", 7), at_us=1_000_000))
        assert made.cut(frames.Flag.BARRIER) == []
    assert made.tip == tip
    assert not made.changes_something


def test_marks_of_sync_calls_travel_with_the_next_change_or_an_ordinary_cut() -> None:
    mark = Delta(Op.BARRIER, 2, args=("fsync", 7), at_us=1_000_000)
    made = framer()
    made.add(mark)
    made.add_write(2, 0, b"x", 1_000_001)
    assert [delta.op for delta in deltas_of(made.cut(frames.Flag.BARRIER))] == [Op.BARRIER, Op.WRITE]
    made.add(mark)
    assert [delta.op for delta in deltas_of(made.cut())] == [Op.BARRIER]


def test_other_flags_are_carried_by_a_frame_of_marks() -> None:
    made = framer()
    made.add(Delta(Op.BARRIER, 2, args=("fsync", 7), at_us=1_000_000))
    (frame,) = made.cut(frames.Flag.BARRIER | frames.Flag.HANDOVER, successor="west")
    assert frame.header.flags == frames.Flag.BARRIER | frames.Flag.HANDOVER
