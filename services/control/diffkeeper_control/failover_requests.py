"""Whether a failover may begin, and what it could lose: the answer before anything is touched. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from diffkeeper.domain import errors, receipts, volumes
from diffkeeper_control import admissions, failover, registry, roles


class LeaderState(enum.Enum):
    ALIVE = "alive"  # its agent answers
    UNREACHABLE = "unreachable"  # it may still run
    DEAD = "dead"  # all its processes are gone and nobody starts them again


@dataclass(frozen=True, slots=True)
class Loss:
    """What a failover now could lose. Figures are the leader's own, as last heard."""

    durability: str
    frames: int | None
    bytes: int | None
    ms: int | None
    age_ms: int | None
    # 0 where no write whose fsync returned can be missing; None where that cannot be said.
    acknowledged_writes: int | None
    text: str


@dataclass(frozen=True, slots=True)
class Asked:
    to: str
    force: bool = False
    accept_loss: bool = False
    start: bool = True
    # The level from now on; None leaves it. A last site standing cannot meet ``remote``: its operator
    # may say so.
    durability: str | None = None
    grace_s: float = 10.0
    timeout_s: float = 60.0
    # Asked by nobody, but because the leader's lease ran out.
    lease_expired: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known at the moment of asking."""

    sites: list[str]
    leader: LeaderState
    loss: Loss
    target_running: bool
    # The replicator's status of the volume at the target; None when it does not answer or does not know it.
    target: dict[str, Any] | None


def bound_loss(
    volume: registry.Volume, heard: dict[str, Any] | None, age_ms: int | None, silent: list[str]
) -> Loss:
    """``heard`` is the agent's last status of the volume; ``silent`` are other sites that do not answer now.

    At ``remote`` a receipt means that one other site has the frame. With one of several others silent it may
    be that one.
    """
    lag = (heard or {}).get("lag") or {}
    frames_behind, bytes_behind, ms_behind = lag.get("frames"), lag.get("bytes"), lag.get("ms")
    kept = (
        volume.level is receipts.Level.REMOTE
        and volume.policy == volumes.UnmetPolicy.BLOCK.value
        and not silent
    )
    ago = "never heard" if age_ms is None else f"as its agent said {age_ms / 1000:.1f} s ago"
    if frames_behind is None:
        behind = f"how far the other sites were behind is not known ({ago})"
    elif frames_behind == 0 and ms_behind:
        behind = (
            f"no frame was waiting to be shipped, and the last {ms_behind} ms were not in one yet ({ago})"
        )
    elif frames_behind == 0:
        behind = f"nothing was waiting to be shipped ({ago})"
    else:
        size = f"{bytes_behind or 0:,} bytes"
        behind = f"{frames_behind} frames ({size}, {ms_behind or 0} ms) were not yet shipped ({ago})"
    if kept:
        text = f"no write whose fsync returned can be missing (durability remote); {behind}"
    else:
        where = f"; {', '.join(silent)} may hold more and does not answer" if silent else ""
        text = f"writes at durability {volume.durability} may be missing: {behind}{where}"
    return Loss(
        volume.durability,
        frames_behind,
        bytes_behind,
        ms_behind,
        age_ms,
        0 if kept else None,
        text,
    )


def accept(volume: registry.Volume, asked: Asked, seen: Seen, epoch: int) -> failover.Plan:
    """The plan, or a refusal (``errors.Refused``, ``errors.NotFound``) that says why not."""
    admissions.check_site(asked.to, seen.sites)
    if volume.mode == volumes.Mode.SHARED.value:
        raise errors.Refused(
            f"{volume.name} is the directory of a shared volume at {volume.leader}; it stays there",
            reason="shared-volume",
            hint="every site writes a shared volume: run the program at another site with --mode shared",
            site=volume.leader,
        )
    if volume.operation is not None:
        raise errors.Refused(
            f"volume {volume.name} is being moved already, by operation {volume.operation}",
            reason="failover-running",
            hint="wait for it, or watch it with dkctl status --watch",
            operation=volume.operation,
        )
    if volume.leader == asked.to:
        raise errors.Refused(
            f"site {asked.to} leads volume {volume.name} already",
            reason="already-leads",
            hint=f"dkctl status {volume.name}",
            site=asked.to,
        )
    if asked.durability is not None:
        receipts.parse_level(asked.durability)
    _check_target(volume, asked, seen)
    _check_loss(volume, asked, seen)
    return failover.Plan(
        volume=volume.name,
        leader=volume.leader,
        target=asked.to,
        old_epoch=volume.epoch,
        epoch=epoch,
        planned=seen.leader is LeaderState.ALIVE and not asked.lease_expired,
        leader_dead=seen.leader is LeaderState.DEAD,
        force=asked.force,
        loss_accepted=_loss_accepted(asked, seen),
        # A program that was not running is not started by moving its files.
        start=asked.start and volume.command is not None and volume.held_since_us is not None,
        grace_s=asked.grace_s,
        timeout_s=asked.timeout_s,
        durability=asked.durability,
        cause=failover.AUTOMATIC if asked.lease_expired else failover.OPERATOR,
    )


def is_on_its_way(volume: registry.Volume, asked: Asked, seen: Seen) -> bool:
    """Whether a target that is not ready becomes so by itself: it has just started, or opens its directory."""
    if not seen.target_running:
        return False
    replica = seen.target
    if replica is None or not roles.is_met(volume, asked.to, replica):
        return True
    return replica.get("state") == "waiting"


def _loss_accepted(asked: Asked, seen: Seen) -> bool:
    return asked.force or asked.accept_loss or seen.loss.acknowledged_writes == 0


def _check_target(volume: registry.Volume, asked: Asked, seen: Seen) -> None:
    if not seen.target_running:
        raise errors.Refused(
            f"site {asked.to} does not run",
            reason="site-stopped",
            hint=f"start it, then ask again (POST /v1/sites/{asked.to}/start)",
            site=asked.to,
        )
    replica = seen.target
    if replica is None:
        raise errors.Refused(
            f"site {asked.to} has no replica of volume {volume.name} that answers",
            reason="target-not-ready",
            hint=f"dkctl status {volume.name}",
            site=asked.to,
            state="unknown",
        )
    if not roles.is_met(volume, asked.to, replica):
        raise errors.Refused(
            f"site {asked.to} has not taken up its role for volume {volume.name} since it came back",
            reason="target-not-ready",
            hint=f"wait until dkctl status {volume.name} shows that it follows",
            site=asked.to,
            state=str(replica.get("state")),
        )
    if not replica.get("base_complete"):
        raise errors.Refused(
            f"the replica of volume {volume.name} at {asked.to} is not complete yet: "
            "its base is still being shipped",
            reason="target-not-ready",
            hint=f"wait until dkctl status {volume.name} says so",
            site=asked.to,
            state=str(replica.get("state")),
        )
    if replica.get("state") in ("failed", "stalled"):
        raise errors.Refused(
            f"the replica of volume {volume.name} at {asked.to} is {replica['state']}: "
            f"{replica.get('error')}",
            reason="target-not-ready",
            hint="dkctl verify compares it with the log",
            site=asked.to,
            state=str(replica["state"]),
        )


def _check_loss(volume: registry.Volume, asked: Asked, seen: Seen) -> None:
    loss = seen.loss
    facts = {
        "frames": loss.frames,
        "bytes": loss.bytes,
        "ms": loss.ms,
        "age_ms": loss.age_ms,
        "durability": loss.durability,
        "acknowledged_writes": loss.acknowledged_writes,
        "text": loss.text,
    }
    if seen.leader is LeaderState.UNREACHABLE and not asked.force and not asked.lease_expired:
        raise errors.Refused(
            f"site {volume.leader} leads volume {volume.name} and may be alive, but does not answer; "
            f"{loss.text}",
            reason="leader-unreachable",
            hint="make sure that it is stopped, or add --force",
            **facts,
        )
    if (seen.leader is LeaderState.DEAD and not _loss_accepted(asked, seen)) or (
        asked.lease_expired and seen.loss.acknowledged_writes != 0
    ):
        raise errors.Refused(
            f"site {volume.leader} is dead, and {loss.text}",
            reason="needs-confirmation",
            hint="add --accept-loss once that is acceptable",
            **facts,
        )
