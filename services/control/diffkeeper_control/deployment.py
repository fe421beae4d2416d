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
from dataclasses import dataclass
from pathlib import Path

import msgspec

from diffkeeper import atomic_files, nats_server
from diffkeeper.domain import errors, volumes
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

    def nats(self, site: str) -> Path:
        return self.site(site) / "nats"

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
            for path in (self.nats(site), self.capture(site), self.replicator(site)):
                path.mkdir(parents=True, exist_ok=True, mode=0o700)
            # A program that runs as another user (PostgreSQL refuses root) walks through it to its own files;
            # what it may read there, the modes of the replica say, which are those of the source.
            self.volumes(site).mkdir(parents=True, exist_ok=True, mode=0o711)


class Process(msgspec.Struct, frozen=True):
    pid: int
    start_ticks: int
    started_us: int


class Site(msgspec.Struct, kw_only=True):
    nats_port: int
    monitor_port: int
    leaf_port: int
    replicator_port: int
    agent_port: int
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
    # In the order given: each site's broker links to one of those before it.
    sites: dict[str, Site]
    control_port: int
    control: Control | None = None
    storage: storage_notes.Storage | None = None
    door: DoorNote | None = None


VERSION = 1


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
        note = msgspec.json.decode(data, type=Deployment)
    except msgspec.DecodeError as error:
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


def save(layout: Layout, note: Deployment) -> None:
    atomic_files.write_json(layout.note, msgspec.to_builtins(note))


def create(layout: Layout, sites: list[str], now_us: int) -> Deployment:
    """A new deployment with ports of its own. Refuses a directory that holds something else."""
    check_sites(sites)
    if layout.dir.exists() and any(entry.name != "control" for entry in layout.dir.iterdir()):
        raise errors.Refused(
            f"{layout.dir} is not empty and holds no deployment; nothing was touched",
            reason="dir-not-empty",
            hint="give a new or empty --dir",
            path=layout.dir,
        )
    layout.make(sites)
    ports = iter(_free_ports(5 * len(sites) + 1))
    control_port = next(ports)
    note = Deployment(
        VERSION,
        now_us,
        {
            site: Site(
                nats_port=next(ports),
                monitor_port=next(ports),
                leaf_port=next(ports),
                replicator_port=next(ports),
                agent_port=next(ports),
            )
            for site in sites
        },
        control_port,
    )
    for path in (layout.token, layout.secret):
        atomic_files.write_bytes(path, (secrets.token_urlsafe(32) + "\n").encode(), 0o600)
    save(layout, note)
    return note


def check_sites(sites: list[str]) -> None:
    if len(sites) < 2:
        raise errors.Refused(
            "a deployment needs at least two sites", reason="too-few-sites", hint="--sites east,west"
        )
    for site in sites:
        volumes.check_name("site", site)
    if len(set(sites)) != len(sites):
        raise errors.Refused("a site is named twice", reason="bad-name", hint="give each site its own name")


def check_same_sites(note: Deployment, sites: list[str] | None) -> None:
    if sites is not None and sorted(sites) != sorted(note.sites):
        raise errors.Refused(
            f"this deployment has the sites {', '.join(note.sites)}, not {', '.join(sites)}",
            reason="sites-differ",
            hint="leave --sites out, or give another --dir",
        )


def leaf_remotes(note: Deployment, site: str) -> tuple[str, ...]:
    """Leaf addresses of the sites before ``site``: its broker links to one of them, whichever answers.

    Each broker has at most one link to an earlier one, so the links are always a tree (a ring of leaf nodes
    would be refused), and any subset of sites that live is joined again when one dies.
    """
    names = list(note.sites)
    return tuple(f"{HOST}:{note.sites[other].leaf_port}" for other in names[: names.index(site)])


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
