"""A capture in miniature: the probe, an observer, the replicator's applier; the network is left out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.bpf.recording import Watched
from tests.support import likenesses
from tests.support.replays import Replay
from tests.support.sinks import ListSink

from diffkeeper.domain.deltas import Delta, Op
from diffkeeper_capture.observer import Observer
from diffkeeper_capture.records import NO_VOLUME, Record

FOLDER = Path(__file__).parent
BARRIERS_MAX = 200


class Following:
    """One volume that is followed. ``check`` compares the replica with it and returns the tree of names."""

    def __init__(self, volume: Watched, scratch: Path) -> None:
        self.volume = volume
        self.root = volume.root
        self.sink = ListSink()
        self.observer = Observer(volume.root, self.sink)
        self._scratch = scratch
        self._checks = 0
        self._lost = volume.probe.lost().records
        # Records as they came, with how many deltas there were before; None when nobody wants to know.
        self.trace: list[tuple[Record, bytes, int]] | None = None
        for _ in self.observer.scan_base():
            pass
        self.settle()

    @property
    def told(self) -> list[Delta]:
        return self.sink.deltas

    def close(self) -> None:
        self.observer.close()

    def handle(self, record: Record, payload: memoryview) -> None:
        if record.volume in (self.volume.slot, NO_VOLUME):
            if self.trace is not None:
                self.trace.append((record, bytes(payload[:9000]), len(self.sink.deltas)))
            self.observer.observe(record, payload)

    def drain(self) -> int:
        now_ns = time.monotonic_ns()
        self.volume.probe.drain(self.handle, upto=self.volume.probe.produced(), most=1 << 30)
        lost = self.volume.probe.lost()
        if lost.records != self._lost:
            self._lost = lost.records
            self.observer.lose((), everywhere=True, detail="the ring was full")
        return now_ns

    def settle(self) -> bool:
        return self.observer.settle(self.drain())

    def start(self, program: str, act: str, *arguments: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-I", "-S", "-B", str(FOLDER / program), act, *map(str, arguments)]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def run(self, program: str, act: str, *arguments: object) -> None:
        """Let a program do its act to its end, draining as it goes."""
        self.wait(self.start(program, act, self.root, *arguments))

    def wait(self, child: subprocess.Popen[bytes]) -> None:
        while child.poll() is None:
            self.settle()
            time.sleep(0.002)
        assert child.stderr is not None
        complaint = child.stderr.read().decode()
        child.stderr.close()
        assert child.returncode == 0, f"{child.returncode} {complaint}"

    def barrier(self) -> None:
        for _ in range(BARRIERS_MAX):
            if self.observer.before_barrier(self.drain()):
                return
        raise AssertionError(f"the observer does not get ready for a barrier: {self.observer.doubts}")

    def check(self) -> Replay:
        """After a barrier the replica is what the source is; times too, where they were set."""
        self.barrier()
        source = likenesses.likeness(self.root)
        replica = self._scratch / f"replica-{self._checks}"
        self._checks += 1
        likenesses.replicate(self.sink.deltas, replica)
        differ = likenesses.differences(source, likenesses.likeness(replica))
        assert not differ, "\n".join(differ)
        times = self._times()
        for path, wanted in times.items():
            assert os.lstat(os.fsencode(replica) + b"/" + path).st_mtime_ns == wanted, path
        shutil.rmtree(replica)
        return Replay().apply_all(delta for delta in self.sink.deltas if delta.op not in _CONTENT)

    def _times(self) -> dict[bytes, int]:
        """The time of change of every file of which the log says it last set it, as the source has it."""
        last: dict[int, bool] = {}
        tree = self.observer.shadow.tree
        for delta in self.sink.deltas:
            if delta.op in _CONTENT:
                last[delta.file_id] = False
            elif delta.op is Op.ATTR and "mtime_ns" in delta.args[0]:
                last[delta.file_id] = True
        found = {}
        for file_id, was_set in last.items():
            path = tree.path(file_id) if was_set else None
            if path is not None:
                found[path] = os.lstat(os.fsencode(self.root) + b"/" + path).st_mtime_ns
        return found


_CONTENT = frozenset({Op.WRITE, Op.TRUNCATE, Op.PUNCH})
