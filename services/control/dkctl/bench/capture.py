"""``dkctl bench capture``: what capture costs the program, and how much it carries to the other site.

Baselines: writes to a file outside the volume, in turn with those inside; and, before the deployment is up
and after it is down, the same writes and the cheapest system call with no probe loaded at all.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dkctl.bench import figures, processes, trials, writers
from dkctl.bench.figures import Figure

VOLUME = "bench"
# Above the targets (50,000 a second; 150 MB/s are 36,600) by what a trail of a second takes from five.
RATES = (12_500, 25_000, 45_000, 62_500, 80_000, 100_000)
PAIRS = 20_000
CALLS = 200_000
# A rate counts as kept up with when everything is applied this soon after its last write.
TRAIL_MAX_S = 1.0
EQUAL_TIMEOUT_S = 30.0
MB = 1e6
# What a write passes on its way to the other site.
WORKERS = {
    "agent": ("east", "agent"),
    "broker_east": ("east", "nats"),
    "broker_west": ("west", "nats"),
    "replicator": ("west", "replicator"),
}

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Step:
    """One rate, held for some seconds."""

    asked: int
    written: writers.Written
    # From the first write to the last one's arrival in the replica's directory.
    applied_s: float
    lost: int
    # Processor seconds by process, from the first write to the last one's arrival.
    cpu_s: dict[str, float]

    @property
    def kept_up(self) -> bool:
        return (
            self.lost == 0
            and self.written.writes / self.written.seconds >= 0.97 * self.asked
            and self.applied_s - self.written.seconds <= TRAIL_MAX_S
        )

    @property
    def applied_rate(self) -> float:
        return self.written.writes / self.applied_s


@dataclass(frozen=True, slots=True)
class Alone:
    """The machine without any probe."""

    write: writers.Latency
    call: writers.Latency


def alone(file: Path) -> Alone:
    return Alone(writers.time_pairs([file], PAIRS)[0], writers.time_calls(os.getppid, CALLS))


def measure(
    folder: Path, seconds: float, rates: Sequence[int], say: Say, *, processes_count: int = 1
) -> figures.Report:
    inside, outside = folder / "inside", folder / "outside"
    inside.mkdir()
    outside.mkdir()
    say("without a probe")
    before = alone(outside / "alone")
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
        say("pairs of captured and uncaptured writes")
        captured, beside = writers.time_pairs([inside / "pairs", outside / "pairs"], PAIRS)
        call = writers.time_calls(os.getppid, CALLS)
        steps: list[Step] = []
        for rate in rates:
            say(f"{rate:,} writes a second for {seconds:g} s")
            steps.append(hold(trial, inside, replica, rate, seconds, processes_count))
            if not steps[-1].kept_up:
                break
        agent = processes.usage(processes.pid_of(trial, "east", "agent"))
        volume = trial.control().volume(VOLUME)
        faults = wrongs(volume, steps, inside, replica)
    say("without a probe, again")
    after = alone(outside / "alone")
    found = [
        *costs(captured, beside, call, before, after),
        *carried(steps),
        Figure("agent_resident_peak", agent.peak_bytes / MB, "MB", at_most=120),
        Figure("agent_resident", agent.resident_bytes / MB, "MB"),
    ]
    return figures.Report("capture", found, faults, notes(volume, steps))


def hold(trial: trials.Trial, inside: Path, replica: Path, rate: int, seconds: float, count: int = 1) -> Step:
    """One rate, shared by ``count`` writers; the marker written after it arrives when all before it has."""
    pids = {name: processes.pid_of(trial, *place) for name, place in WORKERS.items()}
    lost = int(trial.control().volume(VOLUME).get("lost_records") or 0)
    before = {name: processes.usage(pid).cpu_s for name, pid in pids.items()}
    started = [
        writers.start("paced", inside / f"paced-{number}", rate / count, seconds) for number in range(count)
    ]
    written = writers.finish_all(started, 30 + 10 * seconds)
    marker = f"{rate} {written.ended_ns}"
    (inside / "marker").write_text(marker)
    copy = replica / "marker"
    trials.wait(
        f"all of {rate} writes/s is applied",
        lambda: copy.exists() and copy.read_text() == marker,
        60 + 10 * seconds,
    )
    return Step(
        rate,
        written,
        (time.monotonic_ns() - written.started_ns) / 1e9,
        int(trial.control().volume(VOLUME).get("lost_records") or 0) - lost,
        {name: processes.usage(pid).cpu_s - before[name] for name, pid in pids.items()},
    )


def wrongs(volume: dict[str, Any], steps: Sequence[Step], inside: Path, replica: Path) -> list[str]:
    """Broken promises. What an overload lost and was re-read is no fault: the replica is equal again."""
    found = []
    unforced = int(volume.get("lost_records") or 0) - sum(step.lost for step in steps)
    if unforced:
        found.append(f"{unforced} records lost at {PAIRS} paired writes")
    deadline = time.monotonic() + EQUAL_TIMEOUT_S
    while not same(inside, replica):
        if time.monotonic() > deadline:
            found.append(f"the replica differs from its source after {EQUAL_TIMEOUT_S:.0f} s")
            break
        time.sleep(0.2)
    return found


def same(left: Path, right: Path) -> bool:
    return digests(left) == digests(right)


def digests(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                found[str(path.relative_to(folder))] = hashlib.file_digest(file, "blake2b").hexdigest()
    return found


def costs(
    captured: writers.Latency,
    beside: writers.Latency,
    call: writers.Latency,
    before: Alone,
    after: Alone,
) -> list[Figure]:
    """Added times in ns. The baseline without a probe is the mean of before and after."""
    write_ns = (before.write.median_ns + after.write.median_ns) / 2
    call_ns = (before.call.median_ns + after.call.median_ns) / 2
    return [
        Figure(
            "pwrite_added_median",
            captured.median_ns - beside.median_ns,
            "ns",
            baseline=beside.median_ns,
            at_most=2000,
            note="captured less uncaptured, in turn",
        ),
        Figure("pwrite_added_p99", captured.p99_ns - beside.p99_ns, "ns", baseline=beside.p99_ns),
        Figure(
            "pwrite_captured_over_no_probe",
            captured.median_ns - write_ns,
            "ns",
            baseline=write_ns,
            note="captured, less the same write with no probe loaded",
        ),
        Figure("pwrite_outside_added_median", beside.median_ns - write_ns, "ns", baseline=write_ns),
        Figure("other_call_added_median", call.median_ns - call_ns, "ns", baseline=call_ns, note="getppid"),
    ]


def carried(steps: Sequence[Step]) -> list[Figure]:
    best = max((step for step in steps if step.kept_up), key=lambda step: step.asked, default=None)
    if best is None:
        slowest = steps[0]
        note = f"not kept up even at {slowest.asked:,}/s: {slowest.lost} lost"
        return [
            Figure("writes_carried", 0, "/s", at_least=50_000, note=note),
            Figure("bytes_carried", 0, "MB/s", at_least=150, note=note),
        ]
    bytes_rate = best.applied_rate * writers.BLOCK_BYTES / MB
    return [
        Figure(
            "writes_carried",
            best.applied_rate,
            "/s",
            baseline=best.written.writes / best.written.seconds,
            at_least=50_000,
            note=f"captured and applied, none lost, asked {best.asked:,}/s",
        ),
        Figure("bytes_carried", bytes_rate, "MB/s", at_least=150, note="captured and applied"),
        *(
            Figure(f"{name}_cpu_per_write", spent / best.written.writes * 1e6, "us")
            for name, spent in best.cpu_s.items()
        ),
    ]


def notes(volume: dict[str, Any], steps: Sequence[Step]) -> list[str]:
    return [
        f"probe {volume.get('probe')}, fidelity {volume.get('fidelity')}",
        "writers are Python loops around os.pwrite of 4 KiB, half random and half zero",
        *(
            f"asked {step.asked:,}/s: wrote {step.written.writes / step.written.seconds:,.0f}/s, "
            f"applied {step.applied_rate:,.0f}/s, trail {step.applied_s - step.written.seconds:.2f} s, "
            f"lost {step.lost}, late ticks {step.written.late}, CPU s: "
            + ", ".join(f"{name} {spent:.2f}" for name, spent in step.cpu_s.items())
            for step in steps
        ),
    ]
