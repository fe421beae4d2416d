"""Automatic failover: when a volume may get another leader by itself, and which. Pure.

It acts on one fact, that the lease's record has not changed for its whole time while the store answered, and only where
nothing acknowledged can be lost: the volume is at level ``remote`` with policy ``block``, and every other site that may
hold its log answers. Everything else is an operator's decision, and the reason is said in the status.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffkeeper.domain import leases, positions, receipts, volumes
from diffkeeper_control import registry, roles
from diffkeeper_control.registry import State

# After an attempt that failed the next one waits, longer each time.
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0


@dataclass(frozen=True, slots=True)
class Others:
    """The sites that do not lead: which of them run, and what their replicators say of the volume."""

    running: frozenset[str]
    # None where a site does not answer, or does not know the volume.
    replicas: Mapping[str, dict[str, Any] | None]


def why_never(volume: registry.Volume) -> str:
    """Why this volume is never moved by itself; empty when it may be."""
    if volume.mode == volumes.Mode.SHARED.value:
        return "each site of a shared volume keeps its own directory"
    if volume.level is not receipts.Level.REMOTE:
        return f"at durability {volume.durability} acknowledged writes could be lost"
    if volume.policy != volumes.UnmetPolicy.BLOCK.value:
        return f"with policy {volume.policy} acknowledged writes could be lost"
    return ""


def why_not_now(volume: registry.Volume, others: Others) -> str:
    """Why it could not be moved at this moment; empty when it could."""
    if volume.state is State.RELEASED:
        return "nothing is captured"
    for site, replica in others.replicas.items():
        if site not in others.running:
            return f"{site} is stopped, and may hold more than the others"
        if replica is None:
            return f"{site} does not answer, and may hold more than the others"
    if not _ready(volume, others):
        return "no other site has a complete replica that follows"
    return ""


def is_over(volume: registry.Volume, watch: leases.Watch, now: float) -> bool:
    """Whether the reign of the volume's leader has ended without a word."""
    return (
        volume.operation is None
        and volume.state in (State.CAPTURED, State.FAILED)
        and watch.held.lease.epoch >= volume.epoch
        and watch.expired(now)
    )


def choose(volume: registry.Volume, others: Others) -> str | None:
    """The site that holds most; of equals the first. The failover itself checks that nobody else held more."""
    ready = _ready(volume, others)
    return max(ready, key=lambda site: ready[site]) if ready else None


def pause_s(failures: int) -> float:
    return 0.0 if failures == 0 else min(FIRST_PAUSE_S * 2.0 ** min(failures - 1, 16), LONGEST_PAUSE_S)


def _ready(volume: registry.Volume, others: Others) -> dict[str, positions.Position]:
    found = {}
    for site, replica in others.replicas.items():
        if replica is None or site not in others.running or not roles.is_met(volume, site, replica):
            continue
        if replica.get("base_complete") and replica.get("state") not in ("failed", "stalled"):
            found[site] = positions.parse(replica["journalled"])
    return found
