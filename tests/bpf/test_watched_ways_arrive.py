"""The portable probe and every way of writing: at a barrier, and at the end of mixed rounds, the replica is the
source. How it came there is not asked.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.bpf.following import FOLDER
from tests.support import likenesses
from tests.support.sinks import ListSink

from diffkeeper.domain import deltas
from diffkeeper_capture.observer import Observer
from diffkeeper_capture.page_digests import PAGE_BYTES
from diffkeeper_capture.watch_probe import WatchProbe

WAYS = [
    "flags_of_pwritev2", "appends_at_once", "direct", "allocations", "holes", "copies", "mapped",
    "mapped_and_killed", "cut_under_a_mapping", "nameless", "links", "moves", "directories_in_a_storm",
    "many_name_at_once", "odd_names", "deep", "attributes", "extended",
]  # fmt: skip
ROUNDS = int(os.environ.get("DK_ROUNDS", "25"))


class Watching:
    def __init__(self, scratch: Path) -> None:
        self.root = scratch / "volume"
        self.root.mkdir()
        self.sink = ListSink()
        self.observer = Observer(self.root, self.sink, sole_source=True)
        self.probe = WatchProbe(self.root)
        self._replica = likenesses.Replica(scratch / "replica")
        for _ in self.probe.scan_base(self.observer):
            pass

    def close(self) -> None:
        self._replica.close()
        self.probe.close()
        self.observer.close()

    def check(self) -> list[deltas.Delta]:
        """A barrier, and the deltas it took."""
        for _ in self.probe.barrier(self.observer):
            pass
        told = self.sink.deltas[:]
        self.sink.deltas.clear()
        self._replica.apply(told)
        differ = likenesses.differences(
            likenesses.likeness(self.root), likenesses.likeness(self._replica.path)
        )
        assert not differ, "\n".join(differ)
        return told


@pytest.fixture
def watching(tmp_path: Path) -> Iterator[Watching]:
    watching = Watching(tmp_path)
    with watching.probe:
        yield watching
    watching.close()


@pytest.mark.parametrize("way", WAYS)
def test_it_arrives(watching: Watching, way: str) -> None:
    command = [sys.executable, "-I", "-S", "-B", str(FOLDER / "ways.py"), way, str(watching.root)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    watching.check()


def test_mixed_ways_arrive_after_each_round(watching: Watching, tmp_path: Path) -> None:
    first = int(os.environ.get("DK_SEED", random.randrange(1 << 30)))
    (tmp_path / "moved").mkdir()
    command = [sys.executable, "-I", "-S", "-B", str(FOLDER / "mixer.py")]
    mixer = subprocess.Popen(
        [*command, str(watching.root), str(tmp_path / "moved"), "names-by-ring"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    assert mixer.stdin is not None
    assert mixer.stdout is not None
    try:
        for seed in range(first, first + ROUNDS):
            print(f"seed {seed}")
            mixer.stdin.write(f"{seed} 25\n")
            assert mixer.stdout.readline() == "done\n"
            watching.check()
    finally:
        mixer.kill()
        mixer.communicate()


def test_a_changed_page_of_a_large_file_costs_a_page(watching: Watching) -> None:
    path = watching.root / "large"
    path.write_bytes(os.urandom(1 << 20) * 64)
    watching.check()
    with open(path, "r+b") as file:
        file.seek(40_000_000)
        file.write(b"x")
    told = watching.check()
    writes = [delta for delta in told if delta.op is deltas.Op.WRITE]
    assert [(delta.offset, delta.length) for delta in writes] == [
        (40_000_000 // PAGE_BYTES * PAGE_BYTES, PAGE_BYTES)
    ]


def test_a_change_that_looks_like_none_is_found_when_everything_is_read(watching: Watching) -> None:
    path = watching.root / "a"
    path.write_bytes(b"before")
    os.utime(path, ns=(1, 1))
    watching.check()
    known = watching.observer.contents.known
    with open(path, "r+b") as file:
        file.write(b"after!")
    os.utime(path, ns=(1, 1))
    # As a file system with coarse times would have it: nothing looks otherwise.
    (file_id,) = (one for one in known if watching.observer.shadow.is_file(one))
    status = path.stat()
    known[file_id].fingerprint = status.st_size, status.st_mtime_ns, status.st_ctime_ns
    for _ in watching.probe.read_everything(watching.observer):
        pass
    assert [delta.data for delta in watching.sink.deltas if delta.op is deltas.Op.WRITE] == [b"after!"]
