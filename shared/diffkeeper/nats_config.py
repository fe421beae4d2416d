"""What one nats-server is told: its configuration file as a pure function of a few facts.

Three kinds of servers are told apart by what they are given. A *site server* belongs to the JetStream domain
of its site; several of them form the site's cluster, and streams have a replica on each. A *link server* (one a site,
where there are three sites or more) is a member of one small cluster that spans the sites: every site server links to it
by a leaf connection, so that the links are a tree whatever dies, and its own JetStream domain holds the leases. With two
sites no such cluster is needed: the servers of one site link to those of the other.

Core subjects cross leaf links, JetStream domains stay apart, and a mirror reaches the other domain through
its API prefix.
"""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from diffkeeper.domain import errors, limits

USER = "diffkeeper"
# A client or leaf connection may hold this much unread before the server drops it; several of the largest
# frames.
MAX_PENDING_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """What one nats-server needs to know. ``secret`` is the deployment's; it also opens leaf links and routes."""

    site: str
    dir: Path
    client_port: int
    monitor_port: int
    secret: str = field(repr=False)
    leaf_port: int | None = None
    # Leaf ports such as "127.0.0.1:7422", the preferred one first: one of them is linked to.
    leaf_remotes: tuple[str, ...] = ()
    max_file_store_bytes: int | None = None  # None: three quarters of the free disk, as nats-server has it
    max_memory_store_bytes: int = 64 * 1024 * 1024
    host: str = "127.0.0.1"
    # Tells servers of one site apart; the site's name where it has but one.
    node: str | None = None
    # The JetStream domain; None: the site's own.
    domain: str | None = None
    # Invariant: a cluster has a route port, and routes to all its other members.
    cluster: str | None = None
    route_port: int | None = None
    routes: tuple[str, ...] = ()

    @property
    def server_name(self) -> str:
        return f"dk-{self.node or self.site}"

    @property
    def jetstream_domain(self) -> str:
        return self.domain or self.site

    @property
    def client_url(self) -> str:
        return f"nats://{self.host}:{self.client_port}"

    @property
    def monitor_url(self) -> str:
        return f"http://{self.host}:{self.monitor_port}"

    @property
    def store_dir(self) -> Path:
        return self.dir / "store"

    @property
    def config_path(self) -> Path:
        return self.dir / "nats-server.conf"

    @property
    def log_path(self) -> Path:
        return self.dir / "nats-server.log"

    @property
    def process_path(self) -> Path:
        return self.dir / "process.json"


def render(config: ServerConfig) -> str:
    """The configuration file. Strings are written as JSON, which the server's format contains."""
    lines = [
        f"server_name: {_text(config.server_name)}",
        f"listen: {_text(f'{config.host}:{config.client_port}')}",
        f"http: {_text(f'{config.host}:{config.monitor_port}')}",
        f"log_file: {_text(str(config.log_path))}",
        f"pid_file: {_text(str(config.dir / 'nats-server.pid'))}",
        f"max_payload: {limits.BROKER_MAX_PAYLOAD_BYTES}",
        f"max_pending: {MAX_PENDING_BYTES}",
        'write_deadline: "10s"',
        # A peer that hangs is given up after three of these, and the link goes to another one: until then nothing
        # that went over it is confirmed.
        'ping_interval: "3s"',
        f"authorization {_block(_account(config))}",
        f"jetstream {_block(_jetstream(config))}",
    ]
    if config.cluster is not None:
        lines.append(f"cluster {_block(_cluster(config))}")
    leaf = _leaf(config)
    if leaf:
        lines.append(f"leafnodes {_block(leaf)}")
    return "\n".join(lines) + "\n"


def _account(config: ServerConfig) -> list[str]:
    return [f"user: {_text(USER)}", f"password: {_text(config.secret)}"]


def _jetstream(config: ServerConfig) -> list[str]:
    lines = [
        f"store_dir: {_text(str(config.store_dir))}",
        f"domain: {_text(config.jetstream_domain)}",
        "sync_interval: always",
        f"max_memory_store: {config.max_memory_store_bytes}",
    ]
    if config.max_file_store_bytes is not None:
        lines.append(f"max_file_store: {config.max_file_store_bytes}")
    return lines


def _cluster(config: ServerConfig) -> list[str]:
    assert config.cluster is not None and config.route_port is not None, "a cluster has a port for its routes"
    routes = ", ".join(_text(_url("nats-route", config, address)) for address in config.routes)
    return [
        f"name: {_text(config.cluster)}",
        f"listen: {_text(f'{config.host}:{config.route_port}')}",
        f"authorization {_block([*_account(config), 'timeout: 5'], 2)}",
        f"routes: [{routes}]",
        # Clients know all servers of their site from their own settings.
        "no_advertise: true",
        # Frames are compressed already.
        "compression: off",
    ]


def _leaf(config: ServerConfig) -> list[str]:
    lines: list[str] = []
    if config.leaf_port is not None:
        lines += [
            f"listen: {_text(f'{config.host}:{config.leaf_port}')}",
            f"authorization {_block(_account(config), 2)}",
        ]
    if config.leaf_remotes:
        urls = ", ".join(_text(_url("nats-leaf", config, address)) for address in config.leaf_remotes)
        # One remote with many addresses is one link, to the first that answers; many remotes would make a
        # ring of three sites, and a ring is cut by the server as a loop.
        lines += ['reconnect: "1s"', f"remotes: [{{ urls: [{urls}], no_randomize: true }}]"]
    if lines:
        # Frames are compressed already; even "uncompressed" s2 framing copies and checksums each byte.
        lines.append("compression: off")
    return lines


def _url(scheme: str, config: ServerConfig, address: str) -> str:
    return f"{scheme}://{USER}:{urllib.parse.quote(config.secret, safe='')}@{address}"


def _block(lines: Sequence[str], depth: int = 1) -> str:
    inner = "".join(f"{'  ' * depth}{line}\n" for line in lines)
    return "{\n" + inner + "  " * (depth - 1) + "}"


def _text(value: str) -> str:
    if not value.isprintable():
        raise errors.Misconfigured(
            f"{value!r} cannot be written into a server's configuration",
            reason="unprintable-setting",
            hint="use a directory and a secret without control characters",
        )
    return json.dumps(value, ensure_ascii=False)
