"""The streams of a volume at every site: the origin of each site, and its mirrors at all the others.

All are made when the volume is, also for sites that do not lead: a failover then makes no stream, and a site
that is dead at that time has its mirrors already.
"""

from __future__ import annotations

import asyncio

import structlog

from diffkeeper.domain import errors, volumes
from diffkeeper_control.sites import SiteClients

_log = structlog.get_logger("streams")


async def ensure(volume: str, clients: dict[str, SiteClients], running: list[str], leader: str) -> None:
    """Make or check them at the running sites; raises only for what the leader itself needs."""
    origins = {site: volumes.Origin(volume, site) for site in clients}
    # Origins first: a mirror of a stream that does not exist yet waits, but is not told so.
    await asyncio.gather(*(_origin(clients[site], origins[site], leader) for site in running))
    await asyncio.gather(
        *(_mirror(clients[site], origins[other]) for site in running for other in clients if other != site)
    )


async def _origin(client: SiteClients, origin: volumes.Origin, leader: str) -> None:
    try:
        await (await client.broker.log()).create_origin(origin)
    except errors.Transient as error:
        if client.site == leader:
            raise
        _log.warning("an origin stream could not be made", site=client.site, error=error.message)


async def _mirror(client: SiteClients, origin: volumes.Origin) -> None:
    try:
        await (await client.broker.log()).create_mirror(origin)
    except errors.Transient as error:
        _log.warning("a mirror could not be made", site=client.site, of=origin.site, error=error.message)
