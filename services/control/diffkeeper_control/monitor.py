"""What each site last said of itself, and how long ago: the eyes of control.

Agents and replicators are asked every half second with short time limits. The last good answer is kept after
a site has gone silent, because it bounds what a failover could lose; every figure taken from it carries its
age.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from diffkeeper.domain import errors
from diffkeeper_control import registry, sites
from diffkeeper_control.embedded import Embedded
from diffkeeper_control.failover_requests import LeaderState
from diffkeeper_control.supervisor import ChildState

INTERVAL_S = 0.5
# Older than this, an answer no longer says that the service is well: three looks in a row went wrong.
FRESH_S = 3 * INTERVAL_S


@dataclass(frozen=True, slots=True)
class Heard:
    """The last good answer of one service. Times are monotonic seconds."""

    answer: dict[str, Any] | None = None
    at: float | None = None
    # Since when it has not answered; None while it answers.
    silent_since: float | None = None
    trouble: str = ""

    @property
    def age_ms(self) -> int | None:
        return None if self.at is None else max(0, int((time.monotonic() - self.at) * 1000))

    @property
    def fresh(self) -> bool:
        return self.at is not None and time.monotonic() - self.at < FRESH_S

    def volume(self, name: str) -> dict[str, Any] | None:
        return sites.find_volume(self.answer, name)


NEVER = Heard()


class Monitor:
    """Asks, remembers, and says what it makes of it."""

    def __init__(self, embedded: Embedded) -> None:
        self._embedded = embedded
        self._agents: dict[str, Heard] = {}
        self._replicators: dict[str, Heard] = {}
        # Statuses of replicas that came between two looks, and when.
        self._taken: dict[tuple[str, str], tuple[float, dict[str, Any]]] = {}
        # What else is wrong at a site, such as a broker's disk.
        self.more_troubles: Callable[[str], list[str]] = lambda _: []

    def agent(self, site: str) -> Heard:
        return self._agents.get(site, NEVER)

    def replicator(self, site: str) -> Heard:
        return self._replicators.get(site, NEVER)

    async def look_all(self) -> None:
        await asyncio.gather(*(self.look(site) for site in self._embedded.sites))

    async def look(self, site: str) -> None:
        """Ask both services of a site now."""
        clients, began = self._embedded.clients[site], time.monotonic()
        agent, replicator = await asyncio.gather(
            _hear(clients.agent, self.agent(site)), _hear(clients.replicator, self.replicator(site))
        )
        self._agents[site], self._replicators[site] = agent, replicator
        for (where, volume), (at, status) in list(self._taken.items()):
            if where == site and at >= began:
                self._put_replica(site, volume, status)  # what was asked for before that may be older
            elif where == site:
                del self._taken[where, volume]

    def take_replica(self, site: str, volume: str, status: dict[str, Any]) -> None:
        """Take a volume's status from an answer that came between two looks."""
        self._taken[site, volume] = time.monotonic(), status
        self._put_replica(site, volume, status)

    def _put_replica(self, site: str, volume: str, status: dict[str, Any]) -> None:
        heard = self.replicator(site)
        if heard.answer is None:
            return
        others = [entry for entry in heard.answer.get("volumes", []) if entry.get("volume") != volume]
        self._replicators[site] = replace(heard, answer={**heard.answer, "volumes": [*others, status]})

    def site_state(self, site: str) -> tuple[str, str]:
        """One of alive, degraded, unreachable, stopped; and why."""
        if self._embedded.is_stopped(site):
            return "stopped", ""
        troubles = []
        for role, child in self._embedded.children[site].items():
            if child.state is not ChildState.RUNNING:
                what = self._embedded.node_of(site, role) or role
                troubles.append(
                    f"{what} is {child.state.value}" + (f" ({child.trouble})" if child.trouble else "")
                )
        heard = {"agent": self.agent(site), "replicator": self.replicator(site)}
        silent = [role for role, answer in heard.items() if not answer.fresh]
        troubles += [f"{role} does not answer: {heard[role].trouble or 'not asked yet'}" for role in silent]
        troubles += self.more_troubles(site)
        if len(silent) == len(heard):
            return "unreachable", "; ".join(troubles)
        return ("degraded", "; ".join(troubles)) if troubles else ("alive", "")

    def leader_state(self, volume: registry.Volume) -> LeaderState:
        """As of the last look; ask for one before resting a decision on it."""
        site = volume.leader
        if self._embedded.is_stopped(site) and not self._embedded.has_processes(site):
            return LeaderState.DEAD
        heard = self.agent(site)
        if heard.silent_since is None and heard.fresh:
            return LeaderState.ALIVE
        return LeaderState.UNREACHABLE

    def silent_sites(self, among: list[str]) -> list[str]:
        return [site for site in among if not self.replicator(site).fresh]

    def took_to_notice_ms(self, site: str) -> float | None:
        """From the last good answer of the site's agent to the first look that went wrong."""
        heard = self.agent(site)
        if heard.at is None or heard.silent_since is None:
            return None
        return (heard.silent_since - heard.at) * 1000


async def _hear(service: sites.Service, before: Heard) -> Heard:
    try:
        answer = await service.status()
    except errors.DiffKeeperError as error:
        since = before.silent_since if before.silent_since is not None else time.monotonic()
        return replace(before, silent_since=since, trouble=error.message)
    return Heard(answer, time.monotonic())
