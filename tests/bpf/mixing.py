"""Rounds of the mixer, followed by one observer; after each round the replica is compared with the source."""

from __future__ import annotations

import random
import select
import subprocess
import sys
import time
from pathlib import Path

from tests.bpf.following import FOLDER, Following
from tests.bpf.recording import Watched
from tests.support import likenesses

STEPS = 25
ROUND_LIMIT_S = 60.0


class Mixing:
    """A few mixers at one volume. ``round`` raises AssertionError with what differs."""

    def __init__(self, volume: Watched, scratch: Path, mixers: int, *, names_by_ring: bool) -> None:
        self.following = Following(volume, scratch)
        outside = scratch / "moved"
        outside.mkdir()
        self.round_begins = 0
        # Paths that differed when a round failed.
        self.wrong: list[bytes] = []
        self._replica = likenesses.Replica(scratch / "replica")
        command = [sys.executable, "-I", "-S", "-B", str(FOLDER / "mixer.py"), str(volume.root), str(outside)]
        if names_by_ring:
            command.append("names-by-ring")
        self._mixers = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
            for _ in range(mixers)
        ]

    def close(self) -> None:
        for mixer in self._mixers:
            mixer.kill()
            mixer.communicate()
        self._replica.close()
        self.following.close()

    def round(self, seed: int, steps: int = STEPS) -> None:
        dice = random.Random(seed)
        chosen = self._mixers[: dice.randrange(1, len(self._mixers) + 1)]
        deltas = self.following.sink.deltas
        if self.following.trace is None:
            deltas.clear()
        self.round_begins = len(deltas)
        for number, mixer in enumerate(chosen):
            assert mixer.stdin is not None
            mixer.stdin.write(f"{seed}/{number} {steps}\n")
        self._follow(chosen, dice)
        self.following.barrier()
        self._compare()

    def _follow(self, chosen: list[subprocess.Popen[str]], dice: random.Random) -> None:
        """Drain and settle as it comes, sometimes late, sometimes with barriers, until all have answered."""
        deadline = time.monotonic() + ROUND_LIMIT_S
        for mixer in chosen:
            answered = False
            while not answered:
                assert mixer.stdout is not None
                assert mixer.poll() is None, f"a mixer ended with {mixer.returncode}"
                assert time.monotonic() < deadline, "a mixer does not answer"
                answered = _has_line(mixer, dice.choice((0.0, 0.001, 0.02)))
                chance = dice.random()
                if chance < 0.6:
                    self.following.settle()
                elif chance < 0.7:
                    self.following.observer.before_barrier(self.following.drain())
            assert mixer.stdout is not None
            assert mixer.stdout.readline() == "done\n"

    def _compare(self) -> None:
        deltas = self.following.sink.deltas
        self._replica.apply(deltas[self.round_begins :])
        source = likenesses.likeness(self.following.root)
        replica = likenesses.likeness(self._replica.path)
        self.wrong = sorted(path for path in source if source[path] != replica.get(path))
        differ = likenesses.differences(source, replica)
        assert not differ, "\n".join(differ)


def _has_line(mixer: subprocess.Popen[str], wait_s: float) -> bool:
    assert mixer.stdout is not None
    return bool(select.select([mixer.stdout], [], [], wait_s)[0])
