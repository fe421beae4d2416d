"""Writers that are measured or that make load: 4 KiB writes by ``os.pwrite``, paced or paired.

Blocks are half random and half zero, so that zstd halves them; the random halves come from a pool that is
far larger than a frame, so that no frame finds one of its own blocks again.

Run as a program (``python -m dkctl.bench.writers``) a writer is a process of its own and prints one JSON
line.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffkeeper.domain import errors
from dkctl.bench import figures

BLOCK_BYTES = 4096
# 32 MiB of blocks; frames are about 1 MiB.
POOL_BLOCKS = 8192
# A paced writer catches up at most this often a second.
TICKS_PER_S = 200
# Files are written from the beginning again after so many blocks (64 MiB).
FILE_BLOCKS = 16_384
STAMP_BYTES = 16
BURST = 50
BURST_PAUSE_S = 0.005


def blocks(count: int = POOL_BLOCKS) -> list[bytes]:
    half = BLOCK_BYTES // 2
    return [os.urandom(half) + bytes(half) for _ in range(count)]


@dataclass(frozen=True, slots=True)
class Latency:
    median_ns: float
    p99_ns: float


def latency(samples: Sequence[int]) -> Latency:
    return Latency(statistics.median(samples), figures.percentile(samples, 99))


def time_pairs(files: Sequence[Path], count: int) -> list[Latency]:
    """``count`` timed writes to each file, in turn, so that whatever slows the machine slows all of them.

    They come in bursts with pauses between, about 10,000 a second: what is timed is one write, not a full
    ring.
    """
    descriptors = [os.open(path, os.O_WRONLY | os.O_CREAT) for path in files]
    samples: list[list[int]] = [[] for _ in files]
    pool = blocks(256)
    clock = time.perf_counter_ns
    try:
        for descriptor in descriptors:
            # Written once before, so that every timed write overwrites: no file grows, no block is allocated.
            for index, block in enumerate(pool):
                os.pwrite(descriptor, block, index * BLOCK_BYTES)
        for number in range(count):
            index = number % len(pool)
            block, offset = pool[index], index * BLOCK_BYTES
            if number % BURST == 0:
                time.sleep(BURST_PAUSE_S)
            for descriptor, times in zip(descriptors, samples, strict=True):
                start = clock()
                os.pwrite(descriptor, block, offset)
                times.append(clock() - start)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return [latency(times) for times in samples]


def time_calls(call: Callable[[], object], count: int) -> Latency:
    clock = time.perf_counter_ns
    samples = []
    for _ in range(count):
        start = clock()
        call()
        samples.append(clock() - start)
    return latency(samples)


@dataclass(frozen=True, slots=True)
class Written:
    writes: int
    # CLOCK_MONOTONIC, the same in every process of a machine.
    started_ns: int
    ended_ns: int
    # How often the writer was behind its pace by more than a tick.
    late: int

    @property
    def seconds(self) -> float:
        return (self.ended_ns - self.started_ns) / 1e9


def write_paced(path: Path, rate: float, seconds: float) -> Written:
    """Writes of one block at ``rate`` a second, as evenly as ``TICKS_PER_S`` allows."""
    pool = blocks()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    write = os.pwrite
    done = late = 0
    total = round(rate * seconds)
    start = time.monotonic_ns()
    try:
        while done < total:
            due = min(total, int((time.monotonic_ns() - start) / 1e9 * rate) + 1)
            late += due - done > 2 * rate / TICKS_PER_S + 1
            for number in range(done, due):
                write(descriptor, pool[number % POOL_BLOCKS], number % FILE_BLOCKS * BLOCK_BYTES)
            done = due
            ahead_s = (done + rate / TICKS_PER_S) / rate - (time.monotonic_ns() - start) / 1e9
            if ahead_s > 0:
                time.sleep(ahead_s)
        return Written(total, start, time.monotonic_ns(), late)
    finally:
        os.close(descriptor)


def write_stamped(path: Path, rate: float, seconds: float) -> Written:
    """Append a block each 1/``rate`` s; it begins with its number and the monotonic time of its write."""
    block = blocks(1)[0][STAMP_BYTES:]
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    late = 0
    total = round(rate * seconds)
    start = time.monotonic_ns()
    try:
        for number in range(total):
            due = start + round(number * 1e9 / rate)
            wait_ns = due - time.monotonic_ns()
            if wait_ns > 0:
                time.sleep(wait_ns / 1e9)
            late += wait_ns < -1e9 / TICKS_PER_S
            stamp = (number + 1).to_bytes(8, "little") + time.monotonic_ns().to_bytes(8, "little")
            os.pwrite(descriptor, stamp + block, number * BLOCK_BYTES)
        return Written(total, start, time.monotonic_ns(), late)
    finally:
        os.close(descriptor)


def start(kind: str, path: Path, rate: float, seconds: float) -> subprocess.Popen[str]:
    """A writer in a process of its own; ``finish`` waits for it."""
    return subprocess.Popen(
        [sys.executable, "-m", "dkctl.bench.writers", kind, str(path), str(rate), str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
    )


def together(written: Sequence[Written]) -> Written:
    """What several writers did, as one."""
    return Written(
        sum(one.writes for one in written),
        min(one.started_ns for one in written),
        max(one.ended_ns for one in written),
        sum(one.late for one in written),
    )


def finish_all(writers: Sequence[subprocess.Popen[str]], timeout_s: float) -> Written:
    """What they did together; when one fails none is left."""
    try:
        return together([finish(writer, timeout_s) for writer in writers])
    finally:
        for writer in writers:
            if writer.poll() is None:
                writer.kill()
                writer.communicate()


def finish(writer: subprocess.Popen[str], timeout_s: float) -> Written:
    try:
        text, _ = writer.communicate(timeout=timeout_s)
    except BaseException:
        writer.kill()
        writer.communicate()
        raise
    if writer.returncode != 0:
        raise errors.DiffKeeperError(f"the writer ended with {writer.returncode}", reason="writer-failed")
    return Written(**json.loads(text))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["paced", "stamped"])
    parser.add_argument("path", type=Path)
    parser.add_argument("rate", type=float)
    parser.add_argument("seconds", type=float)
    given = parser.parse_args(arguments)
    write = write_paced if given.kind == "paced" else write_stamped
    done = write(given.path, given.rate, given.seconds)
    json.dump(dataclasses.asdict(done), sys.stdout)


if __name__ == "__main__":
    main()
