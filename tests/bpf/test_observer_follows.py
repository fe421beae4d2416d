"""The exact probe and the observer together, on programs that race each other for the same few names.

Records are drained late and in bursts, the first sight goes on while the programs work, and in the end the
replay of the deltas is what is on disk.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.bpf.recording import Watched
from tests.support.replays import Replay, snapshot
from tests.support.sinks import ListSink

from diffkeeper_capture.observer import Observer
from diffkeeper_capture.records import NO_VOLUME, Record

pytestmark = pytest.mark.bpf

PROGRAM = Path(__file__).with_name("busy_program.py")
SECONDS = 1.0


class Agent:
    def __init__(self, volume: Watched) -> None:
        self.volume = volume
        self.sink = ListSink()
        self.observer = Observer(volume.root, self.sink)

    def handle(self, record: Record, payload: memoryview) -> None:
        if record.volume in (self.volume.slot, NO_VOLUME):
            self.observer.observe(record, payload)

    def drain(self) -> int:
        now_ns = time.monotonic_ns()
        self.volume.probe.drain(self.handle, upto=self.volume.probe.produced(), most=1 << 30)
        return now_ns

    def finish(self) -> Replay:
        for _ in range(100):
            if self.observer.before_barrier(self.drain()):
                return Replay().apply_all(self.sink.deltas)
        raise AssertionError("the observer does not get ready for a barrier")


def start(root: Path, seed: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", str(PROGRAM), str(root), str(seed), str(SECONDS)]
    )


@pytest.mark.parametrize("programs", [1, 2, 3])
@pytest.mark.parametrize("scan_amid", [False, True])
def test_the_replay_is_what_is_on_disk(volume: Watched, programs: int, scan_amid: bool) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    choose = random.Random(seed)
    agent = Agent(volume)
    if not scan_amid:
        for _ in agent.observer.scan_base():
            pass
    working = [start(volume.root, seed + number) for number in range(programs)]
    try:
        if scan_amid:
            time.sleep(SECONDS / 2)
            for _ in agent.observer.scan_base():
                if choose.random() < 0.1:
                    agent.drain()
        while any(program.poll() is None for program in working):
            time.sleep(choose.choice([0, 0.001, 0.05]))
            agent.observer.settle(agent.drain())
    finally:
        for program in working:
            program.kill()
            program.wait()
    replay = agent.finish()
    agent.observer.close()
    assert replay.snapshot(with_xattrs=True) == snapshot(volume.root, with_xattrs=True)
