"""Keeps the lease of a reign at this site: renews it as long as the log moves, and says whether it is held.

Held means: a renewal was stored, and less than two thirds of the lease's time have passed since before it was sent. The
clock is one that goes on while the machine sleeps, and no other machine's time is ever looked at. Where frames wait for
the site's own stream too long, renewing stops: a leader that cannot store is no leader, whatever it can still say.
A record of a newer epoch, or of another site, ends the reign.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import structlog

from diffkeeper.domain import errors, leases
from diffkeeper.leases import lease_store

# A node's death costs its cluster an election of up to 9 s, in which nothing is stored. This is longer.
STALL_S = 20.0

_log = structlog.get_logger("lease")

Clock = Callable[[], float]


def boot_clock() -> float:
    """Seconds since boot, sleep included: a machine that slept must not take an old lease for a fresh one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class LeaseKeeper:
    """``run`` in a task; it ends by raising Fenced. ``on_change`` is called when held becomes true."""

    def __init__(
        self,
        store: lease_store.LeaseStore,
        lease: leases.Lease,
        stored_behind: Callable[[], tuple[int, bool]],
        on_change: Callable[[], None],
        clock: Clock = boot_clock,
    ) -> None:
        self._store = store
        self._lease = lease
        # What the stream holds, as a number that grows, and whether anything waits for it.
        self._stored_behind = stored_behind
        self._on_change = on_change
        self._clock = clock
        self._known: leases.Held | None = None
        self._renewed_at: float | None = None
        self._progress = (-1, clock())
        self.trouble = "not renewed yet"

    @property
    def ttl_ms(self) -> int:
        return self._lease.ttl_ms

    @property
    def held(self) -> bool:
        at = self._renewed_at
        return at is not None and (self._clock() - at) * 1000 < leases.hold_ms(self._lease.ttl_ms)

    def status(self) -> dict[str, Any]:
        at = self._renewed_at
        return {
            "held": self.held,
            "ttl_ms": self._lease.ttl_ms,
            "renewed_ms": None if at is None else round((self._clock() - at) * 1000),
            "trouble": self.trouble,
        }

    async def run(self) -> None:
        pause_s = leases.renew_every_ms(self._lease.ttl_ms) / 1000
        while True:
            began = self._clock()
            await self.renew()
            await asyncio.sleep(max(0.0, pause_s - (self._clock() - began)))

    async def renew(self) -> None:
        """One renewal; raises Fenced when the lease is another's. What cannot be done now is done at the next."""
        if self._is_stalled():
            self._say("the site's stream takes nothing, so the lease is left to run out")
            return
        try:
            await self._renew()
        except errors.Fenced:
            self._renewed_at = None
            raise
        except errors.DiffKeeperError as error:
            self._known = None  # it may have been stored all the same
            self._say(error.message)

    async def _renew(self) -> None:
        volume = self._lease.volume
        known = self._known or self._checked(await self._store.read(volume))
        sent_at, was_held = self._clock(), self.held
        try:
            self._known = await self._store.write(leases.renewed(known.lease), known.revision)
        except errors.Fenced:
            # Another's, or a renewal of ours whose answer was lost.
            self._known = self._checked(await self._store.read(volume))
            return
        self._renewed_at = sent_at
        self._say("")
        if not was_held:
            self._on_change()

    def _checked(self, found: leases.Held | None) -> leases.Held:
        ours = self._lease
        if found is None:
            raise errors.Unreachable(
                f"there is no lease of volume {ours.volume}", reason="no-lease", hint="control writes it"
            )
        if (found.lease.epoch, found.lease.site) == (ours.epoch, ours.site):
            return found
        if found.lease.epoch < ours.epoch:
            raise errors.Unreachable(
                f"the lease of volume {ours.volume} is still of epoch {found.lease.epoch}", reason="old-lease"
            )
        raise errors.Fenced(
            f"volume {ours.volume} was given to {found.lease.site} under epoch {found.lease.epoch}",
            reason="lease-lost",
            hint="this site follows as soon as it is told",
            epoch=found.lease.epoch,
            site=found.lease.site,
        )

    def _is_stalled(self) -> bool:
        stored, is_behind = self._stored_behind()
        known, since = self._progress
        now = self._clock()
        if stored != known or not is_behind:
            self._progress = (stored, now)
            return False
        return now - since > STALL_S

    def _say(self, trouble: str) -> None:
        if trouble and not self.trouble:
            _log.warning("a lease was not renewed", volume=self._lease.volume, why=trouble)
        self.trouble = trouble
