"""``dkctl bench failover --front-door``: clients at a steady rate while their program is moved back and forth.

Requests are sent when their time has come, whether or not earlier ones were answered, so a stall is seen by
everyone who would have met it. Failed: any answer but 200, or none. Lost: answered, and not in the program's
file at the end. A stall is the longest answer of one move.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffkeeper import nats_server
from diffkeeper.domain import errors
from dkctl.bench import failover, figures, trials
from dkctl.bench.figures import Figure

# Before the first move, between two, and after the last.
SETTLE_S = 1.0
GIVE_UP_S = 30.0
STALL_MS = 100.0
Say = Callable[[str], None]


@dataclass(slots=True)
class Answered:
    """Of one request: when it was due, and how it went. Seconds of the monotonic clock."""

    due: float
    took_ms: float
    status: int


class Load:
    """Sends POST requests at a rate, each with a number of its own, over as many connections as that takes."""

    def __init__(self, port: int, rate: int) -> None:
        self.answers: list[Answered] = []
        self.acknowledged: list[int] = []
        self._port = port
        self._rate = rate
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._stop = False

    async def run(self) -> None:
        began, number = time.monotonic(), 0
        try:
            async with asyncio.TaskGroup() as group:
                while not self._stop:
                    due = began + number / self._rate
                    await asyncio.sleep(max(0.0, due - time.monotonic()))
                    group.create_task(self._ask(number, due))
                    number += 1
        finally:
            for _, writer in self._idle:
                writer.transport.abort()

    def stop(self) -> None:
        self._stop = True

    async def _ask(self, number: int, due: float) -> None:
        try:
            async with asyncio.timeout(GIVE_UP_S):
                status = await self._exchange(number)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            status = 0
        self.answers.append(Answered(due, (time.monotonic() - due) * 1000, status))
        if status == 200:
            self.acknowledged.append(number)

    async def _exchange(self, number: int) -> int:
        if self._idle:
            reader, writer = self._idle.pop()
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(b"POST /%d HTTP/1.1\r\nHost: bench\r\n\r\n" % number)
            head = await reader.readuntil(b"\r\n\r\n")
            length = head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]
            await reader.readexactly(int(length))
        except BaseException:
            writer.transport.abort()
            raise
        self._idle.append((reader, writer))
        return int(head.split(b" ", 2)[1])


@dataclass(slots=True)
class Moves:
    """Each move's span, and what control says of its steps."""

    spans: list[tuple[float, float]] = field(default_factory=list)
    steps: dict[str, list[float]] = field(default_factory=dict)

    def stalls(self, answers: list[Answered]) -> list[float]:
        """For each move the longest answer to a request that met it."""
        return [
            max(
                (one.took_ms for one in answers if one.due <= end and one.due + one.took_ms / 1000 >= begin),
                default=0.0,
            )
            for begin, end in self.spans
        ]


def measure(folder: Path, sizes_mb: tuple[int, ...], moves: int, rate: int, say: Say) -> figures.Report:
    found: list[Figure] = []
    faults: list[str] = []
    notes = [f"{moves} planned moves back and forth, {rate} requests/s, each written and fsynced at remote"]
    for size_mb in sizes_mb:
        place = folder / f"{size_mb}-mb"
        place.mkdir()
        state = place / "state"
        failover.fill(state, size_mb)
        with trials.Trial(place / "deployment") as trial:
            load, done = _move_under_load(trial, place, moves, rate, say)
            path = Path(str(trial.control().volume(failover.VOLUME)["path"]))
            lost = _missing(load, path)
        failed = sum(one.status != 200 for one in load.answers)
        found += _figures(size_mb, load, done, failed, lost)
        notes.append(
            f"{size_mb} MB, median of each step in ms: "
            + ", ".join(f"{step} {figures.percentile(ms, 50):.0f}" for step, ms in done.steps.items())
        )
        if lost:
            faults.append(f"{lost} acknowledged requests are lost ({size_mb} MB)")
    return figures.Report("front-door", found, faults=faults, notes=notes)


def _figures(size_mb: int, load: Load, done: Moves, failed: int, lost: int) -> list[Figure]:
    quiet = [
        one.took_ms
        for one in load.answers
        if not any(begin <= one.due + one.took_ms / 1000 and one.due <= end for begin, end in done.spans)
    ]
    baseline = quiet or [0.0]
    return [
        Figure(f"requests_{size_mb}mb", len(load.answers), ""),
        Figure(f"failed_{size_mb}mb", failed, "", at_most=0),
        Figure(f"lost_{size_mb}mb", lost, "", at_most=0),
        *(
            Figure(
                f"longest_stall_{size_mb}mb_{word}",
                figures.percentile(done.stalls(load.answers), percent),
                "ms",
                baseline=figures.percentile(baseline, percent),
                at_most=STALL_MS if word == "p99" else None,
                note="baseline: an answer while nothing moves",
            )
            for word, percent in (("p50", 50), ("p99", 99), ("max", 100))
        ),
    ]


def _move_under_load(trial: trials.Trial, place: Path, moves: int, rate: int, say: Say) -> tuple[Load, Moves]:
    port = nats_server.free_port()
    trial.run(
        failover.VOLUME,
        "east",
        place / "state",
        failover.http_program(),
        "remote",
        place / "program.log",
        f"--listen={port}",
    )
    _wait_accepting(trial)
    trial.wait_following(failover.VOLUME, "west", failover.ANSWER_TIMEOUT_S + 60)
    return asyncio.run(_under_load(trial, port, moves, rate, say))


def _wait_accepting(trial: trials.Trial) -> None:
    def accepts() -> bool:
        try:
            door = trial.control().volume(failover.VOLUME).get("front_door") or {}
        except errors.NotFound:
            return False  # it has just been asked for
        return bool((door.get("now") or {}).get("accepting"))

    trials.wait("the program accepts connections", accepts, failover.ANSWER_TIMEOUT_S)


async def _under_load(trial: trials.Trial, port: int, moves: int, rate: int, say: Say) -> tuple[Load, Moves]:
    load, done = Load(port, rate), Moves()
    async with asyncio.TaskGroup() as group:
        group.create_task(load.run())
        try:
            await asyncio.sleep(SETTLE_S)
            for number in range(moves):
                target = ("west", "east")[number % 2]
                say(f"move {number + 1} of {moves}, to {target}")
                await asyncio.to_thread(_move, trial, target, done)
                await asyncio.sleep(SETTLE_S)
        finally:
            load.stop()
    return load, done


def _move(trial: trials.Trial, target: str, done: Moves) -> None:
    control = trial.control()
    other = "east" if target == "west" else "west"
    trial.wait_following(failover.VOLUME, target, behind=1000)
    begin = time.monotonic()
    operation = control.failover(failover.VOLUME, {"to": target})
    while operation["state"] == "running":
        operation = control.operation(operation["id"], 5.0)
    if operation["state"] != "done":
        raise errors.from_dict(operation.get("error") or {"message": f"the move is {operation['state']}"})
    done.spans.append((begin, time.monotonic()))
    for step, ms in operation["timings_ms"].items():
        done.steps.setdefault(step, []).append(float(ms))
    trial.wait_following(failover.VOLUME, other, behind=1000)


def _missing(load: Load, path: Path) -> int:
    """How many requests were answered and are not in the file."""
    kept: set[Any] = set((path / "appended").read_bytes().split(b"\n"))
    return sum(b"%d" % number not in kept for number in load.acknowledged)
