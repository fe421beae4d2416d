"""Leases as control sees them: grants them to reigns, and keeps their records away from the sites that hold them.

A grant is a compare-and-set in a store that a majority of the sites must agree to. Two controls, or two failovers, can both
believe that it is their turn: the one whose write is refused is not. Where a deployment has no automatic failover
there are no leases, and every call here does nothing.
"""

from __future__ import annotations

import asyncio
import time

import structlog

from diffkeeper.domain import errors, leases
from diffkeeper.leases.lease_store import LeaseStore

# The link servers of a deployment that has just started elect a leader first.
FIRST_GRANT_TIMEOUT_S = 20.0
RETRY_S = 0.2

_log = structlog.get_logger("leases")


class LeaseOffice:
    """``store`` is None without automatic failover."""

    def __init__(self, store: LeaseStore | None, ttl_ms: int) -> None:
        self.store = store
        self.ttl_ms = ttl_ms

    async def grant(
        self, volume: str, epoch: int, site: str, *, wait_out: bool = False, timeout_s: float = 0.0
    ) -> None:
        """Make ``site`` the holder under ``epoch``; done already is done. Raises Fenced when a newer epoch, or another site
        under this one, has it; Transient without a majority, after trying for ``timeout_s``.

        With ``wait_out`` it returns only when the holder before, who may be alive, has stopped by itself.
        """
        store = self.store
        if store is None:
            return
        until = time.monotonic() + timeout_s
        while True:
            try:
                changed = await self._grant(store, leases.Lease(volume, epoch, site, self.ttl_ms))
                break
            except errors.Transient:
                if time.monotonic() >= until:
                    raise
                await asyncio.sleep(RETRY_S)
        if changed is not None and wait_out:
            await asyncio.sleep(changed.ttl_ms / 1000)

    async def _grant(self, store: LeaseStore, lease: leases.Lease) -> leases.Lease | None:
        """The lease that was taken from somebody; None when it was nobody's, or is the same already."""
        try:
            found = await store.read(lease.volume)
        except errors.NotFound:
            await store.prepare(lease.volume)
            found = await store.read(lease.volume)
        if found is not None:
            _check_newer(found.lease, lease)
            if found.lease.epoch == lease.epoch:
                return None
        await store.write(lease, 0 if found is None else found.revision)
        _log.info("lease granted", volume=lease.volume, epoch=lease.epoch, site=lease.site)
        return None if found is None else found.lease

    def order(self) -> int | None:
        """What an agent is told: how long the lease of its reign is; None without leases."""
        return None if self.store is None else self.ttl_ms

    async def close(self) -> None:
        if self.store is not None:
            await self.store.close()


def _check_newer(found: leases.Lease, lease: leases.Lease) -> None:
    if (found.epoch, found.site) == (lease.epoch, lease.site) or found.epoch < lease.epoch:
        return
    raise errors.Fenced(
        f"the lease of volume {lease.volume} belongs to {found.site} under epoch {found.epoch}; "
        f"{lease.site} does not get it under {lease.epoch}",
        reason="lease-held",
        hint=f"dkctl status {lease.volume}; another control may have moved it",
        volume=lease.volume,
        site=found.site,
        epoch=found.epoch,
    )
