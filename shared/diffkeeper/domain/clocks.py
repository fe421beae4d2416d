"""A hybrid logical clock: stamps that follow wall time, never go backwards, and respect cause and effect.

A stamp is one integer: microseconds since 1970 in the upper bits, a 12-bit counter below. The rules are those
of Kulkarni et al., "Logical Physical Clocks" (2014), folded into one integer comparison. Wall time is handed
in.
"""

from __future__ import annotations

from diffkeeper.domain import errors, limits

COUNTER_BITS = 12

# A stamp: (unix microseconds << 12) | counter.
Stamp = int
# 64 bits on the wire: good until the year 2112.
STAMP_MAX = (1 << 64) - 1


def from_micros(unix_us: int) -> Stamp:
    return unix_us << COUNTER_BITS


def to_micros(stamp: Stamp) -> int:
    return stamp >> COUNTER_BITS


def tick(last: Stamp, now_us: int) -> Stamp:
    """The next local stamp: wall time when it has moved on, else one more than the last."""
    return max(last + 1, from_micros(now_us))


def receive(last: Stamp, remote: Stamp, now_us: int) -> Stamp:
    """The local clock after hearing ``remote``; a stamp too far ahead is refused and the clock stays as it
    is.
    """
    ahead_ms = (to_micros(remote) - now_us) // 1000
    if ahead_ms > limits.CLOCK_MAX_DRIFT_MS:
        raise errors.Refused(
            f"a stamp is {ahead_ms} ms ahead of this clock; it was not accepted",
            reason="clock-drift",
            hint="check the clocks of both sites (chronyc tracking)",
            ahead_ms=ahead_ms,
        )
    return max(last + 1, remote + 1, from_micros(now_us))
