"""A deployment on disk: where everything lies below one directory, and ``deployment.json``, the note of what
runs.

The note holds each process with its start time, so that a later control can tell its own children from
strangers that took their numbers, and each port, so that addresses stay the same over restarts. It is
replaced atomically at every change.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from diffkeeper import atomic_files, nats_server, topology
from diffkeeper.domain import errors, leases, volumes
from diffkeeper_control import storage_notes

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths below a deployment's directory."""

    dir: Path

    @property
    def note(self) -> Path:
        return self.dir / "deployment.json"

    @property
    def token(self) -> Path:
        return self.dir / "token"

    @property
    def control(self) -> Path:
        return self.dir / "control"

    @property
    def lock(self) -> Path:
        return self.control / "lock"

    @property
    def registry(self) -> Path:
        return self.control / "registry.json"

    @property
    def operations(self) -> Path:
        return self.control / "operations"

    @property
    def secret(self) -> Path:
        """What the brokers ask of clients and of each other."""
        return self.control / "broker-secret"

    @property
    def logs(self) -> Path:
        return self.dir / "logs"

    def site(self, site: str) -> Path:
        return self.dir / "sites" / site

    def nats(self, site: str, role: str = "nats") -> Path:
        """Of one of its brokers: ``nats``, ``nats-2`` or ``link``."""
        return self.site(site) / role

    def capture(self, site: str) -> Path:
        return self.site(site) / "capture"

    def gate(self, site: str) -> Path:
        return self.capture(site) / "gate.sock"

    def replicator(self, site: str) -> Path:
        return self.site(site) / "replicator"

    def volumes(self, site: str) -> Path:
        return self.site(site) / "volumes"

    def clones(self, site: str) -> Path:
        return self.site(site) / "clones"

    def replica(self, site: str, volume: str, reign: int | None = None) -> Path:
        """The replica's directory; ``reign`` tells it apart from one that a dead leader left behind."""
        return self.volumes(site) / (volume if reign is None else f"{volume}.{reign}")

    def settings(self, site: str, role: str) -> Path:
        return self.site(site) / f"{role}.json"

    def log(self, site: str, role: str) -> Path:
        return self.logs / f"{site}-{role}.log"

    def make(self, sites: list[str]) -> None:
        for path in (self.control, self.operations, self.logs):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        for site in sites:
            # A program that runs as another user (PostgreSQL refuses root) walks through these to its own files;
            # what it may read there, the modes of the replica say, which are those of the source.
            for path in (self.site(site), self.volumes(site)):
                path.mkdir(parents=True, exist_ok=True, mode=0o711)
            for path in (self.capture(site), self.replicator(site)):
                path.mkdir(parents=True, exist_ok=True, mode=0o700)


class Process(msgspec.Struct, frozen=True):
    pid: int
    start_ticks: int
    started_us: int


class Broker(msgspec.Struct, kw_only=True):
    """Ports of one nats-server."""

    client_port: int
    monitor_port: int
    leaf_port: int
    route_port: int
    stopped: bool = False


class Site(msgspec.Struct, kw_only=True):
    # By node name, in order; one node has the site's own name.
    nodes: dict[str, Broker]
    # The site's member of the cluster that joins the sites; None with two sites.
    link: Broker | None = None
    replicator_port: int
    agent_port: int
    # Where all of its processes listen, and the network namespace they are in; None: that of control.
    address: str = HOST
    netns: str | None = None
    stopped: bool = False
    processes: dict[str, Process] = {}


class Control(msgspec.Struct, frozen=True):
    pid: int
    start_ticks: int
    address: str


class DoorNote(msgspec.Struct, frozen=True):
    """The process that serves all front doors of this machine."""

    port: int
    process: Process | None = None


class Deployment(msgspec.Struct):
    """``deployment.json``. ``control`` is that of the last control, which may be gone."""

    version: int
    created_us: int
    # In the order given.
    sites: dict[str, Site]
    control_port: int
    control: Control | None = None
    # Whether volumes get another leader by themselves, and after how long without a sign of their leader.
    auto_failover: bool = False
    lease_ttl_ms: int = leases.DEFAULT_TTL_MS
    storage: storage_notes.Storage | None = None
    door: DoorNote | None = None


