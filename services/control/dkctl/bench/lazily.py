"""``dkctl bench history``, the part about directories that are there at once: how long until a program runs on one, how
long a cold read takes, and how long a branch.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from diffkeeper.lazy import trees
from dkctl.bench import trials
from dkctl.bench.figures import Figure

MEGABYTES = 256
READS = 500
NAME = "large"
_WRITE = """
import os, sys
with open(sys.argv[1] + "/large", "wb") as file:
    for _ in range(int(sys.argv[2])):
        file.write(os.urandom(1 << 20))
    file.flush()
    os.fsync(file.fileno())
"""
Say = Callable[[str], None]


def measure(folder: Path, say: Say, megabytes: int = MEGABYTES) -> tuple[list[Figure], str | None]:
    """The figures, or why there are none here."""
    why_not = trees.why_not_here(folder / "at-once")
    if why_not is not None:
        return [], why_not
    say(f"at once: {megabytes} MB of random bytes")
    path = folder / NAME
    path.mkdir()
    with trials.Trial(folder / f"deployment-{NAME}") as trial:
        argv = [sys.executable, "-c", _WRITE, "{path}", str(megabytes)]
        trial.run(NAME, "east", path, argv, "site", folder / f"{NAME}.log").wait()
        control = trial.control()
        # The history takes in the log once, whoever asks first.
        end = control.history(NAME, "moment", [("when", "latest")])["position"]
        began = time.monotonic()
        control.history(NAME, "branches/at-once", method="PUT", body={"when": end})
        branch_s = time.monotonic() - began
        control.history(NAME, "branches/at-once", method="DELETE")
        began = time.monotonic()
        target = folder / "at-once"
        trial.dkctl("mount", NAME, str(target), "--at", end)
        subprocess.run([sys.executable, "-c", ""], cwd=target, check=True)
        running_s = time.monotonic() - began
        took_s = _cold_reads(target / "large", megabytes)
        subprocess.run(["umount", str(target)], check=True)
        trials.wait("nothing is left of the mount", lambda: not target.exists(), 60)
    note = f"of {megabytes} MB; the command's own start is in it"
    return [
        Figure("branch_at_once", branch_s, "s", at_most=0.2, note=f"of {megabytes} MB"),
        Figure("program_running_at_once", running_s, "s", note=note),
        Figure("cold_read_4k_median", took_s[len(took_s) // 2] * 1000, "ms"),
        Figure("cold_read_4k_p99", took_s[int(len(took_s) * 0.99)] * 1000, "ms", at_most=2.0),
    ], None


def _cold_reads(path: Path, megabytes: int) -> list[float]:
    """Of places far enough apart that none fills another; rising."""
    places = random.Random(1).sample(range(megabytes << 4), min(READS, megabytes << 4))
    took_s = []
    fd = os.open(path, os.O_RDONLY)
    try:
        for place in places:
            began = time.perf_counter()
            os.pread(fd, 4096, place << 16)
            took_s.append(time.perf_counter() - began)
    finally:
        os.close(fd)
    return sorted(took_s)
