"""The settings files that control writes for the daemons of a site. Their shapes belong to those daemons."""

from __future__ import annotations

from typing import Any

from diffkeeper_control.deployment import HOST, Deployment, Layout, Site


def broker_urls(note: Deployment, site: str) -> list[str]:
    at = note.sites[site]
    return [f"nats://{at.address}:{node.client_port}" for node in at.nodes.values()]


def link_urls(note: Deployment, first: str | None = None) -> list[str]:
    """The link servers of all sites, that of ``first`` in front; none with two sites."""
    order = [note.sites[site] for site in sorted(note.sites, key=lambda site: site != first)]
    return [f"nats://{at.address}:{at.link.client_port}" for at in order if at.link is not None]


def address(port: int, host: str = HOST) -> str:
    return f"http://{host}:{port}"


def replicator_address(site: Site) -> str:
    return address(site.replicator_port, site.address)


def agent_address(site: Site) -> str:
    return address(site.agent_port, site.address)


def of_replicator(layout: Layout, note: Deployment, site: str) -> dict[str, Any]:
    return {
        "site": site,
        "dir": str(layout.replicator(site)),
        "volumes_dir": str(layout.volumes(site)),
        "host": note.sites[site].address,
        "port": note.sites[site].replicator_port,
        "token_file": str(layout.token),
        "servers": broker_urls(note, site),
        "broker_secret_file": str(layout.secret),
        "sites": list(note.sites),
        "repair": address(note.storage.repair_port) if note.storage is not None else None,
        "peers": [replicator_address(at) for other, at in note.sites.items() if other != site],
    }


def of_agent(layout: Layout, note: Deployment, site: str) -> dict[str, Any]:
    return {
        "site": site,
        "dir": str(layout.capture(site)),
        "gate_socket": str(layout.gate(site)),
        "host": note.sites[site].address,
        "port": note.sites[site].agent_port,
        "token_file": str(layout.token),
        "servers": broker_urls(note, site),
        "broker_secret_file": str(layout.secret),
        "sites": list(note.sites),
        "lease_servers": link_urls(note, site),
    }