VERSION = 2


def load(layout: Layout) -> Deployment | None:
    """The note of an existing deployment; None when the directory holds none."""
    try:
        data = layout.note.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise errors.Misconfigured(
            f"{layout.note} cannot be read: {error.strerror}", reason="deployment-unreadable"
        ) from error
    try:
        note = msgspec.convert(_upgraded(msgspec.json.decode(data)), Deployment)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise errors.Misconfigured(
            f"{layout.note} is not a deployment's note: {error}; it was left as it is",
            reason="deployment-unreadable",
            hint="give another --dir, or repair the file",
        ) from error
    if note.version != VERSION:
        raise errors.Misconfigured(
            f"{layout.note} has version {note.version} and this control reads {VERSION}",
            reason="unknown-version",
            hint="start the deployment with the version that made it",
        )
    return note


def _upgraded(found: Any) -> Any:
    """A note of version 1 named one broker a site, without a port for routes."""
    if not isinstance(found, dict) or found.get("version") != 1:
        return found
    sites = {}
    for name, site in dict(found.get("sites", {})).items():
        rest = {key: value for key, value in site.items() if key not in _OLD_PORTS}
        broker = {"client_port": site.get("nats_port"), "route_port": nats_server.free_port(HOST)}
        broker |= {key: site.get(key) for key in ("monitor_port", "leaf_port")}
        sites[name] = {**rest, "nodes": {name: broker}}
    return {**found, "version": VERSION, "sites": sites}


_OLD_PORTS = ("nats_port", "monitor_port", "leaf_port")


def save(layout: Layout, note: Deployment) -> None:
    atomic_files.write_json(layout.note, msgspec.to_builtins(note))


def create(layout: Layout, sites: list[str], now_us: int, nodes: int = 1) -> Deployment:
    """A new deployment with ports of its own. Refuses a directory that holds something else."""
    check_sites(sites, nodes)
    if layout.dir.exists() and any(entry.name != "control" for entry in layout.dir.iterdir()):
        raise errors.Refused(
            f"{layout.dir} is not empty and holds no deployment; nothing was touched",
            reason="dir-not-empty",
            hint="give a new or empty --dir",
            path=layout.dir,
        )
    layout.make(sites)
    linked = topology.needs_links(len(sites))
    ports = iter(_free_ports(len(sites) * (4 * nodes + 4 * linked + 2) + 1))
    note = Deployment(
        VERSION,
        now_us,
        {
            site: Site(
                nodes={node: _broker(ports) for node in topology.node_names(site, nodes)},
                link=_broker(ports) if linked else None,
                replicator_port=next(ports),
                agent_port=next(ports),
            )
            for site in sites
        },
        next(ports),
    )
    for path in (layout.token, layout.secret):
        atomic_files.write_bytes(path, (secrets.token_urlsafe(32) + "\n").encode(), 0o600)
    save(layout, note)
    return note


def _broker(ports: Iterator[int]) -> Broker:
    return Broker(
        client_port=next(ports), monitor_port=next(ports), leaf_port=next(ports), route_port=next(ports)
    )


def check_sites(sites: list[str], nodes: int = 1) -> None:
    if len(sites) < 2:
        raise errors.Refused(
            "a deployment needs at least two sites", reason="too-few-sites", hint="--sites east,west"
        )
    if nodes not in (1, 3, 5):
        raise errors.Refused(
            f"a site has 1, 3 or 5 nodes, not {nodes}: a majority of them must be left when one dies",
            reason="bad-nodes",
            hint="--nodes 3 survives the death of any one",
        )
    for site in sites:
        volumes.check_name("site", site)
    names = [node for site in sites for node in topology.node_names(site, nodes)]
    names += [link_name(site) for site in sites] if topology.needs_links(len(sites)) else []
    names += sites if nodes > 1 else []
    if len(set(sites)) != len(sites) or len(set(names)) != len(names):
        raise errors.Refused(
            "a site or node is named twice",
            reason="bad-name",
            hint="give each site its own name, none of them like east-1 or link-east",
        )


