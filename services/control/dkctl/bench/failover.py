"""``dkctl bench failover``: from the decision to a promoted replica, and to the first write accepted there.

Planned handovers and failovers from a killed site, with a small and a large state. The baseline is the
program alone, killed and started again on its directory: no failover can be faster than that.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffkeeper import nats_server
from diffkeeper.domain import errors
from dkctl.bench import figures, trials, writers
from dkctl.bench.figures import Figure

VOLUME = "bench"
FILE_BYTES = 8 * 1024 * 1024
ANSWER_TIMEOUT_S = 60.0
RETRY_S = 0.002
Say = Callable[[str], None]


@dataclass(slots=True)
class Times:
    """In ms, a value for each round."""

    promoted: list[float] = field(default_factory=list)
    accepted: list[float] = field(default_factory=list)
    # What control says about each step, by its name.
    steps: dict[str, list[float]] = field(default_factory=dict)

    def note(self, operation: dict[str, Any]) -> None:
        for step, ms in operation["timings_ms"].items():
            if ms is not None:
                self.steps.setdefault(step, []).append(float(ms))
        self.promoted.append(float(operation["timings_ms"]["decision_to_promoted"]))

    def told(self) -> str:
        return ", ".join(f"{step} {max(values):.0f}" for step, values in self.steps.items())


def measure(folder: Path, sizes_mb: Sequence[int], rounds: int, say: Say) -> figures.Report:
    found: list[Figure] = []
    steps: list[str] = []
    for size_mb in sizes_mb:
        place = folder / f"{size_mb}-mb"
        place.mkdir()
        alone_ms, kinds = _with_state(place, size_mb, rounds, say)
        for kind, times in kinds.items():
            found += spread(f"{kind}_promoted_{size_mb}mb", times.promoted, None, 100)
            found += spread(f"{kind}_first_write_{size_mb}mb", times.accepted, alone_ms, None)
            steps.append(f"{kind}, {size_mb} MB, longest of each step in ms: {times.told()}")
    return figures.Report(
        "failover",
        found,
        notes=[
            f"{rounds} rounds of each kind; a program that appends 4 KiB and fsyncs",
            "durability remote before each failover, and after a planned one; site after a forced one, for then no "
            "other site is left to confirm",
            "promoted: control's decision_to_promoted (planned: from the end of the handover)",
            "first write: from the request to the answer of the first write at the new site",
            "baseline: the program alone, from its start on the same directory to its first answered write",
            *steps,
        ],
    )


def _with_state(place: Path, size_mb: int, rounds: int, say: Say) -> tuple[list[float], dict[str, Times]]:
    """The program alone, and the failovers of each kind, on a state of one size."""
    state = place / "state"
    fill(state, size_mb)
    say(f"{size_mb} MB: the program alone")
    alone_ms = [start_alone(state) for _ in range(rounds)]
    with trials.Trial(place / "deployment") as trial:
        port = nats_server.free_port()
        log = place / "program.log"
        trial.run(VOLUME, "east", state, program("{path}", port), "remote", log)
        first_answer(port, ANSWER_TIMEOUT_S + size_mb)
        trial.wait_following(VOLUME, "west", ANSWER_TIMEOUT_S + size_mb)
        leader, other = "east", "west"
        kinds = {"planned": Times(), "forced": Times()}
        for number in range(2 * rounds):
            kind = ("planned", "forced")[number % 2]
            say(f"{size_mb} MB: {kind} failover {number // 2 + 1} of {rounds}")
            move(trial, leader, other, port, forced=kind == "forced", times=kinds[kind])
            leader, other = other, leader
            trial.wait_following(VOLUME, other, ANSWER_TIMEOUT_S + size_mb)
    return alone_ms, kinds


def spread(
    name: str, values: Sequence[float], baseline: Sequence[float] | None, at_most: float | None
) -> list[Figure]:
    return [
        Figure(
            f"{name}_{word}",
            figures.percentile(values, percent),
            "ms",
            baseline=None if baseline is None else figures.percentile(baseline, percent),
            at_most=at_most,
        )
        for word, percent in (("p50", 50), ("p99", 99), ("max", 100))
    ]


def move(trial: trials.Trial, leader: str, target: str, port: int, *, forced: bool, times: Times) -> None:
    control = trial.control()
    held = None if forced else connected(port)
    if forced:
        trial.kill_site(leader)
    # Of two sites one is dead: nobody is left to confirm a write at remote. The next handover raises it again.
    body = {"to": target, "accept_loss": forced, "durability": "site" if forced else "remote"}
    decided = time.monotonic()
    operation = control.failover(VOLUME, body)
    if held is not None:
        # The old program answers until it is stopped: only a connection made after its end counts.
        wait_closed(held)
    first_answer(port, ANSWER_TIMEOUT_S)
    times.accepted.append((time.monotonic() - decided) * 1000)
    while operation["state"] == "running":
        operation = control.operation(operation["id"], 5.0)
    if operation["state"] != "done":
        raise errors.from_dict(operation.get("error") or {"message": f"the failover is {operation['state']}"})
    times.note(operation)
    if forced:
        control.start_site(leader)


def program(directory: str, port: int) -> list[str]:
    return [sys.executable, "-m", "dkctl.bench.appender", directory, str(port)]


def http_program() -> list[str]:
    """Without site packages: what is measured is the move, not the start of an interpreter."""
    script = Path(__file__).with_name("http_appender.py")
    return [sys.executable, "-I", "-S", str(script), "{path}", "{port}"]


def fill(state: Path, size_mb: int) -> None:
    """Files of 8 MiB that zstd halves."""
    state.mkdir()
    left = size_mb * 1_000_000
    while left > 0:
        size = min(left, FILE_BYTES)
        block = b"".join(writers.blocks(-(-size // writers.BLOCK_BYTES)))[:size]
        (state / f"part-{left}").write_bytes(block)
        left -= size


def start_alone(state: Path) -> float:
    """ms from the start of the program, uncaptured, to its first answer; it is killed then."""
    port = nats_server.free_port()
    started = time.monotonic()
    alone = subprocess.Popen(program(str(state), port))
    try:
        first_answer(port, ANSWER_TIMEOUT_S)
        return (time.monotonic() - started) * 1000
    finally:
        alone.kill()
        alone.wait()


def first_answer(port: int, timeout_s: float) -> None:
    """Ask until one write was answered."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
                connection.sendall(b"!")
                if connection.recv(1) == b".":
                    return
        except OSError:
            time.sleep(RETRY_S)
    raise errors.TimedOut(
        f"no write was accepted within {timeout_s:.0f} s",
        reason="no-write-accepted",
        hint="see the trial's logs",
    )


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=ANSWER_TIMEOUT_S)


def wait_closed(connection: socket.socket) -> None:
    with connection:
        try:
            connection.recv(1)
        except ConnectionError:
            return  # reset: as closed as it gets
