"""The repair service put together from its parts; what several of them answer together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from diffkeeper.domain import errors, stripes
from diffkeeper.log import event_log
from diffkeeper_repair import health
from diffkeeper_repair.beyond_parity import BeyondParity
from diffkeeper_repair.catalogue import Catalogue
from diffkeeper_repair.damages import DamageBook
from diffkeeper_repair.fleet import StorageFleet, StorageNode
from diffkeeper_repair.frame_finder import FrameFinder
from diffkeeper_repair.memory import Memory
from diffkeeper_repair.merger import Merger
from diffkeeper_repair.rebuilder import Rebuilder
from diffkeeper_repair.recoder import Recoder
from diffkeeper_repair.scrubber import Scrubber
from diffkeeper_repair.sealers import Sealers
from diffkeeper_repair.settings import RepairSettings
from diffkeeper_repair.streams import Streams
from diffkeeper_repair.stripe_io import StripeIO


class RepairService:
    def __init__(
        self,
        wanted: RepairSettings,
        nodes: Sequence[StorageNode],
        logs: Mapping[str, event_log.EventLog],
        now_us: Callable[[], int],
    ) -> None:
        directory = Path(wanted.dir)
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.now_us = now_us
        self.geometry = choose_geometry(wanted.geometry, len(nodes))
        self._geometry_of = {
            volume: choose_geometry(text, len(nodes)) for volume, text in wanted.geometry_of.items()
        }
        self.catalogue = Catalogue()
        self.book = DamageBook(directory / "damages.json", now_us)
        self.memory = Memory(directory / "memory.json")
        self.fleet = StorageFleet(nodes, self.catalogue, self.book, self.memory, now_us, wanted.grace_s)
        self.io = StripeIO(
            self.fleet, self.catalogue, self.book, BeyondParity(self.catalogue, Streams(logs)), now_us
        )
        self.rebuilder = Rebuilder(self.fleet, self.catalogue, self.book, self.io, wanted.rebuild_bytes_per_s)
        self.scrubber = Scrubber(
            self.fleet,
            self.catalogue,
            self.book,
            self.io,
            self.memory,
            self.rebuilder.wanted.set,
            now_us,
            wanted.scrub_bytes_per_s,
            wanted.scrub_every_s,
        )
        self.merger = Merger(
            self.catalogue, self.rebuilder, self.io, self.geometry_of, wanted.scrub_bytes_per_s
        )
        self.recoder = Recoder(
            self.catalogue,
            self.rebuilder,
            self.io,
            self.geometry_of,
            wanted.scrub_bytes_per_s,
        )
        self.sealers = Sealers(logs, self.catalogue, self.book, self.io, self.geometry_of, wanted.seal_age_s)
        self.finder = FrameFinder(logs, self.catalogue, self.io)
        # Set once what the nodes hold is known as well as it can be.
        self.surveyed = asyncio.Event()

    def geometry_of(self, volume: str) -> stripes.Geometry:
        return self._geometry_of.get(volume, self.geometry)

    async def begin(self) -> None:
        """Find out what there is: nothing is sealed before, or the same frames would be sealed twice."""
        self.book.load()
        self.memory.load()
        await self._first_answers()
        await self.survey()

    async def _first_answers(self, patience_s: float = 5.0) -> None:
        """Every node gets a little time to be found; one that is away does not hold up the others for ever."""
        deadline = asyncio.get_running_loop().time() + patience_s
        while True:
            await self.fleet.look()
            away = [node for node in self.fleet.nodes.values() if not node.answers]
            if not away or asyncio.get_running_loop().time() > deadline:
                return
            await asyncio.sleep(0.1)

    async def survey(self) -> None:
        """Read the manifest of every stripe that has none in memory yet."""
        slots = asyncio.Semaphore(16)

        async def load(stripe_entry: Any) -> None:
            async with slots:
                await self.io.load_manifest(stripe_entry)

        await asyncio.gather(*(load(entry) for entry in list(self.catalogue.entries.values())))
        self.recoder.recognise()
        self.surveyed.set()

    async def run(self) -> None:
        """Everything the service does by itself, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.fleet.watch(), name="watch the nodes")
            group.create_task(self.book.run(), name="keep the book")
            group.create_task(self._follow_changes(), name="follow the nodes")
            group.create_task(self._seal(), name="seal")
            group.create_task(self.rebuilder.run(), name="rebuild")
            group.create_task(self.scrubber.run(), name="scrub")
            group.create_task(self.recoder.run(), name="recode")
            group.create_task(self.merger.run(), name="merge")

    async def _seal(self) -> None:
        # Without a majority of what is known, "not sealed yet" may only mean "not seen yet".
        while not self._sees_enough():  # noqa: ASYNC110  the nodes themselves tell nobody
            await asyncio.sleep(0.2)
        await self.survey()
        await self.sealers.run()

    def _sees_enough(self) -> bool:
        answering = sum(node.answers for node in self.fleet.nodes.values())
        return answering >= min(self.geometry.data + 1, len(self.fleet.nodes))

    async def _follow_changes(self) -> None:
        while True:
            await self.fleet.changed.wait()
            self.fleet.changed.clear()
            await self.survey()
            self.rebuilder.wanted.set()

    async def drain(self, name: str, *, draining: bool) -> None:
        """Empty a node, or take it into use again."""
        if name not in self.fleet.nodes:
            raise errors.NotFound(
                f"there is no storage node {name}", reason="unknown-node", hint="dkctl nodes"
            )
        self.memory.drain(name, draining=draining)
        self.fleet.changed.set()

    async def rebuild(self) -> dict[str, Any]:
        """Mend everything now, waiting for nobody; then sweep what killed writers left."""
        await self.fleet.look()
        await self.survey()
        progress = await self.rebuilder.round(patient=False)
        await self.rebuilder.sweep()
        answer: dict[str, Any] = msgspec.to_builtins(progress)
        return answer

    async def scrub(self) -> dict[str, Any]:
        found = await self.scrubber.full_tour()
        self.rebuilder.wanted.set()
        return {"found": found, **msgspec.to_builtins(self.scrubber.progress())}

    def health(self) -> dict[str, Any]:
        return health.report(self)

    async def close(self) -> None:
        await self.fleet.close()


def choose_geometry(text: str | None, nodes: int) -> stripes.Geometry:
    geometry = stripes.parse(text) if text is not None else stripes.default(nodes)
    if geometry.shards > nodes:
        raise errors.Misconfigured(
            f"the geometry {geometry} needs {geometry.shards} storage nodes and there are {nodes}",
            reason="too-few-nodes",
            hint=f"--storage-nodes {geometry.shards}, or a geometry of at most {nodes} shards",
        )
    return geometry
