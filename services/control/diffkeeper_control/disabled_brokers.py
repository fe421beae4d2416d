"""Starts brokers again that run and store nothing any more, for their disk was full.

nats-server (2.15, *measured*) disables JetStream for good at the first write of a mirror or of Raft for which its disk has no
room; and a stream that could not store a message that was published to it refuses every later one. All the rest goes on to
be served. Nothing is lost by that: what it did not store it did not acknowledge. It stores again only after a new start, which is of
use only once there is room.
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
# With less, writes may have failed: a start too many costs a second, a stream that refuses everything its site.
FULL_BYTES = 1024 * 1024
# What the health page says where JetStream is disabled.
_DISABLED = "10076"

_log = structlog.get_logger("disabled-brokers")


class DisabledBrokers:
    def __init__(self, embedded: Embedded, session: aiohttp.ClientSession) -> None:
        self._embedded = embedded
        self._session = session
        # By site and role: how many looks in a row JetStream was disabled, and whose disk was full since the last start.
        self._disabled: Counter[tuple[str, str]] = Counter()
        self._full: set[tuple[str, str]] = set()

    def troubles(self, site: str) -> list[str]:
        """For the status of the site."""
        return [
            f"{self._embedded.node_of(site, role)} may store nothing: its disk was full; it starts again once "
            f"{ROOM_BYTES // 1024 // 1024} MiB are free"
            for known, role in sorted(self._spoilt())
            if known == site
        ]

    async def look(self, site: str) -> None:
        for role, child in self._embedded.children[site].items():
            if self._embedded.node_of(site, role) is None:
                continue
            if not child.is_running():
                self._forget(site, role)
                continue
            room = self._room_bytes(site, role)
            if room < FULL_BYTES:
                self._full.add((site, role))
            disabled = await self._is_disabled(site, role)
            self._disabled[site, role] = self._disabled[site, role] + 1 if disabled else 0
            if (site, role) in self._spoilt() and room >= ROOM_BYTES:
                _log.warning("a broker whose disk was full is started again", site=site, child=role)
                await self._embedded.restart_broker(site, role)
                self._forget(site, role)

    def _spoilt(self) -> set[tuple[str, str]]:
        return self._full | {broker for broker, looks in self._disabled.items() if looks >= LOOKS}

    def _forget(self, site: str, role: str) -> None:
        self._full.discard((site, role))
        del self._disabled[site, role]

    async def _is_disabled(self, site: str, role: str) -> bool:
        url = self._embedded.server_config(site, role).monitor_url + PAGE
        try:
            async with self._session.get(url, timeout=aiohttp.ClientTimeout(PAGE_TIMEOUT_S)) as answer:
                page: Any = await answer.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return False  # the site's state says which process is not well
        return isinstance(page, dict) and _DISABLED in str(page.get("error", ""))

    def _room_bytes(self, site: str, role: str) -> int:
        disk = os.statvfs(self._embedded.server_config(site, role).dir)
        return disk.f_bavail * disk.f_frsize
