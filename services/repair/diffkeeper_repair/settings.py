"""The settings file of the repair service."""

from __future__ import annotations

import msgspec

from diffkeeper import settings


class SiteSettings(settings.Settings, frozen=True, kw_only=True):
    site: str
    # Addresses of the site's nats-servers.
    servers: tuple[str, ...]


class NodeSettings(settings.Settings, frozen=True, kw_only=True):
    """A storage node: a nats-server whose JetStream domain is the node's name."""

    name: str
    # What fails as a whole with it: its site, its rack.
    domain: str
    servers: tuple[str, ...]


class RepairSettings(settings.Settings, frozen=True, kw_only=True):
    # The book of damages and the place of the scrub; nothing that is needed to restore.
    dir: str
    token_file: str
    broker_secret_file: str
    sites: tuple[SiteSettings, ...]
    nodes: tuple[NodeSettings, ...]
    # Such as 4+2; what suits the number of nodes when nobody says.
    geometry: str | None = None
    # For volumes that want another one.
    geometry_of: dict[str, str] = msgspec.field(default_factory=dict)
    seal_age_s: float = 30.0
    # How long a node may be away before its shards are made anew on other nodes.
    grace_s: float = 600.0
    scrub_bytes_per_s: int = 20 * 1024 * 1024
    # What rebuilding by itself may read from nodes and write to them, unless nothing is to spare any more.
    rebuild_bytes_per_s: int = 64 * 1024 * 1024
    # A tour begins this long after the last one ended.
    scrub_every_s: float = 3600.0
    host: str = "127.0.0.1"
    port: int = 0
