"""How waiting for a processor is told from running on one."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffkeeper import contention


@given(st.integers(0, 10**12), st.integers(0, 10**12))
def test_the_share_is_between_nothing_and_all(ran_ns: int, waited_ns: int) -> None:
    assert 0.0 <= contention.share_of_waiting(ran_ns, waited_ns) <= 1.0


@given(st.floats(0, 1), st.floats(0, 1))
def test_more_waiting_never_means_a_shorter_pause(one: float, other: float) -> None:
    assert contention.scaled(min(one, other)) <= contention.scaled(max(one, other))


def test_nothing_is_put_off_while_processors_are_free_and_all_of_it_while_they_are_short() -> None:
    assert contention.scaled(0.0) == contention.scaled(contention.CALM_SHARE) == 0.0
    assert contention.scaled(1.0) == contention.scaled(contention.SHORT_SHARE) == 1.0


@pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="this kernel does not count waiting")
def test_a_thread_that_shares_one_processor_with_others_sees_that_it_waits() -> None:
    """Four busy processes on the processor of this one: it waits most of the time."""
    allowed = os.sched_getaffinity(0)
    others: list[subprocess.Popen[bytes]] = []
    try:
        os.sched_setaffinity(0, {min(allowed)})
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
        seen = contention.Contention()
        deadline, pause_s = time.monotonic() + 30.0, 0.0
        while pause_s < 0.02 and time.monotonic() < deadline:
            until = time.monotonic() + 2 * contention.WINDOW_S
            while time.monotonic() < until:
                pass
            pause_s = seen.pause_s(time.monotonic(), 0.02)
        seen.close()
    finally:
        os.sched_setaffinity(0, allowed)
        for other in others:
            other.kill()
            other.wait()
    assert pause_s == 0.02, seen.share
