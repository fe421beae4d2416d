"""What of a status needs somebody's attention: pure, one sentence a finding."""

from __future__ import annotations

from typing import Any

_SICK_STATES = frozenset({"leaderless", "fenced", "failed"})
_LIVELY_STATES = frozenset({"capturing", "running", "leaderless"})
_SICK_REPLICAS = frozenset({"stalled", "failed"})


def of_site(site: dict[str, Any]) -> list[str]:
    if site["state"] == "alive":
        return []
    detail = f" ({site['detail']})" if site.get("detail") else ""
    return [f"site {site['site']} is {site['state']}{detail}"]


def of_volume(volume: dict[str, Any]) -> list[str]:
    name, found = volume["volume"], []
    if volume["state"] in _SICK_STATES:
        detail = f" ({volume['detail']})" if volume.get("detail") else ""
        found.append(f"{name} is {volume['state']}{detail}")
    level = volume.get("level") or {}
    # Until the base is safe the level cannot be met: that is progress, not a finding.
    if level.get("met") is False and volume.get("ready"):
        found.append(f"{name} does not meet its level {level['asked']}")
    automatic = volume.get("automatic") or {}
    if automatic.get("state") == "not-now" and volume["state"] in _LIVELY_STATES and volume.get("ready"):
        found.append(f"{name} cannot fail over by itself now: {automatic.get('detail')}")
    found += [f"{name} is stalled: {alarm['message']}" for alarm in volume.get("alarms") or []]
    gaps = volume.get("gaps") or {}
    if gaps.get("open"):
        found.append(f"{name} has an open gap in its capture")
    last = (volume.get("drill") or {}).get("last") or {}
    if last.get("ok") is False:
        found.append(f"the last drill of {name} to {last['to']} failed")
    found += [
        f"the replica of {name} at {replica['site']} is {replica['state']}"
        for replica in volume.get("sites", [])
        if replica.get("state") in _SICK_REPLICAS
    ]
    return found


def of_status(status: dict[str, Any]) -> list[str]:
    return [
        *(finding for site in status["sites"] for finding in of_site(site)),
        *(finding for volume in status["volumes"] for finding in of_volume(volume)),
    ]
