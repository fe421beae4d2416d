"""FAULTS 19: a wall clock that jumps, forward and back, by hours: the log keeps its order, and nobody's reign changes.

No clock of a machine is set for this: wall time and monotonic time are handed in where anything is decided by them.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from diffkeeper.domain import frames, leases, positions
from diffkeeper_capture.framer import Framer

HOUR_US = 3_600_000_000
JUMPS = st.lists(st.integers(-3 * HOUR_US, 3 * HOUR_US), min_size=2, max_size=20)


class JumpingClock:
    """Wall time jumps; monotonic time goes on."""

    def __init__(self) -> None:
        self.wall_us = 1_700_000_000_000_000
        self.now_us = 5_000_000

    def unix_us(self) -> int:
        return self.wall_us

    def monotonic_us(self) -> int:
        return self.now_us


@given(JUMPS)
def test_frames_keep_their_order_over_jumps_of_hours(jumps: list[int]) -> None:
    clock = JumpingClock()
    tip = frames.Tip(positions.Position(1, 7), b"\7" * 32)
    framer = Framer(volume="v", origin="east", epoch=2, tip=tip, clock=clock)
    last = 0
    for number, jump_us in enumerate(jumps):
        clock.wall_us += jump_us
        clock.now_us += 1000
        framer.add_write(2, number, b"x", clock.now_us)
        for frame in framer.cut():
            assert frames.follows(tip, frame) is frames.Follows.NEXT
            assert frame.header.first > last and frame.header.last >= frame.header.first, "never backwards"
            tip, last = frames.Tip(frame.position, frame.hash), frame.header.last
    assert tip.position == positions.Position(2, 7 + len(jumps)), "a frame for each jump"


@given(JUMPS)
def test_a_new_leader_whose_clock_is_hours_behind_continues_the_old_ones_stamps(jumps: list[int]) -> None:
    ahead, behind = JumpingClock(), JumpingClock()
    ahead.wall_us += max(map(abs, jumps))
    behind.wall_us -= max(map(abs, jumps))
    old = Framer(volume="v", origin="east", epoch=1, tip=frames.ORIGIN_TIP, clock=ahead)
    old.add_write(2, 0, b"x", ahead.now_us)
    [handover] = old.cut()
    new = Framer(
        volume="v",
        origin="west",
        epoch=2,
        tip=frames.Tip(handover.position, handover.hash),
        clock=behind,
        last_stamp=handover.header.last,
    )
    new.add_write(2, 1, b"y", behind.now_us)
    [first] = new.cut()
    assert frames.follows(frames.Tip(handover.position, handover.hash), first) is frames.Follows.NEXT
    assert first.header.first > handover.header.last


@given(st.floats(0, 10), st.integers(-30, 30), st.integers(-30, 30))
def test_what_an_observer_decides_depends_on_no_clock_but_the_time_between_its_looks(
    between_s: float, off_hours: int, other_hours: int
) -> None:
    """Watches that began at hours far apart, one of them before zero, conclude the same."""
    held = leases.Held(leases.Lease("v", 1, "east", 500), 7)
    decided = set()
    for begin in (off_hours * 3600.0, other_hours * 3600.0):
        watch = leases.saw(leases.saw(None, held, begin), held, begin + 0.25)
        decided.add(watch.expired(begin + between_s) == (between_s >= 0.5) or abs(between_s - 0.5) < 1e-6)
    assert decided == {True}
