"""Starts brokers again that run and store nothing any more.

nats-server (2.15, *measured*) disables JetStream for good at the first write for which its disk has no room, and goes on
to serve everything else. Nothing is lost by that: what it did not store it did not acknowledge. It stores again only after a
new start, which is of use only once there is room.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import aiohttp
import structlog

from diffkeeper_control.embedded import Embedded

PAGE = "/healthz?js-enabled-only=true"
PAGE_TIMEOUT_S = 2.0
# A broker that starts says the same for a moment.
LOOKS = 3
# The largest frames of several volumes, and what a start itself writes.
ROOM_BYTES = 32 * 1024 * 1024
# What the health page says then.
_DISABLED = "10076"

_log = structlog.get_logger("disabled-brokers")


class DisabledBrokers:
    def __init__(self, embedded: Embedded, session: aiohttp.ClientSession) -> None:
        self._embedded = embedded
        self._session = session
        # How many looks in a row each broker was seen so, by site and role.
        self._seen: Counter[tuple[str, str]] = Counter()

    def troubles(self, site: str) -> list[str]:
        """For the status of the site."""
        return [
            f"{self._embedded.node_of(site, role)} stores nothing: its disk was full; it starts again once "
            f"{ROOM_BYTES // 1024 // 1024} MiB are free"
            for (known, role), looks in sorted(self._seen.items())
            if known == site and looks >= LOOKS
        ]

    async def look(self, site: str) -> None:
        for role, child in self._embedded.children[site].items():
            if self._embedded.node_of(site, role) is None:
                continue
            if not child.is_running() or not await self._is_disabled(site, role):
                del self._seen[site, role]
                continue
            self._seen[site, role] += 1
            if self._seen[site, role] >= LOOKS and self._has_room(site, role):
                _log.warning("a broker whose disk was full is started again", site=site, child=role)
                await self._embedded.restart_broker(site, role)
                del self._seen[site, role]

    async def _is_disabled(self, site: str, role: str) -> bool:
        url = self._embedded.server_config(site, role).monitor_url + PAGE
        try:
            async with self._session.get(url, timeout=aiohttp.ClientTimeout(PAGE_TIMEOUT_S)) as answer:
                page: Any = await answer.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return False  # the site's state says which process is not well
        return isinstance(page, dict) and _DISABLED in str(page.get("error", ""))

    def _has_room(self, site: str, role: str) -> bool:
        disk = os.statvfs(self._embedded.server_config(site, role).dir)
        return disk.f_bavail * disk.f_frsize >= ROOM_BYTES
