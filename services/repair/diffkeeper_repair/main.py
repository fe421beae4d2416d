"""``diffkeeper-repair --config FILE``: the repair service of one deployment, put together."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from diffkeeper import heap, http, metrics, service, settings
from diffkeeper.domain import errors, stripes
from diffkeeper.log import event_log, nats_event_log
from diffkeeper.shards import nats_shard_store
from diffkeeper_repair import gauges, repair_api
from diffkeeper_repair.fleet import StorageNode
from diffkeeper_repair.service import RepairService
from diffkeeper_repair.settings import NodeSettings, RepairSettings, SiteSettings


def main() -> None:
    parser = argparse.ArgumentParser(prog="diffkeeper-repair", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the settings file (JSON)")
    config = parser.parse_args().config

    async def run(scope: service.Scope) -> None:
        await serve(scope, settings.load(config, RepairSettings))

    service.run_service("repair", run)


async def serve(scope: service.Scope, wanted: RepairSettings) -> None:
    heap.hold()
    token = settings.read_token(Path(wanted.token_file))
    secret = settings.read_token(Path(wanted.broker_secret_file))
    with _lock(Path(wanted.dir)):
        nodes = [await _node(node, secret) for node in wanted.nodes]
        logs: dict[str, event_log.EventLog] = {}
        try:
            for site in wanted.sites:
                logs[site.site] = await _log_of(site, secret)
            repair = RepairService(wanted, nodes, logs, now_us)
            app = http.make_app(token)
            repair_api.add_routes(app, repair)
            measured = metrics.Metrics()
            gauges.register(measured, repair)
            app.add_routes([measured.route()])
            async with http.serve(app, wanted.host, wanted.port) as port:
                await repair.begin()
                scope.spawn("repair", repair.run())
                scope.ready(port=port, nodes=len(nodes), geometry=str(repair.geometry))
                await scope.stopping.wait()
            repair.book.keep()
        finally:
            scope.end_spawned()
            await asyncio.gather(*(log.close() for log in logs.values()))
            await asyncio.gather(*(node.store.close() for node in nodes))


async def _node(wanted: NodeSettings, secret: str) -> StorageNode:
    store = await nats_shard_store.NatsShardStore.open(wanted.name, wanted.servers, password=secret)
    return StorageNode(stripes.Node(wanted.name, wanted.domain), store)


async def _log_of(wanted: SiteSettings, secret: str) -> event_log.EventLog:
    return await nats_event_log.NatsEventLog.open(
        wanted.site, wanted.servers, password=secret, name="diffkeeper-repair"
    )


@contextlib.contextmanager
def _lock(directory: Path) -> Iterator[None]:
    """One service a directory: two would overwrite each other's book of damages."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise errors.Refused(
                f"another repair service works in {directory}", reason="dir-busy", hint="stop it first"
            ) from error
        yield
    finally:
        os.close(descriptor)


def now_us() -> int:
    return time.time_ns() // 1000


if __name__ == "__main__":
    main()
