"""Directories that fenced leaders left behind: given up by their agents, then taken back by their replicators.

Control's part is the order of it: the stream is fenced, every program that may still write there has ended, the agent
has let go, and only then the replicator is told to take the directory back. One that cannot be taken back is kept apart.
"""

from __future__ import annotations

from typing import Any

import msgspec
import structlog

from diffkeeper.domain import errors, volumes
from diffkeeper_control import fencing, processes, programs, registry
from diffkeeper_control.registry import Volume
from diffkeeper_control.sites import SiteClients

_log = structlog.get_logger("hands")


def is_pending(volume: Volume, site: str) -> bool:
    """Whether the site's agent has still to give the directory up."""
    reclaim = volume.reclaims.get(site)
    return reclaim is not None and not reclaim.surrendered and site != volume.leader


def is_lost(volume: Volume, site: str, status: dict[str, Any] | None) -> bool:
    """Whether the site's replicator said that the directory cannot be taken back."""
    if site not in volume.reclaims or status is None or status.get("path") != volume.paths.get(site):
        return False
    return (status.get("error") or {}).get("reason") == "not-reclaimed"


async def surrender(volume: Volume, site: str, client: SiteClients, gate: str) -> Volume:
    """The volume with what the site's agent left; raises what keeps it from giving the directory up."""
    reclaim = volume.reclaims[site]
    await fencing.fence(await client.broker.log(), volumes.Origin(volume.name, site), volume.epoch)
    answer = await client.agent.surrender(
        volume.name, reclaim.epoch, registry.end_of(volume, reclaim.epoch).position
    )
    await _end_strays(volume.name, gate)
    _log.info("a fenced leader gave its directory up", volume=volume.name, site=site, frames=answer["frames"])
    given = msgspec.structs.replace(
        reclaim, surrendered=True, tail=answer["tail"], tree_state=answer["tree_state"]
    )
    return registry.with_reclaim(volume, site, given)


async def _end_strays(volume: str, gate: str) -> None:
    """Programs of the volume at that site which its agent does not know, because it was started after them."""
    ours = processes.with_environment(programs.GATE, gate) & processes.with_environment(
        programs.VOLUME, volume
    )
    if ours:
        await processes.kill_all(processes.with_descendants(ours))


async def branches(
    volume: Volume, clients: dict[str, SiteClients], running: list[str]
) -> list[dict[str, Any]]:
    """Every branch that a running site has, and the directories that wait or were kept apart."""
    found: list[dict[str, Any]] = []
    for site in running:
        try:
            held = await clients[site].replicator.branches(volume.name)
        except errors.DiffKeeperError as error:
            _log.warning("a site did not tell its branches", site=site, error=error.message)
            continue
        found += [{**branch, "held_by": site, "state": "kept"} for branch in held]
    known = {(branch["site"], branch["epoch"]) for branch in found}
    for site, reclaim in volume.reclaims.items():
        if (site, reclaim.epoch) not in known:
            found.append(_row(volume, site, reclaim.epoch, reclaim.path, reclaim.since_us, "waiting"))
    for orphan in volume.orphans:
        if (orphan.site, orphan.epoch) not in known:
            found.append(_row(volume, orphan.site, orphan.epoch, orphan.path, orphan.since_us, "kept apart"))
    return sorted(found, key=lambda branch: (branch["epoch"], branch["name"]))


def _row(volume: Volume, site: str, epoch: int, path: str, since_us: int, state: str) -> dict[str, Any]:
    """A branch of which nobody has looked at the content yet."""
    return {
        "name": f"{site}-{epoch}",
        "volume": volume.name,
        "site": site,
        "epoch": epoch,
        "parent": registry.end_of(volume, epoch).position,
        "end": None,
        "frames": None,
        "bytes": None,
        "paths": None,
        "why": "forced failover",
        "made_us": since_us,
        "path": path,
        "held_by": site,
        "state": state,
    }
