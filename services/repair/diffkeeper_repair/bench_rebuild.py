"""``python -m diffkeeper_repair.bench_rebuild``: how fast a wiped node is filled again, and what others feel of it. JSON on stdout.

Real nats-servers on this machine, each with fsync of every message as always: the storage nodes, and a site to whose
stream a process of its own appends frames. First the service is asked to rebuild as fast as it goes, and that is set beside the disk
itself: a file of as many bytes, synced as often. Then the node is wiped again and mended within the service's budget, and
the latency of the appends meanwhile is set beside that of before. Processor seconds are those of the service and of the nodes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffkeeper import heap, nats_server, service
from diffkeeper.domain import errors, stripes
from diffkeeper.shards import nats_shard_store
from diffkeeper_repair import bench
from diffkeeper_repair.fleet import StorageNode
from diffkeeper_repair.main import now_us
from diffkeeper_repair.service import RepairService
from diffkeeper_repair.settings import RepairSettings

SECRET = "a bench"
SITE = "site"
FOREGROUND = "diffkeeper_repair.bench_foreground"
_READY_S = 30.0
_TICKS = os.sysconf("SC_CLK_TCK")


class Fleet:
    """The servers of the bench. Everything it started is gone after ``stop``."""

    def __init__(self, work: Path, count: int) -> None:
        self._work = work
        self.names = [f"node-{number:02}" for number in range(1, count + 1)]
        self._servers: dict[str, nats_server.NatsServer] = {}

    async def start(self) -> None:
        for name in (*self.names, SITE):
            config = nats_server.ServerConfig(
                name, self._work / name, nats_server.free_port(), nats_server.free_port(), SECRET
            )
            self._servers[name] = await nats_server.NatsServer.start(config)

    def url(self, name: str) -> str:
        return self._servers[name].config.client_url

    async def nodes(self) -> list[StorageNode]:
        return [
            StorageNode(
                stripes.Node(name, name),
                await nats_shard_store.NatsShardStore.open(name, [self.url(name)], password=SECRET),
            )
            for name in self.names
        ]

    async def wipe(self, name: str) -> None:
        """A new, empty disk for a node."""
        await self._servers[name].kill()
        shutil.rmtree(self._work / name / "store")
        self._servers[name] = await nats_server.NatsServer.start(self._servers[name].config)

    def processor_s(self) -> float:
        """Of the storage nodes that run now."""
        return sum(_processor_s(self._servers[name].process.pid) for name in self.names)

    async def stop(self) -> None:
        for server in self._servers.values():
            await server.kill()


def _processor_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


async def measure(work: Path, geometry: stripes.Geometry, node_mb: int, seconds: float) -> dict[str, Any]:
    fleet = Fleet(work, geometry.shards)
    try:
        await fleet.start()
        settings = RepairSettings(
            dir=str(work / "repair"),
            token_file="",
            broker_secret_file="",
            sites=(),
            nodes=(),
            geometry=str(geometry),
        )
        repair = RepairService(settings, await fleet.nodes(), {}, now_us)
        try:
            await repair.begin()
            stored = await _fill(repair, geometry, node_mb * 1_000_000)
            quiet = await _latencies(fleet, seconds)
            rebuilt = await _rebuild(fleet, repair)
            disk = await asyncio.to_thread(_disk, work / "disk", rebuilt["bytes"], rebuilt["shard_bytes"])
            busy = await _while_mending(fleet, repair, seconds)
        finally:
            await repair.close()
    finally:
        await fleet.stop()
    return {
        "geometry": str(geometry),
        "segment_bytes": stored,
        "rebuild": {**rebuilt, "disk_bytes_per_s": disk},
        "foreground": {"quiet_ms": quiet, **busy, "budget_bytes_per_s": settings.rebuild_bytes_per_s},
    }


async def _fill(repair: RepairService, geometry: stripes.Geometry, node_bytes: int) -> int:
    """Segments until each node holds so many bytes; their bytes in all."""
    stored, segment, number = 0, bench.a_segment(0), 0
    while stored < node_bytes * geometry.data:
        # Each has other bytes at its end and a place of its own; to make all of them anew would take longest of all.
        last = segment.wires[-1][:-8] + number.to_bytes(8, "big")
        made = replace(segment, first_sequence=1 + number, wires=(*segment.wires[:-1], last))
        stored += (await repair.io.write(made, geometry)).segment_bytes
        number += 1
    return stored


async def _rebuild(fleet: Fleet, repair: RepairService) -> dict[str, Any]:
    """As fast as it goes, as ``dkctl rebuild`` has it done."""
    await _lose_a_node(fleet, repair)
    nodes_s, own_s, began = fleet.processor_s(), _own_s(), time.perf_counter()
    progress = await repair.rebuilder.round(patient=False)
    took = time.perf_counter() - began
    if progress.failed or not progress.shards_written:
        raise errors.DiffKeeperError(
            f"the node was not rebuilt: {progress.failed[:1] or 'nothing was missing'}", reason="bench-failed"
        )
    return {
        "bytes": progress.bytes_written,
        "shard_bytes": progress.bytes_written // progress.shards_written,
        "bytes_per_s": progress.bytes_written / took,
        "processor_s": _own_s() - own_s,
        "nodes_processor_s": fleet.processor_s() - nodes_s,
    }


async def _lose_a_node(fleet: Fleet, repair: RepairService) -> None:
    """And wait until it is there again, empty."""
    name = fleet.names[0]
    await fleet.wipe(name)
    async with asyncio.timeout(_READY_S):
        while True:
            await repair.fleet.look()
            if repair.fleet.answers(name) and not repair.catalogue.held(name):
                return
            await asyncio.sleep(0.1)


async def _while_mending(fleet: Fleet, repair: RepairService, seconds: float) -> dict[str, Any]:
    """Appends while the service mends within its budget, for as long as there is something to mend."""
    await _lose_a_node(fleet, repair)
    before = repair.rebuilder.bytes_written_total
    mending = asyncio.create_task(repair.rebuilder.round(patient=True))
    try:
        found = await _latencies(fleet, seconds)
        written, over = repair.rebuilder.bytes_written_total - before, mending.done()
    finally:
        mending.cancel()
        await asyncio.gather(mending, return_exceptions=True)
    return {"mending_ms": found, "mended_bytes": written, "mended_all": over}


async def _latencies(fleet: Fleet, seconds: float) -> list[float]:
    """Milliseconds of each append to the site's stream, by a process of its own."""
    argv = [sys.executable, "-m", FOREGROUND, "--url", fleet.url(SITE), "--seconds", str(seconds)]
    child = await asyncio.create_subprocess_exec(
        *argv, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await child.communicate(SECRET.encode())
    if child.returncode:
        raise errors.DiffKeeperError(
            f"{FOREGROUND} ended with code {child.returncode}", reason="bench-failed"
        )
    found: list[float] = json.loads(out)
    return found


def _disk(path: Path, size: int, each: int) -> float:
    """Bytes a second of a file written and synced piece by piece, as a node does it."""
    piece = os.urandom(each)
    began = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(max(1, size // each)):
            file.write(piece)
            os.fsync(file.fileno())
    took = time.perf_counter() - began
    path.unlink()
    return size / took


def _own_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="diffkeeper-rebuild-bench", description=__doc__)
    parser.add_argument("--geometry", default="4+2", metavar="K+M")
    parser.add_argument("--node-mb", type=int, default=256, help="Of shards on each node.")
    parser.add_argument("--seconds", type=float, default=10.0, help="Of appends, before and while mending.")
    parser.add_argument("--work", type=Path, help="Where the nodes' stores stand meanwhile.")
    options = parser.parse_args(arguments)
    service.configure_log()
    heap.hold()
    work = Path(tempfile.mkdtemp(prefix="dk-rebuild-", dir=options.work))
    try:
        found = asyncio.run(measure(work, stripes.parse(options.geometry), options.node_mb, options.seconds))
    finally:
        shutil.rmtree(work)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
