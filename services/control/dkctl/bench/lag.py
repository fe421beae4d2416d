"""``dkctl bench lag``: from the return of a write to its bytes in the replica's directory at the other site.

Each block carries the monotonic time of its write; a reader polls the replica's file for it. Both are
processes of one machine, so one clock serves. The baseline is the same reader on a file that the writer
writes directly: what the measurement itself adds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from diffkeeper.domain import errors
from dkctl.bench import figures, trials, writers
from dkctl.bench.figures import Figure

VOLUME = "bench"
RATE = 1000
POLL_S = 0.0002
Say = Callable[[str], None]


def measure(folder: Path, seconds: float, say: Say) -> figures.Report:
    inside, outside = folder / "inside", folder / "outside"
    inside.mkdir()
    outside.mkdir()
    say("baseline: the same reader on the writer's own file")
    floor_ms = follow(outside / "stamped", outside / "stamped", seconds)
    with trials.Trial(folder / "deployment") as trial:
        trial.dkctl(
            "attach",
            VOLUME,
            "--site",
            "east",
            "--path",
            str(inside),
            "--durability",
            "observe",
            timeout_s=120,
        )
        replica = trial.wait_following(VOLUME, "west")
        say(f"{RATE} writes a second for {seconds:g} s, read at the replica")
        lags_ms = follow(inside / "stamped", replica / "stamped", seconds)
        volume = trial.control().volume(VOLUME)
    lost = int(volume.get("lost_records") or 0)

    def figure(name: str, percent: float, at_most: float | None = None) -> Figure:
        return Figure(
            name,
            figures.percentile(lags_ms, percent),
            "ms",
            baseline=figures.percentile(floor_ms, percent),
            at_most=at_most,
        )

    return figures.Report(
        "lag",
        [
            figure("write_to_applied_p50", 50, 10),
            figure("write_to_applied_p99", 99, 40),
            figure("write_to_applied_max", 100),
        ],
        faults=[f"{lost} records lost"] if lost else [],
        notes=[
            f"{len(lags_ms)} writes of 4 KiB at {RATE}/s, poll every {POLL_S * 1000:g} ms",
            f"probe {volume.get('probe')}",
        ],
    )


def follow(written: Path, shown: Path, seconds: float) -> list[float]:
    """Write stamped blocks to one file and see them come in another; the lag of each in ms."""
    writer = writers.start("stamped", written, RATE, seconds)
    try:
        lags_ms = arrivals(shown, round(RATE * seconds), seconds + 60)
    finally:
        writers.finish(writer, seconds + 60)
    return lags_ms


def arrivals(shown: Path, total: int, timeout_s: float) -> list[float]:
    deadline = time.monotonic() + timeout_s
    trials.wait(f"{shown} appears", shown.exists, timeout_s)
    descriptor = os.open(shown, os.O_RDONLY)
    lags_ms: list[float] = []
    try:
        while len(lags_ms) < total:
            head = os.pread(descriptor, writers.STAMP_BYTES, len(lags_ms) * writers.BLOCK_BYTES)
            now_ns = time.monotonic_ns()
            if int.from_bytes(head[:8], "little") == len(lags_ms) + 1:
                lags_ms.append((now_ns - int.from_bytes(head[8:16], "little")) / 1e6)
                continue
            if time.monotonic() > deadline:
                raise errors.TimedOut(
                    f"{len(lags_ms)} of {total} writes arrived in {shown} within {timeout_s:.0f} s",
                    reason="writes-did-not-arrive",
                    hint="dkctl status tells how far the replica is",
                )
            time.sleep(POLL_S)
    finally:
        os.close(descriptor)
    return lags_ms
