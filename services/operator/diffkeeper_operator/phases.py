"""The phase of a SAC in one word, and the whole status made of what was observed. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from diffkeeper_operator import conditions, specs
from diffkeeper_operator.conditions import Condition
from diffkeeper_operator.observations import Observed, primary
from diffkeeper_operator.refusals import Refusal

# What moves on while nothing happens: worth writing now and then, never an event.
FIGURES = ("position", "recoveryWindow", "clusters")


def phase(
    sac: specs.Sac, observed: Observed, refusal: Refusal | None, told: list[Condition]
) -> tuple[str, str]:
    """One word, and a sentence that says why."""
    by_type = {condition.type: condition for condition in told}
    if refusal is not None:
        return "Refused", refusal.message
    if sac.spec.paused:
        return "Paused", "spec.paused is true: nothing is changed, and what runs goes on."
    if observed.control is None:
        return "Unknown", "No control service is configured, so nothing is known of capture and copies."
    if observed.control.failure is not None:
        return "Unknown", by_type["Captured"].message
    volume = observed.volume
    if volume is not None and volume.state == "failing-over":
        return "FailingOver", by_type["PrimaryElected"].message
    if by_type["PrimaryElected"].status == "False":
        return "Leaderless", by_type["PrimaryElected"].message
    if volume is not None and volume.state == "scanning":
        return "Scanning", by_type["Captured"].message
    if by_type["Ready"].status != "True" and volume is None:
        return "Creating", by_type["Ready"].message
    bad = [one for one in told if one.status == "False"]
    if bad:
        return "Degraded", bad[0].message
    if volume is None:
        return "Creating", by_type["Captured"].message
    return "Protected", "Every write is captured, and other clusters hold it."


def status(sac: specs.Sac, observed: Observed, refusal: Refusal | None, at: str) -> dict[str, Any]:
    """Everything that the status says now. ``at``: RFC 3339."""
    told = conditions.conditions(sac, observed, refusal)
    word, message = phase(sac, observed, refusal, told)
    holders = [cluster for cluster in sac.clusters(observed.here) if cluster.replicas]
    said: dict[str, Any] = {
        "phase": word,
        "message": message,
        "observedGeneration": sac.generation,
        "volume": sac.accepted.volume if sac.accepted else sac.volume,
        "durability": sac.durability(observed.here),
        "desiredReplicas": len(holders),
        "conditions": conditions.merged(sac.status.get("conditions", []), told, at, sac.generation),
    }
    if observed.control is not None and observed.control.failure is None:
        said |= _of_volume(sac, observed, [cluster.name for cluster in holders])
    if observed.verified is not None:
        said["verification"] = {
            "at": observed.verified.at,
            "ok": observed.verified.ok,
            "verdict": observed.verified.verdict,
        }
    return said


def _of_volume(sac: specs.Sac, observed: Observed, holders: list[str]) -> dict[str, Any]:
    """What only control knows; while it is silent the last that it said stays in the status."""
    volume = observed.volume
    if volume is None:
        return {"readyReplicas": 0, "primary": primary(sac, observed)}
    clusters = [_cluster(sac, observed, name) for name in holders]
    said: dict[str, Any] = {
        "primary": volume.leader or "",
        "readyReplicas": sum(1 for cluster in clusters if cluster["ready"]),
        "clusters": clusters,
    }
    if volume.epoch is not None:
        said["epoch"] = volume.epoch
    if volume.positions is not None and volume.positions.captured:
        said["position"] = volume.positions.captured
    return said | _window(observed)


def _window(observed: Observed) -> dict[str, Any]:
    history = observed.control.history if observed.control is not None else None
    if history is None or history.first is None or history.last is None:
        return {}
    window: dict[str, Any] = {"points": history.points.kept}
    for key, moment in (("from", history.first), ("to", history.last)):
        if moment.at_us is not None:
            window[key] = rfc3339(moment.at_us)
    return {"recoveryWindow": window}


def _cluster(sac: specs.Sac, observed: Observed, name: str) -> dict[str, Any]:
    volume = observed.volume
    assert volume is not None, "clusters are told of a volume"
    replica = volume.at(name)
    leads = name == volume.leader
    behind = conditions.behind(sac, replica, name)
    told: dict[str, Any] = {
        "name": name,
        "role": "lead" if leads else (replica.role or "none") if replica else "none",
        "ready": volume.captured if leads else not behind,
    }
    state = volume.state if leads else (replica.state if replica else None)
    position = (
        volume.positions.captured if leads and volume.positions else (replica.journalled if replica else None)
    )
    told |= {key: value for key, value in (("state", state), ("position", position)) if value}
    if behind and not leads:
        told["message"] = behind
    return told


def changed(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether more than figures changed."""
    return any(before.get(key) != value for key, value in now.items() if key not in FIGURES) or _bare(
        before
    ) != _bare(now)


def _bare(status: dict[str, Any]) -> list[tuple[Any, ...]]:
    clusters = status.get("clusters", [])
    return [(one["name"], one.get("role"), one.get("state"), one.get("ready")) for one in clusters]


def news(before: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Events that a change is worth: (Normal or Warning, reason, message). Nothing changed, nothing told."""
    told: list[tuple[str, str, str]] = []
    old = {one["type"]: one for one in before.get("conditions", [])}
    for one in now["conditions"]:
        was = old.get(one["type"], {"status": "Unknown", "reason": "NotObservedYet"})
        if was["status"] == one["status"] and (was["reason"] == one["reason"] or one["status"] != "False"):
            continue
        if one["status"] == "Unknown" and one["reason"] == "NotObservedYet":
            continue
        kind = "Warning" if one["status"] == "False" else "Normal"
        told.append((kind, one["reason"], f"{one['type']} is {one['status']}: {one['message']}"))
    if before.get("epoch") and now.get("epoch") and before["epoch"] != now["epoch"]:
        told.append(("Normal", "NewEpoch", f"{now['primary']} leads in epoch {now['epoch']}."))
    return told


def rfc3339(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / 1e6, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def accepted(sac: specs.Sac) -> dict[str, Any]:
    kept: dict[str, Any] = msgspec.to_builtins(sac.acceptable())
    return {key: value for key, value in kept.items() if value is not None}
