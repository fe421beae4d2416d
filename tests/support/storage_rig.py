"""Real storage nodes, a real site and a real repair service: nodes killed, wiped and rotten, the service killed."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import aiohttp
from tests.support import brokers as support
from tests.support import framing

from diffkeeper import http, nats_server
from diffkeeper.domain import errors, frames, volumes
from diffkeeper.log import nats_event_log
from diffkeeper.shards import file_shard_store, nats_shard_store

TOKEN = "a token of tests"
ORIGIN = framing.ORIGIN
START_S = 40.0


class StorageRig:
    """One site, ``nodes`` storage nodes, one repair service. ``stop`` leaves nothing behind."""

    def __init__(self, under: Path, nodes: int, geometry: str, **settings: Any) -> None:
        self.under = under
        self.names = [f"node-{number:02}" for number in range(1, nodes + 1)]
        self.brokers = support.Brokers(under)
        self.repair: asyncio.subprocess.Process | None = None
        self.port = 0
        self._geometry = geometry
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None
        self._log: nats_event_log.NatsEventLog | None = None
        self._ports: dict[str, tuple[int, int]] = {}

    async def start(self) -> None:
        await asyncio.gather(*(self.brokers.start(name) for name in ["east", *self.names]))
        self._log = await self.brokers.log("east")
        await self._log.create_origin(ORIGIN)
        (self.under / "token").write_text(TOKEN)
        (self.under / "secret").write_text(support.SECRET)

    async def append(self, sent: Iterable[frames.Frame]) -> list[bytes]:
        assert self._log is not None, "started"
        last = await self._log.last(ORIGIN)
        at = last.stream_sequence if last is not None else 0
        wires = []
        for number, frame in enumerate(sent):
            await self._log.append(ORIGIN, frame, at + number)
            wires.append(frame.wire)
        return wires

    # The repair service.

    async def start_repair(self) -> None:
        """Start its process and return; ``ready`` waits until it does its work."""
        self.port = nats_server.free_port()
        config = self.under / "repair.json"
        config.write_text(json.dumps(self._config()))
        with (self.under / "repair.log").open("ab") as log:
            self.repair = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "diffkeeper_repair.main", "--config", str(config), stderr=log
            )

    def _config(self) -> dict[str, Any]:
        return {
            "dir": str(self.under / "repair"),
            "token_file": str(self.under / "token"),
            "broker_secret_file": str(self.under / "secret"),
            "sites": [{"site": "east", "servers": [self._url("east")]}],
            "nodes": [
                {"name": name, "domain": ("a", "b")[number % 2], "servers": [self._url(name)]}
                for number, name in enumerate(self.names)
            ],
            "geometry": self._geometry,
            "port": self.port,
            **self._settings,
        }

    def _url(self, name: str) -> str:
        return self.brokers.servers[name].config.client_url

    async def ready(self) -> None:
        async with asyncio.timeout(START_S):
            while True:
                try:
                    await self.call("GET", "/healthz")
                    return
                except errors.DiffKeeperError:
                    assert self.repair is not None and self.repair.returncode is None, self.log()
                    await asyncio.sleep(0.05)

    async def kill_repair(self) -> None:
        assert self.repair is not None, "started"
        if self.repair.returncode is None:
            self.repair.kill()
        await self.repair.wait()

    def log(self) -> str:
        return (self.under / "repair.log").read_text()

    async def call(self, method: str, path: str, body: Any = None, timeout_s: float = 60.0) -> Any:
        if self._session is None:
            self._session = aiohttp.ClientSession()
        url = f"http://127.0.0.1:{self.port}{path}"
        return await http.call(self._session, method, url, token=TOKEN, body=body, timeout_s=timeout_s)

    async def frame(self, sequence: int, origin: volumes.Origin = ORIGIN) -> bytes:
        """As a replicator of the site asks for it: out of the shards, for there is no other site."""
        assert self._session is not None, "something was asked before"
        path = f"/v1/volumes/{origin.volume}/frames/{origin.site}/{sequence}?site=east"
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with self._session.get(f"http://127.0.0.1:{self.port}{path}", headers=headers) as answer:
            body = await answer.read()
            assert answer.status == 200, body
            return body

    async def until_well(self, what: str) -> dict[str, Any]:
        """Seal and rebuild until the service calls everything well."""
        async with asyncio.timeout(60):
            while True:
                try:
                    await self.call("POST", "/v1/seal", {"timeout_s": 30})
                    found: dict[str, Any] = (await self.call("POST", "/v1/rebuild"))["health"]
                except errors.Transient as error:
                    found = {"ok": False, "error": error.message}
                if found["ok"]:
                    return found
                await asyncio.sleep(0.2)
        raise AssertionError(what)

    # The nodes.

    async def kill_node(self, name: str) -> None:
        await self.brokers.servers[name].kill()

    async def restart_node(self, name: str) -> None:
        await self.brokers.restart(name)

    def store(self, name: str) -> Path:
        return self.under / name / "store"

    def wipe(self, name: str) -> None:
        """A new, empty disk for a node that is down."""
        shutil.rmtree(self.store(name))

    def rot(self, name: str, rng: random.Random, bits: int) -> int:
        """Flip bits in the block files of a node that is down; how many were flipped."""
        blocks = [path for path in sorted(self.store(name).rglob("*.blk")) if path.stat().st_size]
        for _ in range(bits if blocks else 0):
            block = rng.choice(blocks)
            data = bytearray(block.read_bytes())
            place = rng.randrange(8 * len(data))
            data[place // 8] ^= 1 << place % 8
            block.write_bytes(bytes(data))
        return bits if blocks else 0

    async def export(self, name: str, to: Path) -> Path:
        """The items of a node as files."""
        store = await nats_shard_store.NatsShardStore.open(name, [self._url(name)], password=support.SECRET)
        try:
            await store.wait(10)
            files = file_shard_store.FileShardStore(name, to)
            for key in (await store.keys()).whole:
                data = await store.get(key)
                assert data is not None, "listed as whole"
                await files.put(key, data)
        finally:
            await store.close()
        return to

    async def stop(self) -> None:
        if self.repair is not None:
            await self.kill_repair()
        if self._session is not None:
            await self._session.close()
        await self.brokers.stop()
