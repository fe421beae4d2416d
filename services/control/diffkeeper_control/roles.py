"""What each site should do for a volume, worked out from the registry alone. Pure.

The same function serves the first run, the end of a failover and the reconciler, so a site that missed its
orders gets the same ones later.
"""

from __future__ import annotations

from typing import Any

from diffkeeper.domain import volumes
from diffkeeper_control import registry


def wanted(volume: registry.Volume, site: str) -> dict[str, Any]:
    """The body of ``PUT /v1/volumes/V`` at a site's replicator."""
    leads = site == volume.leader
    tree = volume.tree_states.get(site)
    reclaim = volume.reclaims.get(site)
    taken = None
    if reclaim is not None and not leads:
        taken = {"epoch": reclaim.epoch, "tail": reclaim.tail, "tree_state": reclaim.tree_state}
    return {
        "role": "lead" if leads else "follow",
        # A member of a shared volume has one writer, like any: the site whose directory it is.
        "mode": volumes.Mode.EXCLUSIVE.value,
        "epoch": volume.epoch,
        "leader": volume.leader,
        "chain": [
            {
                "site": reign.site,
                "epoch": reign.epoch,
                "parent": {"position": reign.parent.position, "hash": reign.parent.hash},
            }
            for reign in volume.chain
        ],
        "path": volume.paths.get(site),
        "tree_state": None if leads or tree is None else tree.tree_state,
        "reclaim": taken,
    }


def is_met(volume: registry.Volume, site: str, status: dict[str, Any] | None) -> bool:
    """Whether a replicator's status of the volume shows what is wanted of it."""
    if status is None:
        return False
    order = wanted(volume, site)
    same = all(status.get(key) == order[key] for key in ("role", "epoch", "leader"))
    return same and (order["role"] == "lead" or status.get("path") == order["path"])


def attach_body(volume: registry.Volume, sites: list[str], lease_ttl_ms: int | None = None) -> dict[str, Any]:
    """The body of ``POST attach`` at the leader's agent."""
    resume = volume.resume
    parent = resume.point if resume is not None else volume.chain[-1].parent
    return {
        "path": volume.paths[volume.leader],
        "epoch": volume.epoch,
        "parent": {"position": parent.position, "hash": parent.hash},
        "durability": volume.durability,
        "policy": volume.policy,
        "tree_state": resume.tree_state if resume is not None else None,
        "probe": volume.probe,
        "lease_ttl_ms": lease_ttl_ms,
        # Who is to hold replicas, so that silence counts as lag.
        "replicas": [site for site in sites if site != volume.leader],
    }
