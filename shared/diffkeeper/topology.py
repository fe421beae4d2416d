"""Which nats-servers a deployment has, and how they are joined: a pure function of its sites and their addresses.

The same plan serves servers on one machine, in containers and in pods; only addresses and directories differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffkeeper.nats_config import ServerConfig

# The JetStream domain of the link servers. No site may have a name that begins like it.
RESERVED_PREFIX = "dk-"
LINK_DOMAIN = "dk-links"
# From so many sites on, a majority of them can decide something without the others: they are joined by link servers, and
# leases are possible.
SITES_FOR_LEASES = 3
MOST_NODES = 5


@dataclass(frozen=True, slots=True)
class Place:
    """Where one server listens and keeps its files."""

    dir: Path
    client_port: int
    monitor_port: int
    leaf_port: int
    route_port: int
    host: str = "127.0.0.1"
    netns: str | None = None

    @property
    def leaf_address(self) -> str:
        return f"{self.host}:{self.leaf_port}"

    @property
    def route_address(self) -> str:
        return f"{self.host}:{self.route_port}"


@dataclass(frozen=True, slots=True)
class SitePlaces:
    """The servers of one site: by node name, in order, and its link server where there is one."""

    nodes: Mapping[str, Place]
    link: Place | None = None


def node_names(site: str, count: int) -> list[str]:
    """``east`` alone, else ``east-1``, ``east-2``, …"""
    return [site] if count == 1 else [f"{site}-{number + 1}" for number in range(count)]


def needs_links(sites: int) -> bool:
    return sites >= SITES_FOR_LEASES


def replicas(nodes: int) -> int:
    """How many servers of a site hold each of its streams."""
    return min(nodes, MOST_NODES)


def node_config(places: Mapping[str, SitePlaces], site: str, node: str, secret: str) -> ServerConfig:
    """A site's own server."""
    own = places[site]
    place = own.nodes[node]
    clustered = len(own.nodes) > 1
    return ServerConfig(
        site,
        place.dir,
        place.client_port,
        place.monitor_port,
        secret,
        leaf_port=place.leaf_port,
        leaf_remotes=_leaf_remotes(places, site, node),
        host=place.host,
        netns=place.netns,
        node=node,
        cluster=site if clustered else None,
        route_port=place.route_port if clustered else None,
        routes=tuple(other.route_address for name, other in own.nodes.items() if name != node)
        if clustered
        else (),
    )


def link_config(places: Mapping[str, SitePlaces], site: str, secret: str) -> ServerConfig:
    """A site's member of the cluster that joins the sites and holds the leases."""
    place = places[site].link
    assert place is not None, "asked of a deployment with link servers"
    others = [other.link for name, other in places.items() if name != site]
    return ServerConfig(
        site,
        place.dir,
        place.client_port,
        place.monitor_port,
        secret,
        leaf_port=place.leaf_port,
        host=place.host,
        netns=place.netns,
        node=f"link-{site}",
        domain=LINK_DOMAIN,
        cluster=LINK_DOMAIN,
        route_port=place.route_port,
        routes=tuple(other.route_address for other in others if other is not None),
    )


def _leaf_remotes(places: Mapping[str, SitePlaces], site: str, node: str) -> tuple[str, ...]:
    """Where a site's server links to: its own site's link server, else another's; without those, sites before it.

    A cluster whose servers linked to different sites could close a ring over them. Link servers are one cluster, so which
    of them is linked to makes no difference.
    """
    names = list(places)
    if places[site].link is not None:
        order = [site, *(name for name in names if name != site)]
        links = [places[name].link for name in order]
        return tuple(link.leaf_address for link in links if link is not None)
    earlier = [places[name] for name in names[: names.index(site)]]
    addresses = [place.leaf_address for known in earlier for place in known.nodes.values()]
    return tuple(_turned(addresses, list(places[site].nodes).index(node)))


def _turned(addresses: Sequence[str], by: int) -> list[str]:
    """Each server begins with another one, so that links are spread over all."""
    at = by % max(1, len(addresses))
    return [*addresses[at:], *addresses[:at]]
