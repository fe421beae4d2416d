"""The settings files that control writes for the daemons of a site. Their shapes belong to those daemons."""

from __future__ import annotations

from typing import Any

from diffkeeper_control.deployment import HOST, Deployment, Layout


def broker_url(note: Deployment, site: str) -> str:
    return f"nats://{HOST}:{note.sites[site].nats_port}"


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
        "servers": [broker_url(note, site)],
        "broker_secret_file": str(layout.secret),
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
        "servers": [broker_url(note, site)],
        "broker_secret_file": str(layout.secret),
    }
