"""The storage nodes and the repair service of an embedded deployment, as children of control like those of the sites.

A storage node is a nats-server with a JetStream domain of its own and no link to any other, so that reading a shard
never needs anybody's consent. Nodes are started before the repair service and stopped after it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import structlog

from diffkeeper import atomic_files, http, nats_server
from diffkeeper.domain import errors
from diffkeeper_control import deployment, processes, settings, storage_notes
from diffkeeper_control.deployment import HOST, Deployment, Layout
from diffkeeper_control.storage_notes import NotedProcess, Storage
from diffkeeper_control.supervisor import Child, Recipe

REPAIR_MODULE = "diffkeeper_repair.main"
START_TIMEOUT_S = 20.0
NODE_GRACE_S = 10.0
REPAIR_GRACE_S = 10.0
# Side by side, and not all at once: each nats-server reads its whole store when it starts.
STARTS_AT_ONCE = 4

_log = structlog.get_logger("storage")


class StorageNodes:
    """Without storage in the note there is nothing to do, and every call does nothing."""

    def __init__(
        self, layout: Layout, note: Deployment, secret: str, token: str, session: aiohttp.ClientSession
    ) -> None:
        self._layout = layout
        self._note = note
        self._secret = secret
        self._token = token
        self._session = session
        self._changing = asyncio.Lock()
        self.children = {name: Child(self._node_recipe(name), self._save) for name in self._names()}
        self.repair = Child(self._repair_recipe(), self._save) if self.storage is not None else None
        self._inherited = self._take_inheritance()

    @property
    def storage(self) -> Storage | None:
        return self._note.storage

    def _names(self) -> list[str]:
        return list(self.storage.nodes) if self.storage is not None else []

    # -- life ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Every node that is not stopped, then the repair service; adopts those that still run."""
        if self.storage is None:
            return
        slots = asyncio.Semaphore(STARTS_AT_ONCE)
        patient = bool(self._inherited)

        async def start(name: str) -> None:
            async with slots:
                await self._begin(name, patient=patient)

        outcomes = await asyncio.gather(
            *(start(name) for name, node in self.storage.nodes.items() if not node.stopped),
            return_exceptions=True,
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        await self._begin_repair(patient=patient)
        _log.info("storage started", nodes=len(self.children))

    async def stop(self) -> None:
        await self.stop_repair()
        await asyncio.gather(*(child.stop() for child in self.children.values()))

    async def stop_repair(self) -> None:
        """First of all: it uses everything else."""
        if self.repair is not None:
            await self.repair.stop()

    # -- one node --------------------------------------------------------------------------------------------

    async def stop_node(self, name: str, *, kill: bool) -> dict[str, Any]:
        async with self._changing:
            child = self._child(name)
            self._mark(name, stopped=True)
            if kill and child.identity is not None:
                doomed = child.identity
                await processes.kill_all([doomed])
                await child.forget()
                child.forget_process()
            else:
                await child.stop()
        return self.view(name)

    async def start_node(self, name: str) -> dict[str, Any]:
        async with self._changing:
            self._child(name)
            if self._node(name).stopped:
                self._mark(name, stopped=False)
                await self._begin(name, patient=False)
        return self.view(name)

    async def replace_node(self, name: str) -> dict[str, Any]:
        """A new, empty disk for a node. The old store is moved aside, never deleted."""
        async with self._changing:
            child = self._child(name)
            await child.stop()
            store = self.directory(name)
            if store.exists():
                aside = store.with_name(f"{name}.replaced-{time.time_ns() // 1000}")
                store.rename(aside)
                _log.warning("a node's store was moved aside", node=name, path=str(aside))
            self._mark(name, stopped=False)
            await self._begin(name, patient=False)
        return self.view(name)

    async def remove_node(self, name: str) -> dict[str, Any]:
        """Take a drained node out of the deployment; its store stays on disk. The caller has seen that it is empty."""
        async with self._changing:
            child = self._child(name)
            storage = self.storage
            assert storage is not None, "there is a child"
            left = {other: node for other, node in storage.nodes.items() if other != name}
            storage_notes.wish(
                Storage(geometry=storage.geometry, repair_port=0, nodes=left),
                list(self._note.sites),
                len(left),
                None,
            )
            await self.stop_repair()
            await child.stop()
            del self.children[name]
            storage.nodes = left
            self._save()
            await self._begin_repair(patient=True)
        return {"node": name, "removed": True}

    # -- views -----------------------------------------------------------------------------------------------

    def view(self, name: str) -> dict[str, Any]:
        noted = self._node(name)
        return {
            "node": name,
            "domain": noted.domain,
            "stopped": noted.stopped,
            "store": str(self.directory(name)),
            **self.children[name].status(),
        }

    def status(self) -> dict[str, Any]:
        storage = self.storage
        if storage is None or self.repair is None:
            return {"geometry": None, "nodes": [], "repair": None}
        return {
            "geometry": storage.geometry,
            "nodes": [self.view(name) for name in storage.nodes],
            "repair": self.repair.status(),
        }

    def directory(self, name: str) -> Path:
        return self._layout.dir / "storage" / name

    # -- inside ----------------------------------------------------------------------------------------------

    def _child(self, name: str) -> Child:
        child = self.children.get(name)
        if child is None:
            raise errors.NotFound(
                f"there is no storage node {name}", reason="unknown-node", hint="dkctl nodes"
            )
        return child

    def _node(self, name: str) -> storage_notes.StorageNode:
        assert self.storage is not None, "only storage has nodes"
        return self.storage.nodes[name]

    def _take_inheritance(self) -> dict[str, NotedProcess]:
        """What an earlier control left running, until each has been adopted or replaced."""
        if self.storage is None:
            return {}
        found = {name: node.process for name, node in self.storage.nodes.items() if node.process is not None}
        if self.storage.repair is not None:
            found[""] = self.storage.repair
        return found

    async def _begin(self, name: str, *, patient: bool) -> None:
        self.directory(name).mkdir(parents=True, exist_ok=True, mode=0o700)
        own = str(self._node_config(name).config_path)
        await self._adopt_or_start(self.children[name], name, own, NODE_GRACE_S, patient=patient)

    async def _begin_repair(self, *, patient: bool) -> None:
        assert self.repair is not None, "there is storage"
        wanted, before = self._repair_settings(), _read(self._repair_config())
        atomic_files.write_json(self._repair_config(), wanted)
        noted = self._inherited.get("")
        if noted is not None and before != wanted:
            # One that still runs knows other nodes than there are now.
            self._inherited.pop("")
            await processes.stop(processes.ProcessId(noted.pid, noted.start_ticks), REPAIR_GRACE_S)
        own = str(self._repair_config())
        await self._adopt_or_start(self.repair, "", own, REPAIR_GRACE_S, patient=patient)

    async def _adopt_or_start(
        self, child: Child, name: str, own: str, grace_s: float, *, patient: bool
    ) -> None:
        noted = self._inherited.get(name)
        adopted = noted is not None and await child.adopt(
            deployment.Process(noted.pid, noted.start_ticks, noted.started_us)
        )
        self._inherited.pop(name, None)
        if adopted:
            return
        for stray in processes.with_argument(own):
            _log.warning("ending a stray process", child=name or "repair", pid=stray.pid)
            await processes.stop(stray, grace_s)
        await child.start(patient=patient)

    def _mark(self, name: str, *, stopped: bool) -> None:
        self._node(name).stopped = stopped
        self._save()

    def _save(self) -> None:
        storage = self.storage
        if storage is None:
            return
        for name, child in self.children.items():
            if name in storage.nodes:
                storage.nodes[name].process = _noted(child) or self._inherited.get(name)
        if self.repair is not None:
            storage.repair = _noted(self.repair) or self._inherited.get("")
        deployment.save(self._layout, self._note)

    def _node_config(self, name: str) -> nats_server.ServerConfig:
        noted = self._node(name)
        return nats_server.ServerConfig(
            name, self.directory(name), noted.nats_port, noted.monitor_port, self._secret
        )

    def _node_recipe(self, name: str) -> Recipe:
        config = self._node_config(name)

        async def launch() -> processes.ProcessId:
            return (await nats_server.NatsServer.start(config, START_TIMEOUT_S)).process

        async def works() -> bool:
            server = nats_server.NatsServer(config, processes.ProcessId(0, 0))
            try:
                nats_server.check_fitness(config, await server.varz())
            except errors.Transient:
                return False
            return True

        site = self._node(name).domain
        return Recipe(
            name, site, config.client_url, str(config.log_path), launch, works, START_TIMEOUT_S, NODE_GRACE_S
        )

    def _repair_recipe(self) -> Recipe:
        assert self.storage is not None, "there is storage"
        address = settings.address(self.storage.repair_port)
        log = self._layout.logs / "repair.log"

        async def launch() -> processes.ProcessId:
            argv = [sys.executable, "-m", REPAIR_MODULE, "--config", str(self._repair_config())]
            return processes.spawn(argv, log)

        async def works() -> bool:
            try:
                await http.call(self._session, "GET", f"{address}/healthz", token=self._token, timeout_s=2.0)
            except errors.DiffKeeperError:
                return False  # 503 until it knows what the nodes hold
            return True

        return Recipe("repair", "", address, str(log), launch, works, START_TIMEOUT_S, REPAIR_GRACE_S)

    def _repair_config(self) -> Path:
        return self._layout.dir / "repair" / "repair.json"

    def _repair_settings(self) -> dict[str, Any]:
        """Its shape belongs to the repair service."""
        storage = self.storage
        assert storage is not None, "there is storage"
        self._repair_config().parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return {
            "dir": str(self._layout.dir / "repair"),
            "token_file": str(self._layout.token),
            "broker_secret_file": str(self._layout.secret),
            "sites": [
                {"site": site, "servers": settings.broker_urls(self._note, site)} for site in self._note.sites
            ],
            "nodes": [
                {"name": name, "domain": node.domain, "servers": [f"nats://{HOST}:{node.nats_port}"]}
                for name, node in storage.nodes.items()
            ],
            "geometry": storage.geometry,
            "host": HOST,
            "port": storage.repair_port,
        }


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def _noted(child: Child) -> NotedProcess | None:
    process = child.process
    return NotedProcess(process.pid, process.start_ticks, process.started_us) if process is not None else None
