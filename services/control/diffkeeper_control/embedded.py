"""A whole deployment as child processes of this machine: started in order, adopted, watched, stopped, killed.

Per site: its link server, its brokers side by side, then replicator, then capture agent, each started once what it
needs works. The children live in their own sessions and outlive control; the next control adopts those that still run and answer, and
starts the others. A site that was stopped is not started again until it is asked for, also not by the next
control.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import aiohttp
import structlog

from diffkeeper import atomic_files, nats_server, pins, topology
from diffkeeper import settings as daemon_settings
from diffkeeper.domain import errors
from diffkeeper_control import deployment, processes, settings
from diffkeeper_control.deployment import Deployment, Layout
from diffkeeper_control.sites import Service, SiteClients
from diffkeeper_control.supervisor import Child, Recipe

SERVICES = ("replicator", "agent")
MODULES = {"replicator": "diffkeeper_replicator.main", "agent": "diffkeeper_capture.main"}
START_TIMEOUT_S = 20.0
SERVICE_GRACE_S = 8.0
BROKER_GRACE_S = 10.0
# A cluster that starts, or starts again, elects a leader first (4 to 9 s in nats-server 2.15).
QUORUM_TIMEOUT_S = 40.0
QUORUM_LOOK_S = 0.1

# What must happen at a site between the start of one child and the next, such as fencing before an agent
# begins.
BeforeRole = Callable[[str, str], Awaitable[None]]

_log = structlog.get_logger("embedded")


class Embedded:
    """The children of a deployment. ``note`` is kept in step with them on disk."""

    def __init__(self, layout: Layout, note: Deployment, session: aiohttp.ClientSession) -> None:
        self.layout = layout
        self.session = session
        self.note = note
        self.session = session
        self.token = daemon_settings.read_token(layout.token)
        self.secret = daemon_settings.read_token(layout.secret)
        self.clients = {site: self._clients(session, site) for site in note.sites}
        self.children = {
            site: {role: Child(self._recipe(site, role), self._save) for role in self._roles(site)}
            for site in note.sites
        }
        # What an earlier control left, until each has been adopted or replaced: a save in between must not
        # lose it.
        self._inherited = {site: dict(noted.processes) for site, noted in note.sites.items()}
        # One change of a site at a time: stop during start waits, two starts do not race.
        self._changing = {site: asyncio.Lock() for site in note.sites}
        self._since_us = {site: time.time_ns() // 1000 for site in note.sites}

    @property
    def sites(self) -> list[str]:
        return list(self.note.sites)

    def _brokers(self, site: str) -> list[str]:
        return list(deployment.broker_roles(self.note, site))

    def _roles(self, site: str) -> list[str]:
        return [*self._brokers(site), *SERVICES]

    def is_stopped(self, site: str) -> bool:
        return self.note.sites[site].stopped

    def has_processes(self, site: str) -> bool:
        return any(child.is_running() for child in self.children[site].values())

    def since_us(self, site: str) -> int:
        return self._since_us[site]

    async def start_all(self, before: BeforeRole) -> None:
        """Every site that is not stopped, side by side; raises the first failure once all have settled.

        Where an earlier control left anything running, a child that does not start is tried again instead:
        what runs must not be taken down for it.
        """
        for site in self.sites:
            if self.is_stopped(site):
                await self._end_inherited(site)
        patient = any(site.processes for site in self.note.sites.values())
        waiting = [
            self._start_locked(site, before, patient=patient)
            for site in self.sites
            if not self.is_stopped(site)
        ]
        await _all(waiting)

    async def start_site(self, site: str, before: BeforeRole) -> None:
        """Bring a stopped site back; nothing to do for one that runs."""
        async with self._changing[site]:
            if not self.is_stopped(site):
                return
            self._mark(site, stopped=False)
            try:
                await self._start(site, before, patient=False)
            except BaseException:
                await self._stop_children(site)
                self._mark(site, stopped=True)
                raise

    async def stop_site(self, site: str) -> None:
        """Agent, replicator, broker, each asked first; the programs are the caller's to end."""
        async with self._changing[site]:
            self._mark(site, stopped=True)
            await self._stop_children(site)
            pins.remove(self.layout.capture(site))
            await self.clients[site].close()

    async def start_node(self, node: str) -> str:
        """Bring one broker back; its site. Nothing to do for one that runs, or whose whole site is stopped."""
        site, role = deployment.find_node(self.note, node)
        async with self._changing[site]:
            if deployment.broker(self.note, site, role).stopped:
                self._mark_node(site, role, stopped=False)
                if not self.is_stopped(site):
                    await self._start_broker(site, role, patient=True)
        return site

    async def stop_node(self, node: str, *, kill: bool) -> str:
        """End one broker, by SIGKILL as its machine's death would or in order; its site. It stays stopped."""
        site, role = deployment.find_node(self.note, node)
        child = self.children[site][role]
        self._mark_node(site, role, stopped=True)
        if kill and child.identity is not None:
            await processes.kill_all({child.identity})
        async with self._changing[site]:
            await child.stop()
        return site

    async def empty_node(self, node: str) -> Path | None:
        """Start a broker again with an empty disk, which its cluster fills; where its store was moved.

        Only the newest store that was moved aside is kept: the others hold everything, or this is not called.
        """
        site, role = deployment.find_node(self.note, node)
        store = self.server_config(site, role).store_dir
        async with self._changing[site]:
            await self.children[site][role].stop()
            aside = await asyncio.to_thread(_move_aside, store)
            if not self.is_stopped(site):
                await self._start_broker(site, role, patient=True)
        return aside

    def nodes(self, site: str) -> dict[str, str]:
        """The site's own brokers: role by node name, without those that were stopped on purpose."""
        return {
            node: role
            for role, node in deployment.broker_roles(self.note, site).items()
            if role != deployment.LINK and not deployment.broker(self.note, site, role).stopped
        }

    async def kill_site(self, site: str, programs: set[processes.ProcessId]) -> list[int]:
        """SIGKILL everything of a site at once, as a power cut would; the numbers of what was killed."""
        self._mark(site, stopped=True)
        children = list(self.children[site].values())
        doomed = programs | {child.identity for child in children if child.identity is not None}
        # Killed before anything is awaited: nobody of the site gets to finish a sentence.
        killed = await processes.kill_all(doomed)
        async with self._changing[site]:
            for child in children:
                await child.forget()
            left = {child.identity for child in children if child.identity is not None}
            killed += await processes.kill_all(left)
            for child in children:
                child.forget_process()
            # Of a machine that lost its power the kernel would have nothing either.
            pins.remove(self.layout.capture(site))
            await self.clients[site].close()
        return sorted(set(killed))

    async def stop_all(self) -> None:
        """End every child, agents of all sites first; the sites are not marked stopped."""
        for role in reversed(SERVICES):
            await _all(self.children[site][role].stop() for site in self.sites)
        await _all(self.children[site][role].stop() for site in self.sites for role in self._brokers(site))
        for site in self.sites:
            pins.remove(self.layout.capture(site))
            await self.clients[site].close()

    async def leave_all(self) -> None:
        """Stop watching; the children live on for the next control."""
        for site in self.sites:
            for child in self.children[site].values():
                await child.release()
            await self.clients[site].close()

    def statuses(self, site: str) -> list[dict[str, Any]]:
        return [
            {**child.status(), "node": self.node_of(site, role)}
            for role, child in self.children[site].items()
        ]

    def node_of(self, site: str, role: str) -> str | None:
        """The node whose broker a child is; None for the services of the site."""
        return deployment.broker_roles(self.note, site).get(role)

    async def _end_inherited(self, site: str) -> None:
        """A control that died while it stopped a site may have left some of it."""
        for noted in self._inherited[site].values():
            identity = processes.ProcessId(noted.pid, noted.start_ticks)
            if processes.is_running(identity):
                await processes.stop(identity, SERVICE_GRACE_S)
        self._inherited[site].clear()
        self._save()

    async def _start_locked(self, site: str, before: BeforeRole, *, patient: bool) -> None:
        async with self._changing[site]:
            await self._start(site, before, patient=patient)

    async def _start(self, site: str, before: BeforeRole, *, patient: bool) -> None:
        self.layout.make([site])
        brokers = self._brokers(site)
        # A node that does not start must not keep a site down that has a majority without it.
        several = len(brokers) > 1
        # The link server first: brokers that do not find their own link to another site's, and would hang with it.
        links = [role for role in brokers if role == deployment.LINK]
        for part in (links, [role for role in brokers if role not in links]):
            await _all(self._start_broker(site, role, patient=patient or several) for role in part)
        await self._wait_for_quorum(site)
        for role in SERVICES:
            await before(site, role)
            await self._start_child(site, role, patient=patient)
        _log.info("site started", site=site)

    async def _start_broker(self, site: str, role: str, *, patient: bool) -> None:
        if deployment.broker(self.note, site, role).stopped:
            self._inherited[site].pop(role, None)
            return
        self.layout.nats(site, role).mkdir(parents=True, exist_ok=True, mode=0o700)
        await self._start_child(site, role, patient=patient)

    async def _start_child(self, site: str, role: str, *, patient: bool) -> None:
        child = self.children[site][role]
        noted = self._inherited[site].get(role)
        adopted = noted is not None and await child.adopt(noted)
        self._inherited[site].pop(role, None)
        if not adopted:
            await self._end_strays(site, role)
            await child.start(patient=patient)

    async def _wait_for_quorum(self, site: str) -> None:
        """Until the site's JetStream answers: one server at once, several once they have a leader."""
        until = time.monotonic() + QUORUM_TIMEOUT_S
        while True:
            try:
                await self.clients[site].broker.log()
            except errors.Transient as error:
                if time.monotonic() > until:
                    troubles = [child.trouble for child in self.children[site].values() if child.trouble]
                    raise errors.Unreachable(
                        f"the brokers of site {site} have no majority: {'; '.join(troubles) or error.message}",
                        reason="site-without-quorum",
                        hint=f"read the logs below {self.layout.site(site)}",
                        site=site,
                    ) from error
                await asyncio.sleep(QUORUM_LOOK_S)
            else:
                return

    async def _stop_children(self, site: str) -> None:
        for role in reversed(SERVICES):
            await self.children[site][role].stop()
        await _all(self.children[site][role].stop() for role in self._brokers(site))

    async def _end_strays(self, site: str, role: str) -> None:
        """A child that an earlier control started and had no time to note holds the port of the new one."""
        is_service = role in SERVICES
        own = self.layout.settings(site, role) if is_service else self.server_config(site, role).config_path
        for stray in processes.with_argument(str(own)):
            _log.warning("ending a stray process", site=site, child=role, pid=stray.pid)
            await processes.stop(stray, SERVICE_GRACE_S if is_service else BROKER_GRACE_S)

    def _mark(self, site: str, *, stopped: bool) -> None:
        self.note.sites[site].stopped = stopped
        self._since_us[site] = time.time_ns() // 1000
        self._save()

    def _mark_node(self, site: str, role: str, *, stopped: bool) -> None:
        deployment.broker(self.note, site, role).stopped = stopped
        self._save()

    def _save(self) -> None:
        for site, children in self.children.items():
            ours = {role: child.process for role, child in children.items() if child.process is not None}
            self.note.sites[site].processes = {**self._inherited[site], **ours}
        deployment.save(self.layout, self.note)

    def _clients(self, session: aiohttp.ClientSession, site: str) -> SiteClients:
        ports = self.note.sites[site]
        return SiteClients(
            site,
            session,
            token=self.token,
            agent=settings.address(ports.agent_port),
            replicator=settings.address(ports.replicator_port),
            brokers=settings.broker_urls(self.note, site),
            secret=self.secret,
        )

    def _recipe(self, site: str, role: str) -> Recipe:
        if role not in SERVICES:
            return self._broker_recipe(site, role)
        client: Service = getattr(self.clients[site], role)

        async def launch() -> processes.ProcessId:
            write = settings.of_agent if role == "agent" else settings.of_replicator
            path = self.layout.settings(site, role)
            atomic_files.write_json(path, write(self.layout, self.note, site))
            argv = [sys.executable, "-m", MODULES[role], "--config", str(path)]
            return processes.spawn(argv, self.layout.log(site, role))

        async def works() -> bool:
            try:
                await client.status()
            except errors.Transient:
                return False
            return True

        return Recipe(
            role,
            site,
            client.address,
            str(self.layout.log(site, role)),
            launch,
            works,
            START_TIMEOUT_S,
            SERVICE_GRACE_S,
        )

    def _broker_recipe(self, site: str, role: str) -> Recipe:
        config = self.server_config(site, role)

        async def launch() -> processes.ProcessId:
            return (await nats_server.NatsServer.start(config, START_TIMEOUT_S)).process

        async def works() -> bool:
            # Nothing is asked of the process itself: the port is its own while it runs, and start checked it.
            server = nats_server.NatsServer(config, processes.ProcessId(0, 0))
            try:
                nats_server.check_fitness(config, await server.varz())
            except errors.Transient:
                return False
            return True

        return Recipe(
            role,
            site,
            config.client_url,
            str(config.log_path),
            launch,
            works,
            START_TIMEOUT_S,
            BROKER_GRACE_S,
        )

    def server_config(self, site: str, role: str) -> nats_server.ServerConfig:
        places = deployment.places(self.layout, self.note)
        if role == deployment.LINK:
            return topology.link_config(places, site, self.secret)
        node = deployment.broker_roles(self.note, site)[role]
        return topology.node_config(places, site, node, self.secret)


def _move_aside(store: Path) -> Path | None:
    if not store.exists():
        return None
    for older in store.parent.glob(f"{store.name}.damaged-*"):
        shutil.rmtree(older) if older.is_dir() else older.unlink()
    return store.rename(store.with_name(f"{store.name}.damaged-{time.time_ns() // 1000}"))


async def _all(works: Iterable[Awaitable[None]]) -> None:
    """Side by side; raises the first failure once all have settled."""
    for outcome in await asyncio.gather(*works, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome
