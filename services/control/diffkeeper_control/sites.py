"""Clients of what runs at one site: its capture agent, its replicator, its broker. The contracts are in
ARCHITECTURE.md.

One HTTP session and one broker connection a site are kept warm, so that a failover does not pay for
connecting. Answers are plain maps as the services sent them; errors are raised as they were there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp

from diffkeeper import http
from diffkeeper.domain import errors
from diffkeeper.log import nats_event_log

# Status calls of the monitor: short, because a site that needs longer is not well.
STATUS_TIMEOUT_S = 0.4
CALL_TIMEOUT_S = 10.0
BROKER_TIMEOUT_S = 2.0

Answer = dict[str, Any]


class Service:
    """One daemon's HTTP."""

    def __init__(self, session: aiohttp.ClientSession, address: str, token: str) -> None:
        self.address = address
        self._session = session
        self._token = token

    async def call(
        self, method: str, path: str, body: Any = None, timeout_s: float = CALL_TIMEOUT_S
    ) -> Answer:
        url = self.address + path
        answer = await http.call(
            self._session, method, url, token=self._token, body=body, timeout_s=timeout_s
        )
        if not isinstance(answer, dict):
            raise errors.DiffKeeperError(
                f"{url} answered with something else than a map", reason="bad-answer"
            )
        return answer

    @contextlib.asynccontextmanager
    async def stream(
        self, method: str, path: str, body: bytes, quiet_s: float
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A call whose answer is read block by block; raises Unreachable when nothing answers, or nothing
        comes for ``quiet_s``.
        """
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        limit = aiohttp.ClientTimeout(total=None, connect=5.0, sock_read=quiet_s)
        url = self.address + path
        try:
            async with self._session.request(
                method, url, data=body or None, headers=headers, timeout=limit
            ) as answer:
                yield answer
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise errors.Unreachable(
                f"{method} {url} could not be asked: {error}", reason="no-connection", url=url
            ) from error

    async def status(self) -> Answer:
        return await self.call("GET", "/v1/status", timeout_s=STATUS_TIMEOUT_S)


class Agent(Service):
    async def volume(self, volume: str) -> Answer | None:
        """The volume's status as the agent gives it now; None when it does not know it."""
        status = await self.call("GET", "/v1/status", timeout_s=2.0)
        return find_volume(status, volume)

    async def attach(self, volume: str, body: Answer) -> Answer:
        return await self._post(volume, "attach", body, 30.0)

    async def prepare(self, volume: str, body: Answer) -> Answer:
        return await self._post(volume, "prepare", body, 10.0)

    async def stage(self, volume: str, tree_state: str) -> Answer:
        return await self._post(volume, "stage", {"tree_state": tree_state}, 30.0)

    async def start(self, volume: str, body: Answer) -> Answer:
        return await self._post(volume, "start", body, 30.0)

    async def sync(self, volume: str, level: str, timeout_s: float) -> Answer:
        return await self._post(volume, "sync", {"level": level, "timeout_s": timeout_s}, timeout_s + 5)

    async def prepare_handover(self, volume: str) -> Answer:
        return await self._post(volume, "prepare-handover", {}, 30.0)

    async def handover(self, volume: str, successor: str, grace_s: float, timeout_s: float) -> Answer:
        body = {"successor": successor, "grace_s": grace_s, "timeout_s": timeout_s}
        return await self._post(volume, "handover", body, grace_s + timeout_s + 5)

    async def release(self, volume: str, timeout_s: float = 30.0) -> Answer:
        return await self._post(volume, "release", {}, timeout_s)

    async def surrender(self, volume: str, epoch: int, parent: str) -> Answer:
        return await self._post(volume, "surrender", {"epoch": epoch, "parent": parent}, 30.0)

    async def _post(self, volume: str, action: str, body: Answer, timeout_s: float) -> Answer:
        return await self.call("POST", f"/v1/volumes/{volume}/{action}", body, timeout_s)


class Replicator(Service):
    async def put_role(self, volume: str, role: Answer) -> Answer:
        return await self.call("PUT", f"/v1/volumes/{volume}", role)

    async def promise(self, volume: str, epoch: int, timeout_s: float = CALL_TIMEOUT_S) -> Answer:
        return await self._post(volume, "promise", {"epoch": epoch}, timeout_s)

    async def catch_up(self, volume: str, position: str | None, timeout_s: float) -> Answer:
        body = {"position": position, "timeout_s": timeout_s}
        return await self._post(volume, "catch-up", body, timeout_s + 5)

    async def promote(self, volume: str, epoch: int) -> Answer:
        return await self._post(volume, "promote", {"epoch": epoch}, 30.0)

    async def prepare_promote(self, volume: str) -> Answer:
        return await self._post(volume, "prepare-promote", {}, 30.0)

    async def prepare_follow(self, volume: str, timeout_s: float) -> Answer:
        return await self._post(volume, "prepare-follow", {"timeout_s": timeout_s}, timeout_s + 5)

    async def log(self, volume: str, after: str | None, limit: int) -> Answer:
        since = "" if after is None else f"after={after}&"
        return await self.call("GET", f"/v1/volumes/{volume}/log?{since}limit={limit}")

    async def clone(self, volume: str, to: str) -> Answer:
        return await self._post(volume, "clone", {"to": to}, 3600.0)

    async def digest(self, volume: str) -> Answer:
        return await self.call("GET", f"/v1/volumes/{volume}/digest", timeout_s=600.0)

    async def rebuild(self, volume: str) -> Answer:
        return await self._post(volume, "rebuild", {}, 600.0)

    async def verify(self, volume: str) -> Answer:
        return await self._post(volume, "verify", {}, 600.0)

    async def branches(self, volume: str) -> list[Answer]:
        found = (await self.call("GET", f"/v1/volumes/{volume}/branches"))["branches"]
        return [dict(branch) for branch in found]

    async def branch(self, volume: str, name: str, query: dict[str, str]) -> Answer:
        path = f"/v1/volumes/{volume}/branches/{quote(name, safe='')}"
        return await self.call("GET", f"{path}?{urlencode(query)}", timeout_s=600.0)

    async def take_branch(self, volume: str, name: str, body: Answer) -> Answer:
        return await self._post(volume, f"branches/{quote(name, safe='')}/take", body, 600.0)

    async def drop_branch(self, volume: str, name: str) -> Answer:
        return await self._post(volume, f"branches/{quote(name, safe='')}/drop", {}, 60.0)

    async def _post(self, volume: str, action: str, body: Answer, timeout_s: float) -> Answer:
        return await self.call("POST", f"/v1/volumes/{volume}/{action}", body, timeout_s)


class Broker:
    """The event log of one site, connected at first need and again after its server was away for long."""

    def __init__(self, site: str, servers: list[str], secret: str) -> None:
        self._site = site
        self._servers = servers
        self._secret = secret
        self._log: nats_event_log.NatsEventLog | None = None
        self._connecting = asyncio.Lock()

    async def log(self) -> nats_event_log.NatsEventLog:
        """Raises Unreachable when the broker does not answer within ``BROKER_TIMEOUT_S``."""
        async with self._connecting:
            if self._log is None:
                self._log = await nats_event_log.NatsEventLog.connect(
                    self._site,
                    self._servers,
                    password=self._secret,
                    name="diffkeeper-control",
                    timeout_s=BROKER_TIMEOUT_S,
                )
            return self._log

    async def close(self) -> None:
        log, self._log = self._log, None
        if log is not None:
            await log.close()


class SiteClients:
    """Everything control can ask at one site."""

    def __init__(
        self,
        site: str,
        session: aiohttp.ClientSession,
        *,
        token: str,
        agent: str,
        replicator: str,
        brokers: list[str],
        secret: str,
    ) -> None:
        self.site = site
        self.agent = Agent(session, agent, token)
        self.replicator = Replicator(session, replicator, token)
        self.broker = Broker(site, brokers, secret)

    async def close(self) -> None:
        await self.broker.close()


def open_session() -> aiohttp.ClientSession:
    """Connections stay open between calls; every call has its own time limit."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60.0)
    return aiohttp.ClientSession(connector=connector)


def find_volume(status: Answer | None, volume: str) -> Answer | None:
    """A volume in the status of an agent or a replicator."""
    if status is None:
        return None
    known = status.get("volumes", [])
    found = [entry for entry in known if isinstance(entry, dict) and entry.get("volume") == volume]
    return found[0] if found else None
