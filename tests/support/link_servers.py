"""Three real link servers, and lease stores connected to them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from diffkeeper import nats_server, topology
from diffkeeper.domain import errors
from diffkeeper.leases.nats_lease_store import NatsLeaseStore
from diffkeeper.log import nats_connection

SITES = ("east", "west", "north")
SECRET = "a secret of tests"


class LinkServers:
    """Everything it started is gone after ``stop``."""

    def __init__(self, under: Path) -> None:
        places = {
            site: topology.SitePlaces({site: place(under / site)}, place(under / f"link-{site}"))
            for site in SITES
        }
        self.configs = {site: topology.link_config(places, site, SECRET) for site in SITES}
        self.servers: dict[str, nats_server.NatsServer] = {}
        self._stores: list[NatsLeaseStore] = []

    async def start(self) -> None:
        await asyncio.gather(*(self.start_one(site) for site in SITES))

    async def start_one(self, site: str) -> None:
        self.servers[site] = await nats_server.NatsServer.start(self.configs[site])

    def store(self) -> NatsLeaseStore:
        servers = [config.client_url for config in self.configs.values()]
        store = NatsLeaseStore.open(servers, password=SECRET, name="test", attempt_s=1.0)
        self._stores.append(store)
        return store

    async def lose_majority(self) -> None:
        for site in SITES[:2]:
            await self.servers[site].kill()

    async def find_majority(self) -> None:
        for site in SITES[:2]:
            await self.start_one(site)

    async def lead_at(self, site: str) -> None:
        """Have the Raft leader of the lease of volume orders at a site."""
        name = "$JS.API.STREAM.LEADER.STEPDOWN.KV_dk-lease-orders"
        info = "$JS.API.STREAM.INFO.KV_dk-lease-orders"
        connection = nats_connection.NatsConnection(
            [self.configs[SITES[-1]].client_url], nats_server.USER, SECRET, "test"
        )
        await connection.open()
        try:
            async with asyncio.timeout(30):
                while True:
                    try:
                        if (await connection.api(info))["cluster"].get("leader") == f"dk-link-{site}":
                            return
                        await connection.api(name, {"placement": {"preferred": f"dk-link-{site}"}})
                    except (errors.Transient, errors.Refused):
                        pass  # an election is under way
                    await asyncio.sleep(0.2)
        finally:
            await connection.close()

    async def stop(self) -> None:
        for store in self._stores:
            await store.close()
        for server in self.servers.values():
            await server.kill()


def place(directory: Path) -> topology.Place:
    client, monitor, leaf, route = (nats_server.free_port() for _ in range(4))
    return topology.Place(directory, client, monitor, leaf, route)
