"""What control and the repair service say, as far as the operator reads it; everything else of an answer is left alone. Pure.

The shapes are in ARCHITECTURE.md and add-only, so a field that is not known here is no error, and one that is missing is None.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from diffkeeper.domain import errors


class Lag(msgspec.Struct, frozen=True):
    frames: int | None = None
    bytes: int | None = None
    ms: float | None = None


class Gaps(msgspec.Struct, frozen=True):
    # A count, or only whether there are any.
    open: int | bool = 0
    total: int | None = None


class LevelView(msgspec.Struct, frozen=True):
    asked: str | None = None
    effective: str | None = None
    met: bool | None = None


class Positions(msgspec.Struct, frozen=True):
    captured: str | None = None
    stored: str | None = None


class Base(msgspec.Struct, frozen=True):
    done: bool = False
    bytes: int = 0
    bytes_total: int = 0


class Replica(msgspec.Struct, frozen=True):
    site: str
    role: str | None = None
    state: str | None = None
    journalled: str | None = None
    applied: str | None = None
    base_complete: bool = False
    lag: Lag | None = None
    error: Any = None


class Volume(msgspec.Struct, frozen=True):
    volume: str
    state: str
    detail: str | None = None
    leader: str | None = None
    leader_state: str | None = None
    epoch: int | None = None
    durability: str | None = None
    operation: str | None = None
    base: Base | None = None
    level: LevelView | None = None
    positions: Positions | None = None
    lag: Lag | None = None
    gaps: Gaps | None = None
    fidelity: str | None = None
    probe: str | None = None
    why_not_bpf: Any = None
    sites: tuple[Replica, ...] = ()

    def at(self, site: str) -> Replica | None:
        return next((replica for replica in self.sites if replica.site == site), None)

    @property
    def captured(self) -> bool:
        return self.state in ("capturing", "running")


class Process(msgspec.Struct, frozen=True):
    name: str
    state: str


class Site(msgspec.Struct, frozen=True):
    site: str
    state: str
    detail: str | None = None
    processes: tuple[Process, ...] = ()

    @property
    def without_broker(self) -> bool:
        brokers = [process for process in self.processes if process.name.startswith("nats")]
        return bool(brokers) and not any(process.state == "running" for process in brokers)


class VolumeParity(msgspec.Struct, frozen=True):
    volume: str
    geometry: str | None = None
    spare: int | None = None
    lost_segments: int = 0
    rebuilding: int = 0
    waiting: int = 0


class Parity(msgspec.Struct, frozen=True):
    """``GET /v1/health`` of the repair service."""

    ok: bool
    verdict: str = ""
    geometry: Any = None
    volumes: tuple[VolumeParity, ...] = ()

    def of(self, volume: str) -> VolumeParity | None:
        return next((one for one in self.volumes if one.volume == volume), None)


class Moment(msgspec.Struct, frozen=True):
    position: str | None = None
    at_us: int | None = None


class Points(msgspec.Struct, frozen=True):
    kept: int = 0


class History(msgspec.Struct, frozen=True):
    """``GET …/history``."""

    first: Moment | None = None
    last: Moment | None = None
    points: Points = Points()
    policy: dict[str, Any] | None = None
    damaged: tuple[Any, ...] = ()


class Verification(msgspec.Struct, frozen=True):
    ok: bool
    verdict: str = ""


class Step(msgspec.Struct, frozen=True):
    phase: str
    outcome: str | None = None
    took_ms: float | None = None
    detail: str | None = None


class Operation(msgspec.Struct, frozen=True):
    id: str
    state: str
    to: str
    started_us: int = 0
    epoch: int | None = None
    detail: str | None = None
    error: dict[str, Any] | None = None
    steps: tuple[Step, ...] = ()
    result: dict[str, Any] | None = None


class Operations(msgspec.Struct, frozen=True):
    operations: tuple[Operation, ...] = ()


class Branch(msgspec.Struct, frozen=True):
    name: str
    position: str
    at_us: int | None = None
    path: str | None = None


T = TypeVar("T")


def read(answer: Any, kind: type[T]) -> T:
    """``answer`` as ``kind``; raises Corrupt when it makes no sense."""
    try:
        return msgspec.convert(answer, kind)
    except msgspec.ValidationError as error:
        raise errors.Corrupt(
            f"the answer of the service makes no sense: {error}; nothing was concluded from it",
            reason="bad-answer",
            hint="operator and control have to be of versions that know each other",
        ) from error
