"""How bad a status is, for monitoring: pure, one severity and sentence a finding, and the figures behind them.

``health`` says what needs attention; here it is weighed: critical is what endangers or stops a volume now.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dkctl import health


class Severity(enum.IntEnum):
    """The numbers are the exit codes of the Nagios plugin interface."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


@dataclass(frozen=True, slots=True)
class Alarm:
    severity: Severity
    text: str


@dataclass(frozen=True, slots=True)
class Limits:
    """Milliseconds. A volume at rest has no lag, however old its last write is."""

    warn_lag_ms: int
    critical_lag_ms: int
    # A figure that was measured longer ago says nothing any more.
    stale_ms: int


def of_status(sites: list[dict[str, Any]], volumes: list[dict[str, Any]], limits: Limits) -> list[Alarm]:
    """Worst first."""
    found = [Alarm(Severity.WARNING, text) for site in sites for text in health.of_site(site)]
    for volume in volumes:
        found += _of_volume(volume, limits)
    return sorted(found, key=lambda alarm: -alarm.severity)


def worst(found: list[Alarm]) -> Severity:
    return max((alarm.severity for alarm in found), default=Severity.OK)


def lag_ms(volume: dict[str, Any]) -> int | None:
    """How long what is not safe elsewhere has been waiting; None when nobody has said."""
    lag = volume.get("lag") or {}
    return lag.get("ms")


def ready_replicas(volume: dict[str, Any]) -> int:
    """Sites that could take over now: they follow, and their base is whole."""
    return sum(
        1
        for replica in volume.get("sites", [])
        if replica.get("role") == "follow"
        and replica.get("state") == "following"
        and replica.get("base_complete")
    )


def _of_volume(volume: dict[str, Any], limits: Limits) -> Iterator[Alarm]:
    name = volume["volume"]
    stopped = volume["state"] in ("leaderless", "failed", "fenced")
    for text in health.of_volume(volume):
        yield Alarm(Severity.CRITICAL if stopped else Severity.WARNING, text)
    if volume["state"] != "idle" and not ready_replicas(volume):
        yield Alarm(Severity.CRITICAL, f"no other site could take over {name} now")
    waiting = lag_ms(volume)
    if waiting is not None and waiting >= limits.warn_lag_ms:
        severity = Severity.CRITICAL if waiting >= limits.critical_lag_ms else Severity.WARNING
        yield Alarm(severity, f"{name} has writes that have been waiting to be shipped for {waiting} ms")
    age = (volume.get("positions") or {}).get("age_ms")
    if age is not None and age > limits.stale_ms and not stopped:
        yield Alarm(Severity.WARNING, f"the figures of {name} are {age / 1000:.1f} s old")