def link_name(site: str) -> str:
    return f"link-{site}"


def check_same_sites(note: Deployment, sites: list[str] | None, nodes: int | None = None) -> None:
    if sites is not None and sorted(sites) != sorted(note.sites):
        raise errors.Refused(
            f"this deployment has the sites {', '.join(note.sites)}, not {', '.join(sites)}",
            reason="sites-differ",
            hint="leave --sites out, or give another --dir",
        )
    has = len(next(iter(note.sites.values())).nodes)
    if nodes is not None and nodes != has:
        raise errors.Refused(
            f"each site of this deployment has {has} nodes, not {nodes}",
            reason="nodes-differ",
            hint="leave --nodes out, or give another --dir",
        )


def voters(note: Deployment) -> int:
    """How many sites take part in deciding who holds a lease."""
    return sum(site.link is not None for site in note.sites.values())


def check_failover(auto: bool | None, ttl_ms: int | None, sites: int) -> None:
    if ttl_ms is not None:
        leases.check_ttl(ttl_ms)
    if auto and not topology.needs_links(sites):
        raise errors.Refused(
            "automatic failover needs three sites: of two, neither can tell a dead peer from a cut cable",
            reason="too-few-sites",
            hint="--sites east,west,north in a new --dir; with two, dkctl failover is the operator's decision",
        )


def places(layout: Layout, note: Deployment) -> dict[str, topology.SitePlaces]:
    """Where each broker of the deployment is, for ``topology``."""
    return {
        name: topology.SitePlaces(
            {
                node: _place(layout.nats(name, node_role(name, node)), site, at)
                for node, at in site.nodes.items()
            },
            _place(layout.nats(name, LINK), site, site.link) if site.link is not None else None,
        )
        for name, site in note.sites.items()
    }


def _place(directory: Path, site: Site, at: Broker) -> topology.Place:
    return topology.Place(
        directory, at.client_port, at.monitor_port, at.leaf_port, at.route_port, site.address, site.netns
    )


LINK = "link"


def node_role(site: str, node: str) -> str:
    """What the broker of a node is called among the processes of its site: ``nats``, or ``nats-2``."""
    return "nats" + node.removeprefix(site)


def broker_roles(note: Deployment, site: str) -> dict[str, str]:
    """The brokers of a site: node name by role, the link server first."""
    known = note.sites[site]
    link = {LINK: link_name(site)} if known.link is not None else {}
    return link | {node_role(site, node): node for node in known.nodes}


def broker(note: Deployment, site: str, role: str) -> Broker:
    known = note.sites[site]
    found = known.link if role == LINK else known.nodes[broker_roles(note, site)[role]]
    assert found is not None, "a site without a link server has no such role"
    return found


def find_node(note: Deployment, node: str) -> tuple[str, str]:
    """The site and the role of a node; raises NotFound."""
    known = {name: (site, role) for site in note.sites for role, name in broker_roles(note, site).items()}
    if node not in known:
        raise errors.NotFound(
            f"there is no node {node!r}",
            reason="unknown-node",
            hint=f"the nodes of this deployment: {', '.join(known)}",
            node=node,
        )
    return known[node]


class DirLock:
    """Held by the one control of a directory; the kernel lets go of it when that process dies, however it
    dies.
    """

    def __init__(self, layout: Layout) -> None:
        layout.control.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._descriptor = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._descriptor)
            note = load(layout)
            control = note.control if note is not None else None
            where = f" by process {control.pid} at {control.address}" if control is not None else ""
            raise errors.Refused(
                f"{layout.dir} is in use{where}",
                reason="dir-busy",
                hint=f"dkctl status --dir {layout.dir}; dkctl down --dir {layout.dir} stops it",
                address=control.address if control is not None else "",
                pid=control.pid if control is not None else 0,
            ) from error

    def close(self) -> None:
        os.close(self._descriptor)


def _free_ports(count: int) -> list[int]:
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(nats_server.free_port(HOST))
    return sorted(ports)
