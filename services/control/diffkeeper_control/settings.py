"""The settings files that control writes for the daemons of a site. Their shapes belong to those daemons."""

from __future__ import annotations

from typing import Any

from diffkeeper_control.deployment import HOST, Deployment, Layout


def broker_urls(note: Deployment, site: str) -> list[str]:
    return [f"nats://{HOST}:{node.client_port}" for node in note.sites[site].nodes.values()]


def link_urls(note: Deployment, first: str | None = None) -> list[str]:
    """The link servers of all sites, that of ``first`` in front; none with two sites."""
    order = sorted(note.sites, key=lambda site: site != first)
    links = [note.sites[site].link for site in order]
    return [f"nats://{HOST}:{link.client_port}" for link in links if link is not None]


def address(port: int) -> str:
    return f"http://{HOST}:{port}"


def of_replicator(layout: Layout, note: Deployment, site: str) -> dict[str, Any]:
    return {
        "site": site,
        "dir": str(layout.replicator(site)),
        "volumes_dir": str(layout.volumes(site)),
        "host": HOST,
        "port": note.sites[site].replicator_port,
        "token_file": str(layout.token),
        "servers": broker_urls(note, site),
        "broker_secret_file": str(layout.secret),
        "sites": list(note.sites),
        "repair": address(note.storage.repair_port) if note.storage is not None else None,
        "peers": [address(note.sites[other].replicator_port) for other in note.sites if other != site],
    }


def of_agent(layout: Layout, note: Deployment, site: str) -> dict[str, Any]:
    return {
        "site": site,
        "dir": str(layout.capture(site)),
        "gate_socket": str(layout.gate(site)),
        "host": HOST,
        "port": note.sites[site].agent_port,
        "token_file": str(layout.token),
        "servers": broker_urls(note, site),
        "broker_secret_file": str(layout.secret),
        "sites": list(note.sites),
        "lease_servers": link_urls(note, site),
    }
