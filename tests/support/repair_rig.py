"""A repair service in memory: nodes that can be lost, rotten and lying, streams that can lose messages."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from tests.support import framing

from diffkeeper.domain import frames, stripes, volumes
from diffkeeper.domain.shard_headers import Key
from diffkeeper.log import memory_event_log
from diffkeeper.shards.memory_shard_store import MemoryShardStore
from diffkeeper_repair.fleet import StorageNode
from diffkeeper_repair.service import RepairService
from diffkeeper_repair.settings import RepairSettings

ORIGIN = framing.ORIGIN


class RepairRig:
    """``nodes`` storage nodes in two failure domains, and two sites."""

    def __init__(self, directory: Path, nodes: int, geometry: str, **settings: Any) -> None:
        self.broker = memory_event_log.MemoryBroker()
        self.logs = {site: memory_event_log.MemoryEventLog(self.broker, site) for site in ("east", "west")}
        self.stores = {
            f"node-{number:02}": MemoryShardStore(f"node-{number:02}") for number in range(1, nodes + 1)
        }
        self.now_us = 1_700_000_000_000_000
        self._settings = RepairSettings(
            dir=str(directory),
            token_file="",
            broker_secret_file="",
            sites=(),
            nodes=(),
            geometry=geometry,
            **settings,
        )
        self.service = self.make()

    def want(self, geometry: str) -> None:
        """From the next ``make`` on."""
        self._settings = msgspec.structs.replace(self._settings, geometry=geometry)

    def make(self) -> RepairService:
        """The service as after a start of its process: it knows what the disk and the nodes know."""
        nodes = [
            StorageNode(stripes.Node(name, ("east", "west")[number % 2]), store)
            for number, (name, store) in enumerate(self.stores.items())
        ]
        self.service = RepairService(self._settings, nodes, self.logs, lambda: self.now_us)
        return self.service

    async def begin(self) -> RepairService:
        await self.service.begin()
        return self.service

    async def log(self, sent: Iterable[frames.Frame], origin: volumes.Origin = ORIGIN) -> list[frames.Frame]:
        """Frames into the stream of ``origin``, mirrored at the other site."""
        log = self.logs[origin.site]
        await log.create_origin(origin)
        for site, other in self.logs.items():
            if site != origin.site:
                await other.create_mirror(origin)
        last = await log.last(origin)
        at = last.stream_sequence if last is not None else 0
        appended = list(sent)
        for number, frame in enumerate(appended):
            await log.append(origin, frame, at + number)
        return appended

    async def seal(self) -> None:
        """Everything that is in the streams now."""
        sealing = asyncio.create_task(self.service.sealers.run())
        flushing = asyncio.create_task(self.service.sealers.flush(20))
        await asyncio.wait({sealing, flushing}, return_when=asyncio.FIRST_COMPLETED)
        ended = sealing if sealing.done() else flushing
        for task in (sealing, flushing):
            task.cancel()
        await asyncio.gather(sealing, flushing, return_exceptions=True)
        ended.result()

    async def mend(self, *, patient: bool = False) -> None:
        await self.service.fleet.look()
        await self.service.survey()
        await self.service.rebuilder.round(patient=patient)

    def items(self, *, manifests: bool = False) -> list[tuple[str, Key]]:
        return [
            (name, key)
            for name, store in self.stores.items()
            for key in sorted(store.items)
            if (key.index < 0) == manifests
        ]

    def lose_streams(self, origin: volumes.Origin = ORIGIN, count: int | None = None) -> None:
        """The first messages of a stream, or all of them, at every site."""
        for site in self.logs:
            messages = self.broker.stream(site, origin).messages
            for place in range(len(messages) if count is None else count):
                messages[place] = None

    def flip(self, node: str, key: Key, bit: int) -> None:
        data = bytearray(self.stores[node].items[key])
        data[bit // 8] ^= 1 << bit % 8
        self.stores[node].items[key] = bytes(data)

    async def read_all(self, origin: volumes.Origin = ORIGIN) -> list[bytes]:
        """Every sealed frame of a stream, as the service decodes it from what the nodes hold."""
        wires: list[bytes] = []
        for span, entry in self.service.catalogue.spans(origin):
            segment = (await self.service.io.read(entry)).segment
            wires += segment.wires[max(0, len(wires) + 1 - span.first_sequence) :]
        return wires
