"""``dkctl bench files``: what a known file costs the agent in memory, and its first sight in processor time.

Small files, because of large ones the bytes cost, not the files. The agent has seen nothing before, so what it grows by
is what these files made it keep; what it took meanwhile is in its peak.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dkctl.bench import figures, processes, trials
from dkctl.bench.figures import Figure

VOLUME = "files"
FILES = 50_000
FILES_A_DIRECTORY = 100
# The target of a first sight is told for so many.
PER = 100_000
ATTACH_TIMEOUT_S = 3600.0
MB = 1e6

Say = Callable[[str], None]


def measure(folder: Path, count: int, say: Say) -> figures.Report:
    inside = folder / "inside"
    say(f"making {count:,} files")
    size = make(inside, count)
    with trials.Trial(folder / "deployment") as trial:
        pid = processes.pid_of(trial, "east", "agent")
        before = processes.usage(pid)
        say("the first sight")
        trial.dkctl("attach", VOLUME, "--site", "east", "--path", str(inside), timeout_s=ATTACH_TIMEOUT_S)
        after = processes.usage(pid)
        volume = trial.control().volume(VOLUME)
    scan_s = after.cpu_s - before.cpu_s
    found = [
        Figure("first_sight_cpu", scan_s * PER / count, f"s per {PER:,} files", at_most=15),
        Figure("known_file", (after.resident_bytes - before.resident_bytes) / count, "bytes", at_most=100),
        Figure("agent_resident_before", before.resident_bytes / MB, "MB"),
        Figure("agent_resident", after.resident_bytes / MB, "MB", at_most=100, note=f"{count:,} files known"),
        Figure("agent_resident_peak", after.peak_bytes / MB, "MB"),
    ]
    return figures.Report(
        "files",
        found,
        notes=[
            f"{count:,} files of {size / count:,.0f} bytes on average, {FILES_A_DIRECTORY} in each directory",
            f"probe {volume.get('probe')}; what the agent holds of a volume does not depend on how many files it "
            "has, so that more files cost less each",
        ],
    )


def make(root: Path, count: int) -> int:
    """Files of some hundred bytes each; how many bytes."""
    size = 0
    for number in range(count):
        directory = root / f"directory-{number // FILES_A_DIRECTORY}"
        if number % FILES_A_DIRECTORY == 0:
            directory.mkdir(parents=True)
        size += (directory / f"file-{number}").write_bytes(b"%d is a number\n" % number * (10 + number % 50))
    return size
