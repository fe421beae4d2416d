"""Sites and volumes as the admin API shows them: the registry's decisions beside what the sites last said,
each with its age.

The shapes are in ARCHITECTURE.md and add-only.
"""

from __future__ import annotations

from typing import Any

import msgspec

from diffkeeper import __version__
from diffkeeper.domain import positions, receipts
from diffkeeper_control import failover_requests, registry
from diffkeeper_control.door_keeper import DoorKeeper
from diffkeeper_control.embedded import Embedded
from diffkeeper_control.failover_requests import LeaderState
from diffkeeper_control.monitor import Heard, Monitor
from diffkeeper_control.registry import State, Volume
from diffkeeper_control.watchman import Watchman

# A barrier that waits longer than this says that its level is not met just now.
LONG_WAIT_US = 1_000_000


class Views:
    def __init__(
        self,
        embedded: Embedded,
        known: registry.Registry,
        monitor: Monitor,
        doors: DoorKeeper,
        watchman: Watchman,
    ) -> None:
        self._embedded = embedded
        self._doors = doors
        self._registry = known
        self._monitor = monitor
        self._watchman = watchman
        # Where each reign stood when its base was first seen complete: what must be safe before it is ready.
        self._base_ends: dict[tuple[str, int], str] = {}

    def site(self, site: str) -> dict[str, Any]:
        state, detail = self._monitor.site_state(site)
        agent, replicator = self._monitor.agent(site), self._monitor.replicator(site)
        ages = [heard.age_ms for heard in (agent, replicator) if heard.age_ms is not None]
        return {
            "site": site,
            "state": state,
            "detail": detail,
            "since_us": self._embedded.since_us(site),
            "age_ms": max(ages, default=None),
            "leads": [volume.name for volume in self._registry.all() if volume.leader == site],
            "versions": {
                "control": __version__,
                "agent": _version(agent),
                "replicator": _version(replicator),
            },
            "processes": self._embedded.statuses(site),
        }

    def loss_bound(self, volume: Volume) -> failover_requests.Loss:
        heard = self._monitor.agent(volume.leader)
        others = [site for site in self._embedded.sites if site != volume.leader]
        # With one other site there is only one that can hold what was confirmed, and it is the target.
        silent = self._monitor.silent_sites(others) if len(others) > 1 else []
        return failover_requests.bound_loss(volume, self._captured(volume), heard.age_ms, silent)

    def _captured(self, volume: Volume) -> dict[str, Any] | None:
        """What the leader's agent says; of a volume at rest, corrected by what replicas say of its end.

        An agent that released a volume does not hear confirmations of it any more.
        """
        status = self._monitor.agent(volume.leader).volume(volume.name)
        if status is None or status.get("state") != "released":
            return status
        replicas = (
            self._monitor.replicator(site).volume(volume.name) or {}
            for site in self._embedded.sites
            if site != volume.leader
        )
        if any(replica.get("journalled") == status.get("captured") for replica in replicas):
            return {**status, "lag": {"frames": 0, "bytes": 0, "ms": 0}}
        return status

    def volume(self, volume: Volume) -> dict[str, Any]:
        heard = self._monitor.agent(volume.leader)
        status = self._captured(volume)
        leader_state = self._monitor.leader_state(volume)
        state, detail = describe(volume, status, leader_state)
        base = _aged(status, "base", heard)
        return {
            "volume": volume.name,
            "mode": volume.mode,
            "durability": volume.durability,
            "policy": volume.policy,
            "state": state,
            "detail": detail,
            "leader": volume.leader,
            "leader_state": "stopped"
            if leader_state is LeaderState.DEAD and self._embedded.is_stopped(volume.leader)
            else leader_state.value,
            "epoch": volume.epoch,
            "path": volume.paths[volume.leader],
            "created_us": volume.created_us,
            "command": _command(volume),
            "ready": self._is_ready(volume, status),
            "operation": volume.operation,
            "base": base,
            "level": _level(volume, status),
            "positions": None
            if status is None
            else {
                "captured": status.get("captured"),
                "stored": status.get("stored"),
                "confirmed": status.get("confirmed") or {},
                "age_ms": heard.age_ms,
            },
            "lag": _aged(status, "lag", heard),
            "gaps": _aged(status, "gaps", heard),
            "barriers": _aged(status, "barriers", heard),
            "alarms": [{**alarm, "age_ms": heard.age_ms} for alarm in (status or {}).get("alarms") or []],
            "fidelity": (status or {}).get("fidelity"),
            "probe": (status or {}).get("probe") or volume.probe,
            "lost_records": (status or {}).get("lost_records"),
            "why_not_bpf": (status or {}).get("why_not_bpf"),
            "program": _aged(status, "program", heard),
            "automatic": self._watchman.view(volume),
            "lease": _aged(status, "lease", heard),
            "loss_bound": msgspec.to_builtins(self.loss_bound(volume)),
            "sites": [self._replica(volume, site) for site in self._embedded.sites],
            "chain": [msgspec.to_builtins(reign) for reign in volume.chain],
            "reclaims": {site: msgspec.to_builtins(one) for site, one in volume.reclaims.items()},
            "front_door": self._doors.view(volume),
            "orphans": [msgspec.to_builtins(orphan) for orphan in volume.orphans],
        }

    def _replica(self, volume: Volume, site: str) -> dict[str, Any]:
        heard = self._monitor.replicator(site)
        status = heard.volume(volume.name) or {}
        stopped = self._embedded.is_stopped(site)
        state, lag = _end_to_end(status, self._captured(volume), site)
        return {
            "site": site,
            "role": status.get("role") or "none",
            "state": "stopped" if stopped else state,
            "path": status.get("path") or volume.paths.get(site),
            **{key: status.get(key) for key in ("epoch", "promised", "journalled", "applied", "seen")},
            "base_complete": bool(status.get("base_complete")),
            "lag": lag,
            "error": status.get("error"),
            "age_ms": heard.age_ms,
        }

    def _is_ready(self, volume: Volume, status: dict[str, Any] | None) -> bool:
        """Whether the base is complete and as safe as the volume's durability asks."""
        if status is None or not (status.get("base") or {}).get("done"):
            return False
        if volume.level is receipts.Level.OBSERVE:
            return True
        if volume.level is receipts.Level.SITE:
            end = self._base_ends.setdefault((volume.name, volume.epoch), str(status["captured"]))
            return positions.parse(status["stored"]) >= positions.parse(end)
        replicas = [
            self._monitor.replicator(site).volume(volume.name)
            for site in self._embedded.sites
            if site != volume.leader
        ]
        return any(replica is not None and bool(replica.get("base_complete")) for replica in replicas)


