"""What a capture agent says of a volume, and the same as control would tell it. Pure.

The shapes are those of ``GET /v1/status`` of an agent in ARCHITECTURE.md, which are add-only.
"""

from __future__ import annotations

from typing import Any

import msgspec

from diffkeeper_operator import views

# A wait for durability that lasts longer than this says that the level is not met just now.
LONG_WAIT_US = 1_000_000


class Waiting(msgspec.Struct, frozen=True):
    since_us: int | None = None


class Barriers(msgspec.Struct, frozen=True):
    waiting: tuple[Waiting, ...] = ()


class AgentVolume(msgspec.Struct, frozen=True):
    volume: str
    state: str
    epoch: int | None = None
    durability: str | None = None
    effective_durability: str | None = None
    probe: str | None = None
    why_not_bpf: Any = None
    fidelity: str | None = None
    error: Any = None
    trouble: Any = None
    base: views.Base | None = None
    captured: str | None = None
    stored: str | None = None
    lag: views.Lag | None = None
    gaps: views.Gaps | None = None
    barriers: Barriers = Barriers()
    # What each other site has confirmed, and what it lacks.
    confirmed: dict[str, str] = {}
    replicas: dict[str, views.Lag] = {}
    at_us: int = 0


class AgentStatus(msgspec.Struct, frozen=True):
    volumes: tuple[AgentVolume, ...]

    def of(self, volume: str) -> AgentVolume | None:
        return next((one for one in self.volumes if one.volume == volume), None)


def volume(told: AgentVolume, here: str) -> views.Volume:
    """The volume, led from ``here``, where the agent is."""
    return views.Volume(
        volume=told.volume,
        state=told.state,
        detail=_words(told.error) or _words(told.trouble),
        leader=here,
        leader_state="alive",
        epoch=told.epoch,
        durability=told.durability,
        base=told.base,
        level=views.LevelView(told.durability, told.effective_durability, _is_met(told)),
        positions=views.Positions(told.captured, told.stored),
        lag=told.lag,
        gaps=told.gaps,
        fidelity=told.fidelity,
        probe=told.probe,
        why_not_bpf=told.why_not_bpf,
        sites=(_leading(told, here), *_following(told, here)),
    )


def at_rest(name: str, leader: str, epoch: int) -> views.Volume:
    """A volume that was led from here before, and of which no pod runs."""
    return views.Volume(
        volume=name,
        state="at rest",
        detail="no pod of its program runs, so nothing is written either",
        leader=leader,
        leader_state="alive",
        epoch=epoch,
    )


def _is_met(told: AgentVolume) -> bool:
    since = min((one.since_us for one in told.barriers.waiting if one.since_us is not None), default=None)
    waited_us = 0 if since is None else told.at_us - since
    same = told.effective_durability in (None, told.durability)
    return told.error is None and same and waited_us < LONG_WAIT_US


def _leading(told: AgentVolume, here: str) -> views.Replica:
    return views.Replica(
        site=here,
        role="lead",
        state="leading",
        journalled=told.captured,
        applied=told.captured,
        base_complete=told.base is not None and told.base.done,
    )


def _following(told: AgentVolume, here: str) -> list[views.Replica]:
    """The other sites that have confirmed anything to the writer; of the rest it is not known that they are there."""
    return [
        views.Replica(
            site=site,
            role="follow",
            state="following",
            journalled=position,
            base_complete=told.base is not None and told.base.done,
            lag=told.replicas.get(site),
        )
        for site, position in told.confirmed.items()
        if site != here
    ]


def _words(error: Any) -> str | None:
    if isinstance(error, dict):
        return str(error.get("message") or error.get("reason") or "") or None
    return None if error is None else str(error)
