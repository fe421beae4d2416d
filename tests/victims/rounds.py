"""One victim in a deployment of two sites, and what a round does to it.

The rule for ``observe``. Every status gives a lag of ``ms``, measured at an instant. What was acknowledged
up to that instant less the lag is at the other site by the status' own word, so it must be there after the
failover; what was acknowledged later may be lost. The last status answered before the kill counts. Its
instant is the moment it was asked for less the age that it states for its figures, which is never later
than the true one. Whatever is lost is a tail: nothing that began after the end of a lost operation is
present.

With ``site`` and ``remote`` nothing acknowledged may be missing.
"""

from __future__ import annotations

import random
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from tests.support import orphans, trial_deployments
from tests.victims import load, operations, victims

VOLUME = "victim"
# The kill comes this long after the first acknowledged operations, at most.
KILL_AFTER_MAX_S = 1.0
STATUS_EVERY_S = 0.05
# Acknowledged in a round before anything may happen to the site.
WARM_UP = 15


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a round saw."""

    verdict: operations.Verdict
    complaints: list[str]
    operation: dict[str, Any]
    # Operations of this round that were sent and never answered.
    unknown: int
    # The last lag reported before the kill.
    report: Report | None = None

    def summary(self) -> str:
        timings = {step: round(ms) for step, ms in self.operation["timings_ms"].items() if ms is not None}
        return (
            f"{self.verdict.acknowledged} acknowledged, {len(self.verdict.lost_in_lag)} lost within the lag, "
            f"{self.unknown} unknown of which {self.verdict.unknown_present} present; "
            f"{self.report or 'planned'}; ms: {timings}"
        )

    def problems(self) -> list[str]:
        return self.verdict.problems() + self.complaints


class Asks(Protocol):
    def volume(self, volume: str) -> dict[str, Any]: ...


class Deployment(Protocol):
    """What a round asks of ``trials.Trial``, and of its twin."""

    @property
    def sites(self) -> tuple[str, ...]: ...

    def run(
        self, volume: str, site: str, path: Path, command: Sequence[str], durability: str, log: Path
    ) -> subprocess.Popen[bytes]: ...

    def wait_following(self, volume: str, site: str) -> Path: ...

    def kill_site(self, site: str) -> None: ...

    def start_site(self, site: str) -> None: ...

    def failover(self, volume: str, target: str, *more: str) -> dict[str, Any]: ...

    def control(self) -> Asks: ...


class Arena:
    """Where the victim runs now, and everything its clients were told so far."""

    def __init__(self, trial: Deployment, victim: victims.Victim, folder: Path, durability: str) -> None:
        self.trial = trial
        self.victim = victim
        self.history = operations.History()
        self.leader, self.other = trial.sites
        self._durability = durability
        self._round = 0
        state = folder / "state"
        state.mkdir()
        victim.prepare(state)
        self.paths = {self.leader: state}
        self.run = trial.run(
            VOLUME, self.leader, state, victim.command("{path}"), durability, folder / "program.log"
        )
        victims.wait_ready(victim)
        self.paths[self.other] = trial.wait_following(VOLUME, self.other)

    def lose_leader(self, seed: int) -> Outcome:
        """Kill the leading site in the middle of a load, fail over, look, and bring the lost site back."""
        self._round += 1
        moment = random.Random(seed).random() * KILL_AFTER_MAX_S
        before = self._confirmed()
        with Watch(self.trial) as watch:
            with self._load(seed) as clients, self.victim.side_load():
                clients.wait_for(acknowledged=WARM_UP)
                # What is tried is a volume at work, not the moments in which two sites find each other again.
                victims.wait_until(
                    f"{self.other} confirms", lambda: watch.confirms_beyond(before, self.other), 60
                )
                time.sleep(moment)
                doomed = trial_deployments.working_below(self.paths[self.leader])
                self.trial.kill_site(self.leader)
            assert clients.disconnected > 0, "the kill came in the middle of the load"
        report = watch.last_before(self._death_us())
        victims.wait_until("the killed program is gone", lambda: orphans.are_gone(doomed), 10)
        left = trial_deployments.working_below(self.paths[self.leader])
        assert left == [], f"processes {left} of the killed site still work on its directory"
        accept = ["--accept-loss"] if self._durability == "observe" else []
        operation = self.trial.failover(VOLUME, self.other, *accept)
        # At remote the program may wait in its first fsync for another site to confirm; and whatever the lost
        # site still holds must not come back with it.
        self.trial.start_site(self.leader)
        outcome = self._look(operation, report)
        self._swap()
        self.paths[self.other] = self.trial.wait_following(VOLUME, self.other)
        return outcome

    def hand_over(self, seed: int) -> Outcome:
        """Move the volume while its clients go on; they must come through with nothing lost."""
        self._round += 1
        with self._load(seed) as clients:
            clients.wait_for(acknowledged=WARM_UP)
            operation = self.trial.failover(VOLUME, self.other)
            clients.wait_for(acknowledged=WARM_UP)
        outcome = self._look(operation)
        self._swap()
        self.paths[self.other] = self.trial.wait_following(VOLUME, self.other)
        return outcome

    def take_over(self, operation: dict[str, Any]) -> None:
        """The victim runs at the other site now, as a finished failover says."""
        victims.wait_ready(self.victim)
        self.paths[self.other] = Path(str(operation["result"]["path"]))
        self._swap()

    def clients(self, seed: int, name: str) -> load.Load:
        """At work while the context lasts; ``name`` tells the keys of one load from those of another."""
        return load.Load(self.victim, self.history, name, seed)

    def _load(self, seed: int) -> load.Load:
        return self.clients(seed, f"r{self._round}")

    def _look(self, operation: dict[str, Any], report: Report | None = None) -> Outcome:
        may_lose = report is not None and self._durability == "observe"
        victims.wait_ready(self.victim)
        self.paths[self.other] = Path(str(operation["result"]["path"]))
        found = self.victim.found()
        verdict = operations.judge(
            self.history.all(), found, report.safe_until_us if report and may_lose else None
        )
        complaints = self.victim.examine(self.paths[self.other])
        unknown = self.history.count(operations.Outcome.UNKNOWN)
        self.history.settle(found)
        return Outcome(verdict, complaints, operation, unknown, report)

    def _confirmed(self) -> str | None:
        return _confirmed_by(self.trial.control().volume(VOLUME), self.other)

    def _death_us(self) -> int:
        """When the first client noticed; earlier rounds are settled and hold no unknown operation."""
        return min(op.end_us for op in self.history.all() if op.outcome is operations.Outcome.UNKNOWN)

    def _swap(self) -> None:
        self.leader, self.other = self.other, self.leader


@dataclass(frozen=True, slots=True)
class Report:
    """A lag as ``dkctl status`` gave it: asked for and answered at these instants."""

    asked_us: int
    answered_us: int
    lag_ms: float
    age_ms: float

    def __str__(self) -> str:
        return f"lag {self.lag_ms:.0f} ms, {self.age_ms:.0f} ms old"

    @property
    def safe_until_us(self) -> int:
        return self.asked_us - round((self.age_ms + self.lag_ms) * 1000)


class Watch:
    """Asks for the status again and again, so that the last answer before a kill is fresh."""

    def __init__(self, trial: Deployment) -> None:
        self._control = trial.control()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch")
        self._reports: list[Report] = []
        self._volume: dict[str, Any] = {}

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.is_set():
            asked_us = operations.now_us()
            volume = self._control.volume(VOLUME)
            self._volume, lag = volume, volume.get("lag")
            if lag is not None and lag.get("ms") is not None:
                self._reports.append(Report(asked_us, operations.now_us(), lag["ms"], lag.get("age_ms") or 0))
            self._stop.wait(STATUS_EVERY_S)

    def confirms_beyond(self, position: str | None, site: str) -> bool:
        """Whether ``site`` has confirmed something else than this position since."""
        return _confirmed_by(self._volume, site) not in (None, position)

    def last_before(self, instant_us: int) -> Report:
        return max(
            (report for report in self._reports if report.answered_us <= instant_us),
            key=lambda report: report.asked_us,
        )


def _confirmed_by(volume: dict[str, Any], site: str) -> str | None:
    positions: dict[str, Any] = volume.get("positions") or {}
    return (positions.get("confirmed") or {}).get(site)
