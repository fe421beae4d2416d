"""Looks after the brokers of every site: asks each what it holds, raises the alarm about what it lost, and has it made whole.

A damaged or unusable store is moved aside, never thrown away, and only while every other broker of the site answers and holds
everything; the cluster then fills the empty one. What was found and done stands in the site's status.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import structlog

from diffkeeper.domain import errors, volumes
from diffkeeper_control import stream_health
from diffkeeper_control.disabled_brokers import DisabledBrokers
from diffkeeper_control.embedded import Embedded
from diffkeeper_control.stream_health import Damage, Report, Verdict
from diffkeeper_control.supervisor import ChildState

LOOK_EVERY_S = 2.0
PAGE_TIMEOUT_S = 2.0
# Damage is acted upon when so many looks in a row agree; a replica that is being filled may look odd for a moment.
LOOKS = 3
# A broker that stood still behind the others at so many looks in a row has stopped replicating: it does not go on by itself.
STANDING_LOOKS = 10
# A broker that could not be started this often begins with an empty disk.
FAILED_STARTS = 4
# The same broker's disk is not taken away again before.
REST_S = 120.0
PAGE = "/jsz?accounts=true&streams=true&config=true"

_log = structlog.get_logger("node-care")


@dataclass(slots=True)
class _Site:
    damages: tuple[Damage, ...] = ()
    agreed: int = 0
    # Brokers that are being filled.
    joining: set[str] = field(default_factory=set)
    rebuilt_at: dict[str, float] = field(default_factory=dict)
    # For how many looks in a row a broker has stood still behind all the others.
    standing: dict[str, int] = field(default_factory=dict)
    reports: dict[str, Report] = field(default_factory=dict)


class NodeCare:
    def __init__(self, embedded: Embedded, session: aiohttp.ClientSession) -> None:
        self._embedded = embedded
        self._session = session
        self._sites = {site: _Site() for site in embedded.sites}
        self._disabled = DisabledBrokers(embedded)

    async def run(self) -> None:
        while True:
            await self.look_all()
            await asyncio.sleep(LOOK_EVERY_S)

    async def look_all(self) -> None:
        running = [site for site in self._embedded.sites if not self._embedded.is_stopped(site)]
        await asyncio.gather(*(self.look(site) for site in running))

    def troubles(self, site: str) -> list[str]:
        """What is wrong with the site's brokers' disks, for its status."""
        state = self._sites[site]
        filling = [f"{node} is being made whole" for node in sorted(state.joining)]
        standing = [f"{node} is behind" for node, looks in state.standing.items() if looks >= LOOKS]
        damages = [damage.text() for damage in state.damages]
        return damages + filling + standing + self._disabled.troubles(site)

    async def look(self, site: str) -> None:
        """Ask every broker of a site, and do what follows."""
        await self._disabled.look(site)
        state = self._sites[site]
        nodes = self._embedded.nodes(site)
        pages = await asyncio.gather(*(self._ask(site, role) for role in nodes.values()))
        before, state.reports = state.reports, dict(zip(nodes, pages, strict=True))
        still = stream_health.standing(state.reports, before)
        state.standing = {node: state.standing.get(node, 0) + 1 for node in still}
        state.joining = {
            node for node in state.joining if not stream_health.is_caught_up(state.reports, node)
        }
        verdict = stream_health.judge(state.reports)
        if verdict.damages and verdict.damages != state.damages:
            _log.error("brokers lost messages", site=site, what=[one.text() for one in verdict.damages])
        state.agreed = state.agreed + 1 if verdict.damages == state.damages else 1
        state.damages = verdict.damages
        if verdict.damages and state.agreed >= LOOKS and not state.joining:
            await self._cure(site, verdict)
        for node, role in nodes.items():
            why = self._why_useless(site, node, role)
            if why and stream_health.may_rebuild(state.reports, node):
                await self._rebuild(site, node, why)

    def _why_useless(self, site: str, node: str, role: str) -> str:
        if self._sites[site].standing.get(node, 0) >= STANDING_LOOKS:
            return "it stands still behind the others"
        return "it does not start" if self._cannot_start(site, role) else ""

    def _cannot_start(self, site: str, role: str) -> bool:
        child = self._embedded.children[site][role]
        return child.state is ChildState.BACKOFF and child.failures >= FAILED_STARTS

    async def _cure(self, site: str, verdict: Verdict) -> None:
        if verdict.rebuild is not None:
            await self._rebuild(site, verdict.rebuild, "its disk lost messages")
        for stream in verdict.recreate:
            await self._recreate(site, stream)

    async def _rebuild(self, site: str, node: str, why: str) -> None:
        state = self._sites[site]
        if time.monotonic() - state.rebuilt_at.get(node, -REST_S) < REST_S:
            return
        state.rebuilt_at[node] = time.monotonic()
        state.joining.add(node)
        aside = await self._embedded.empty_node(node)
        _log.warning("a broker begins with an empty disk", node=node, why=why, kept=str(aside))

    async def _recreate(self, site: str, stream: str) -> None:
        """A mirror is a cache: made anew, it is filled from the origin."""
        origin = _origin(stream, self._sites[site].reports)
        if origin is None or not self._is_whole(origin.site, stream):
            return
        try:
            log = await self._embedded.clients[site].broker.log()
            await log.renew_mirror(origin)
        except errors.DiffKeeperError as error:
            _log.warning("a mirror could not be made anew", site=site, stream=stream, error=error.message)
        else:
            self._sites[site].agreed = 0
            _log.warning("a mirror with holes is made anew", site=site, stream=stream)

    def _is_whole(self, site: str, stream: str) -> bool:
        """Whether the origin's brokers all hold the stream: filled from a damaged one, a mirror gets the same holes."""
        reports = self._sites[site].reports.values() if site in self._sites else ()
        held = [report[stream] for report in reports if report is not None and stream in report]
        return bool(held) and not any(replica.lost for replica in held)

    async def _ask(self, site: str, role: str) -> Report:
        url = self._embedded.server_config(site, role).monitor_url + PAGE
        try:
            async with self._session.get(url, timeout=aiohttp.ClientTimeout(PAGE_TIMEOUT_S)) as answer:
                page: Any = await answer.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return None  # the site's state says which process is not well
        return stream_health.read_report(page) if isinstance(page, dict) else None


def _origin(stream: str, reports: dict[str, Report]) -> volumes.Origin | None:
    sites = {
        report[stream].mirror_of for report in reports.values() if report is not None and stream in report
    }
    site = next(iter(sites - {None}), None)
    if site is None or not stream.endswith(f"-{site}"):
        return None
    return volumes.Origin(stream.removeprefix(stream_health.STREAM_PREFIX).removesuffix(f"-{site}"), site)