def _end_to_end(
    replica: dict[str, Any], captured: dict[str, Any] | None, site: str
) -> tuple[str, dict[str, Any] | None]:
    """State and lag of a replica: what it says of itself, or what the leader knows it lacks, if that is more.

    A replicator knows only what has reached its site: one behind a mirror that stands still believes that it has all.
    """
    state, lag = replica.get("state", "unknown"), replica.get("lag")
    if captured is None or captured.get("state") != "capturing":
        return state, lag
    behind = (captured.get("replicas") or {}).get(site)
    if behind is not None and (lag is None or behind["frames"] > lag["frames"]):
        lag = {key: behind[key] for key in ("frames", "bytes", "ms")}
    still = any(alarm["site"] == site for alarm in captured.get("alarms") or [])
    return ("stalled" if still and state == "following" else state), lag


def describe(volume: Volume, status: dict[str, Any] | None, leader: LeaderState) -> tuple[str, str]:
    """The state of a volume in one word of the API, and why."""
    if volume.operation is not None:
        return "failing-over", f"operation {volume.operation}"
    if volume.state is State.FAILED:
        return "failed", volume.detail
    if leader is not LeaderState.ALIVE:
        how = "is stopped" if leader is LeaderState.DEAD else "does not answer"
        return "leaderless", f"its leader {volume.leader} {how}"
    if volume.state is State.RELEASED:
        return "released", volume.detail
    if status is None:
        return "idle", f"the agent of {volume.leader} does not capture it"
    said = str(status.get("state"))
    if said in ("fenced", "failed"):
        return said, _text(status.get("error"))
    trouble = _text(status.get("trouble"))
    if said == "capturing" and (status.get("program") or {}).get("running"):
        return "running", trouble
    return said, trouble


def _text(error: Any) -> str:
    if isinstance(error, dict):
        return str(error.get("message", error))
    return "" if error is None else str(error)


def _level(volume: Volume, status: dict[str, Any] | None) -> dict[str, Any]:
    """A level counts as met while nobody has waited for it for long."""
    waiting = ((status or {}).get("barriers") or {}).get("waiting") or []
    since = min((int(entry["since_us"]) for entry in waiting if entry.get("since_us")), default=None)
    waiting_us = 0 if since is None or status is None else max(0, int(status.get("at_us") or since) - since)
    met = (
        status is not None
        and status.get("state") in ("scanning", "capturing", "released")
        and not status.get("error")
        and waiting_us < LONG_WAIT_US
    )
    effective = (status or {}).get("effective_durability")
    met = met and effective in (None, volume.durability)
    return {"asked": volume.durability, "effective": effective, "met": met, "waiting_us": waiting_us}


def _aged(status: dict[str, Any] | None, key: str, heard: Heard) -> dict[str, Any] | None:
    value = (status or {}).get(key)
    return {**value, "age_ms": heard.age_ms} if isinstance(value, dict) else None


def _version(heard: Heard) -> str | None:
    return (heard.answer or {}).get("version")


def _command(volume: Volume) -> dict[str, Any] | None:
    """Without the environment, which may hold secrets."""
    command = volume.command
    if command is None:
        return None
    return {
        "argv": command.argv,
        "cwd": command.cwd,
        "uid": command.uid,
        "gid": command.gid,
        "stop_signal": command.stop_signal,
        "io_uring": command.io_uring,
        "hard_limit": command.hard_limit,
    }
