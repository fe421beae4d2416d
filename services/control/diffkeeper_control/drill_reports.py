"""What a drill is asked, and what it says in the end. Pure.

A drill does what a forced failover does to a replica, on a clone: everything that the target holds is
applied, and the program is started and asked. What it leaves out is what would move traffic: detection,
promises, the new reign. Where a failover of the volume was seen, the time those took then is counted in.
"""

from __future__ import annotations

from typing import Any

import msgspec

from diffkeeper.domain import errors
from diffkeeper_control.registry import Struct

# Steps of a failover that a drill cannot rehearse without moving the volume.
NOT_REHEARSED = ("promise", "promote", "attach")
EVERY_LEAST_S = 10.0


class Asked(Struct, frozen=True):
    to: str
    # A shell command that succeeds once the program does its work; without one it has to accept connections
    # at its port, or, without a port, to live for a second.
    check: str | None = None
    rto_ms: float | None = None
    rpo_ms: float | None = None
    timeout_s: float = 60.0


class Schedule(Struct, frozen=True):
    volume: str
    asked: Asked
    every_s: float


class Report(Struct, frozen=True):
    volume: str
    to: str
    ok: bool
    verdict: str
    position: str | None
    # Measured here, or when the volume last failed over, as ``taken_from`` says.
    steps_ms: dict[str, float]
    taken_from: str | None
    recovery_ms: float | None
    rto_ms: float | None
    # How far the replica was behind the leader, as its agent said at the beginning; null: nobody could say.
    behind_ms: float | None
    behind_frames: int | None
    rpo_ms: float | None
    clone_ms: float | None
    error: dict[str, Any] | None
    output: str
    started_us: int
    took_ms: float


def check(asked: Asked) -> None:
    """Raises Refused."""
    for name, value in (("rto_ms", asked.rto_ms), ("rpo_ms", asked.rpo_ms)):
        if value is not None and value < 0:
            raise errors.Refused(f"{name} is not negative", reason="bad-request")
    if not 0 < asked.timeout_s <= 3600:
        raise errors.Refused("timeout_s is more than 0 and at most 3600", reason="bad-request")


def check_every(every_s: float) -> None:
    if not EVERY_LEAST_S <= every_s <= 366 * 86_400:
        raise errors.Refused(
            f"drills are held every {EVERY_LEAST_S:g} s at most, and once a year at least",
            reason="bad-request",
            hint="--every 1h",
        )


def judge(
    volume: str,
    asked: Asked,
    *,
    steps_ms: dict[str, float],
    known_ms: dict[str, float],
    taken_from: str | None,
    behind_ms: float | None,
    behind_frames: int | None,
    position: str | None,
    clone_ms: float | None,
    error: errors.DiffKeeperError | None,
    output: str,
    started_us: int,
    took_ms: float,
) -> Report:
    steps = {**{step: known_ms[step] for step in NOT_REHEARSED if step in known_ms}, **steps_ms}
    recovery_ms = round(sum(steps.values()), 3) if error is None else None
    missed = []
    if error is not None:
        missed.append(error.message)
    if recovery_ms is not None and asked.rto_ms is not None and recovery_ms > asked.rto_ms:
        missed.append(f"recovery took {recovery_ms:.0f} ms, and the objective is {asked.rto_ms:.0f} ms")
    if asked.rpo_ms is not None and behind_ms is None:
        missed.append("nobody could say how far the replica was behind")
    elif asked.rpo_ms is not None and behind_ms is not None and behind_ms > asked.rpo_ms:
        missed.append(
            f"the replica was {behind_ms:.0f} ms behind, and the objective is {asked.rpo_ms:.0f} ms"
        )
    done = f"{volume} would run at {asked.to}"
    verdict = f"The drill failed: {'; '.join(missed)}" if missed else f"{done} within {recovery_ms:.0f} ms"
    return Report(
        volume=volume,
        to=asked.to,
        ok=not missed,
        verdict=verdict,
        position=position,
        steps_ms={step: round(ms, 3) for step, ms in steps.items()},
        taken_from=taken_from if any(step in known_ms for step in NOT_REHEARSED) else None,
        recovery_ms=recovery_ms,
        rto_ms=asked.rto_ms,
        behind_ms=behind_ms,
        behind_frames=behind_frames,
        rpo_ms=asked.rpo_ms,
        clone_ms=clone_ms,
        error=None if error is None else error.to_dict(),
        output=output,
        started_us=started_us,
        took_ms=round(took_ms, 3),
    )


def view(report: Report | None) -> dict[str, Any] | None:
    if report is None:
        return None
    shown: dict[str, Any] = msgspec.to_builtins(report)
    return shown
