"""``diffkeeper-control``: one control of one embedded deployment.

It holds the lock of the directory for its life. SIGTERM, SIGINT and ``POST /v1/shutdown`` stop the whole
deployment in order; when control is killed, its children live on and the next control takes them over.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from diffkeeper import http, nats_server
from diffkeeper.domain import errors, leases
from diffkeeper.service import Scope, run_service
from diffkeeper_control import deployment, settings, site_addresses, sites, storage_api, storage_notes
from diffkeeper_control.api import Api
from diffkeeper_control.deployment import HOST, Control, Deployment, DirLock, Layout
from diffkeeper_control.embedded import Embedded
from diffkeeper_control.service import ControlService
from diffkeeper_control.storage_nodes import StorageNodes

DEFAULT_SITES = ["east", "west"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for; None leaves it as it is, or at its default."""

    sites: list[str] | None
    nodes: int | None
    auto_failover: bool | None
    lease_ttl_ms: int | None
    storage_nodes: int | None
    parity: str | None
    addresses: list[str]


def main() -> None:
    options = _parse()
    layout = Layout(Path(os.path.realpath(options.dir)))
    wanted = Wanted(
        options.sites.split(",") if options.sites else None,
        options.nodes,
        options.auto_failover,
        options.lease_ttl_ms,
        options.storage_nodes,
        options.parity,
        options.site_address,
    )

    async def serve(scope: Scope) -> None:
        lock = DirLock(layout)
        try:
            await _serve(scope, layout, wanted)
        finally:
            lock.close()

    run_service("diffkeeper-control", serve)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="diffkeeper-control", description="Run a deployment of DiffKeeper below one directory."
    )
    parser.add_argument("--dir", required=True, metavar="DIR", help="where everything is kept")
    parser.add_argument("--sites", metavar="NAMES", help="comma-separated; east,west for a new deployment")
    parser.add_argument(
        "--nodes", type=int, metavar="N", help="brokers a site: 1, 3 or 5; 1 for a new deployment"
    )
    parser.add_argument(
        "--auto-failover",
        action=argparse.BooleanOptionalAction,
        help="give a volume whose leader is silent to another site; needs three sites",
    )
    parser.add_argument(
        "--lease-ttl-ms", type=int, metavar="MS", help=f"how long that silence lasts; {leases.DEFAULT_TTL_MS}"
    )
    parser.add_argument("--storage-nodes", type=int, metavar="N", help="none; more than before adds some")
    parser.add_argument("--parity", metavar="K+M", help="data and parity shards, such as 2+8")
    parser.add_argument(
        "--site-address",
        action="append",
        default=[],
        metavar="SITE=ADDRESS[@NAMESPACE]",
        help="where a site of a new deployment listens, and in which network namespace it runs; one for each site",
    )
    return parser.parse_args()


async def _serve(scope: Scope, layout: Layout, wanted: Wanted) -> None:
    note = _open(layout, wanted)
    async with sites.open_session() as session:
        embedded = Embedded(layout, note, session)
        service = ControlService(embedded, scope.spawn)
        storage = StorageNodes(layout, note, embedded.secret, embedded.token, session)
        api = Api(service).app(embedded.token)
        storage_api.add_routes(api, storage)
        service.shared.add_routes(api)
        async with http.serve(api, HOST, _usable_port(note)) as port:
            _note_control(layout, note, port)
            fresh = not any(site.processes for site in note.sites.values())
            try:
                await storage.start()
                await service.start()
            except BaseException:
                if fresh:
                    await storage.stop()
                    await embedded.stop_all()
                raise
            reconciling = scope.spawn("reconcile", service.reconciler.run())
            others = [
                scope.spawn("watch leases", service.watchman.run()),
                scope.spawn("care for brokers", service.node_care.run()),
                scope.spawn("drills", service.drills.run()),
                scope.spawn("shared volumes", service.shared.run()),
            ]
            scope.ready(dir=str(layout.dir), address=settings.address(port), sites=",".join(note.sites))
            await _until_stop(scope, service)
            # What is being stopped must be neither corrected nor taken for dead.
            for task in (reconciling, *others):
                task.cancel()
            await storage.stop_repair()
            await service.stop()
            await storage.stop()
            await service.office.close()
            note.control = None
            deployment.save(layout, note)


def _open(layout: Layout, wanted: Wanted) -> Deployment:
    note = deployment.load(layout)
    sites_wanted = wanted.sites or (list(note.sites) if note is not None else DEFAULT_SITES)
    storage = storage_notes.wish(
        note.storage if note is not None else None, sites_wanted, wanted.storage_nodes, wanted.parity
    )
    addresses = site_addresses.parse(wanted.addresses)
    if note is None:
        site_addresses.check_sites(addresses, sites_wanted, storage)
        deployment.check_failover(wanted.auto_failover, wanted.lease_ttl_ms, len(sites_wanted))
        note = deployment.create(layout, sites_wanted, time.time_ns() // 1000, wanted.nodes or 1)
        site_addresses.give(note, addresses)
    else:
        site_addresses.check_same(note, addresses)
        site_addresses.check_sites(site_addresses.of(note), note.sites, storage)
        deployment.check_same_sites(note, wanted.sites, wanted.nodes)
        deployment.check_failover(wanted.auto_failover, wanted.lease_ttl_ms, deployment.voters(note))
    if wanted.auto_failover is not None:
        note.auto_failover = wanted.auto_failover
    note.lease_ttl_ms = wanted.lease_ttl_ms or note.lease_ttl_ms
    note.storage = storage
    deployment.save(layout, note)
    return note


def _usable_port(note: Deployment) -> int:
    """The port control had before, or any other where somebody took it meanwhile."""
    if _is_taken(note.control_port):
        note.control_port = nats_server.free_port(HOST)
    return note.control_port


def _is_taken(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((HOST, port))
        except OSError:
            return True
    return False


def _note_control(layout: Layout, note: Deployment, port: int) -> None:
    ticks = nats_server.start_ticks(os.getpid())
    if ticks is None:
        raise errors.Misconfigured("/proc is not mounted", reason="no-proc", hint="mount -t proc proc /proc")
    note.control = Control(os.getpid(), ticks, settings.address(port))
    deployment.save(layout, note)


async def _until_stop(scope: Scope, service: ControlService) -> None:
    waiting = [
        asyncio.create_task(scope.stopping.wait(), name="wait for a signal"),
        asyncio.create_task(service.shutdown_asked.wait(), name="wait for a request"),
    ]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()


if __name__ == "__main__":
    main()
