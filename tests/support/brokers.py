"""Real nats-servers for tests: free ports, temporary folders, stopped by their process ids."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

from diffkeeper import nats_server
from diffkeeper.log import nats_event_log

SECRET = "a secret of tests"


def site_config(
    site: str, under: Path, *, hub: nats_server.ServerConfig | None = None, **options: int
) -> nats_server.ServerConfig:
    """A site's server below ``under``; with ``hub``, linked to that one's leaf port."""
    remotes = (f"{hub.host}:{hub.leaf_port}",) if hub is not None else ()
    return nats_server.ServerConfig(
        site,
        under / site,
        client_port=nats_server.free_port(),
        monitor_port=nats_server.free_port(),
        secret=SECRET,
        leaf_port=nats_server.free_port(),
        leaf_remotes=remotes,
        max_file_store_bytes=options.get("max_file_store_bytes", 1 << 30),
    )


class Brokers:
    """The servers of a test, by site. Everything it started is gone after ``stop``."""

    def __init__(self, under: Path) -> None:
        self.under = under
        self.servers: dict[str, nats_server.NatsServer] = {}
        self.logs: list[nats_event_log.NatsEventLog] = []

    async def start(self, site: str, *, hub: str | None = None, **options: int) -> nats_server.NatsServer:
        joined = self.servers[hub].config if hub is not None else None
        config = site_config(site, self.under, hub=joined, **options)
        self.servers[site] = await nats_server.NatsServer.start(config)
        if hub is not None:
            await self.linked(site)
        return self.servers[site]

    async def restart(self, site: str, max_file_store_bytes: int | None = None) -> None:
        """Start a stopped or killed server again, on the same ports and directory."""
        config = self.servers[site].config
        if max_file_store_bytes is not None:
            config = dataclasses.replace(config, max_file_store_bytes=max_file_store_bytes)
        self.servers[site] = await nats_server.NatsServer.start(config)

    async def linked(self, site: str) -> None:
        async with asyncio.timeout(10):
            while not await self.servers[site].leaf_links():  # noqa: ASYNC110  another process changes
                await asyncio.sleep(0.02)

    async def log(self, site: str, url: str | None = None) -> nats_event_log.NatsEventLog:
        log = await nats_event_log.NatsEventLog.connect(
            site, [url or self.servers[site].config.client_url], password=SECRET
        )
        self.logs.append(log)
        return log

    async def stop(self) -> None:
        for log in self.logs:
            await log.close()
        for server in self.servers.values():
            await server.kill()
