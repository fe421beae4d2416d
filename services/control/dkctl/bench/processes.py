"""What /proc says about a process: memory, processor time."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from diffkeeper.domain import errors
from dkctl.bench import trials


@dataclass(frozen=True, slots=True)
class Usage:
    resident_bytes: int
    # The largest resident size so far.
    peak_bytes: int
    cpu_s: float


def usage(pid: int) -> Usage:
    fields = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        fields[name] = value.split()
    # The name of a program may hold blanks and brackets: count from the last bracket.
    times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = int(times[11]) + int(times[12])
    return Usage(
        int(fields["VmRSS"][0]) * 1024, int(fields["VmHWM"][0]) * 1024, ticks / os.sysconf("SC_CLK_TCK")
    )


def pid_of(trial: trials.Trial, site: str, name: str) -> int:
    """The process of a site that control knows as ``name``: nats, replicator or agent."""
    for one in trial.control().status()["sites"]:
        if one["site"] == site:
            for process in one["processes"]:
                if process["name"] == name and process["pid"]:
                    return int(process["pid"])
    raise errors.NotFound(
        f"{site} runs no {name}", reason="no-process", hint="look into the logs of the trial"
    )
