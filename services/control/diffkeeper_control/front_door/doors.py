"""Doors: what listens for the clients of each volume, and the orders that control gives them.

A door knows one target and whether it is open. It decides nothing: who leads is control's to know. What it
promises by itself is that nobody waits longer than the hold, and that a hold that control forgot ends.
"""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any, Literal

import msgspec
import structlog

from diffkeeper.domain import errors
from diffkeeper_control.front_door import wire
from diffkeeper_control.front_door.http_relay import HttpRelay
from diffkeeper_control.front_door.passage import Passage, Target
from diffkeeper_control.front_door.tunnels import Tunnels
from diffkeeper_control.front_door.upstreams import Upstreams
from diffkeeper_control.front_door.wire import Wire

CONNECTIONS_MAX = 4096

_log = structlog.get_logger("door")


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of ``PUT /v1/doors/V``: where to listen, whom to lead to, and whether to."""

    listen_host: str
    listen_port: int
    protocol: Literal["http", "tcp"]
    state: Literal["open", "hold"]
    site: str
    host: str
    port: int
    hold_max: int = 1000
    hold_ms: int = 10_000
    # Of a hold: it ends by itself after this long without another order.
    lapse_ms: int = 60_000
    # Of a hold: connections to the program are cut off at once, for it is not the one that leads any more.
    cut: bool = False

    @property
    def target(self) -> Target:
        return Target(self.site, self.host, self.port)

    @property
    def place(self) -> tuple[str, int, str]:
        return self.listen_host, self.listen_port, self.protocol


class Door:
    """One volume's entry. ``open`` first, ``close`` at the end."""

    def __init__(self, volume: str, order: Order) -> None:
        self.volume = volume
        self.order = order
        self.upstreams = Upstreams()
        self.passage = Passage(order.hold_max, order.hold_ms, self.upstreams.probe)
        self.tunnels = Tunnels()
        self._servers: list[asyncio.Server] = []
        self._clients: set[asyncio.Task[None]] = set()
        self._turned_away = 0

    async def open(self) -> None:
        """Listen; raises Refused when that is not possible."""
        order = self.order
        try:
            sockets = wire.listen(order.listen_host, order.listen_port)
        except OSError as error:
            raise errors.Refused(
                f"the front door cannot listen on {order.listen_host}:{order.listen_port}: {error.strerror}",
                reason="listen-taken",
                hint="choose another address for --listen",
                host=order.listen_host,
                port=order.listen_port,
            ) from error
        for sock in sockets:
            self._servers.append(await self._serve(sock))
        self.obey(order)

    async def _serve(self, sock: socket.socket) -> asyncio.Server:
        return await asyncio.start_server(self._accept, sock=sock, limit=wire.READ_BYTES)

    def obey(self, order: Order) -> None:
        """Take a new order for the same place; the same one again changes nothing."""
        self.order = order
        self.passage.hold_max, self.passage.hold_ms = order.hold_max, order.hold_ms
        if order.state == "open":
            self.passage.open(order.target)
            return
        if self.passage.target is None:
            self.passage.target = order.target
        self.passage.hold(order.lapse_ms)
        self.upstreams.drop_kept()
        if order.cut:
            self.upstreams.cut()
            self.tunnels.cut()

    async def drain(self, timeout_s: float) -> dict[str, Any]:
        """Wait until nothing is under way, tunnels closed; the answer says what was not done in time."""
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            requests = group.create_task(self.passage.drained(timeout_s))
            tunnels = group.create_task(self.tunnels.drain(timeout_s))
        self.upstreams.drop_kept()
        return {
            "drained": requests.result() and not tunnels.result(),
            "in_flight": self.passage.in_flight,
            "cut_off": tunnels.result(),
            "took_ms": round((time.monotonic() - began) * 1000, 3),
        }

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        self.upstreams.cut()
        await self.passage.close()

    def status(self) -> dict[str, Any]:
        passage, counters = self.passage, self.passage.counters
        return {
            "volume": self.volume,
            "order": msgspec.to_builtins(self.order),
            "state": "open" if passage.is_open else "hold",
            "target": None if passage.target is None else msgspec.to_builtins(passage.target),
            "accepting": passage.accepting,
            "since_ms": int((time.monotonic() - passage.since) * 1000),
            "waiting": passage.waiting,
            "in_flight": passage.in_flight,
            "tunnels": len(self.tunnels),
            "connections": len(self._clients),
            "turned_away": self._turned_away,
            **msgspec.to_builtins(counters),
        }

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = Wire(reader, writer)
        if len(self._clients) >= CONNECTIONS_MAX:
            self._turned_away += 1
            client.abort()
            return
        task = asyncio.create_task(self._relay(client), name=f"client of {self.volume}")
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _relay(self, client: Wire) -> None:
        try:
            if self.order.protocol == "http":
                await HttpRelay(client, self.passage, self.upstreams, self.tunnels).run()
            else:
                await self._relay_tcp(client)
        except Exception:  # noqa: BLE001
            # A mistake of ours costs this client its connection, and no other.
            _log.exception("a connection failed in an unforeseen way", volume=self.volume)
        finally:
            client.abort()

    async def _relay_tcp(self, client: Wire) -> None:
        """A connection as it is: held until there is a program, then passed through."""
        self.passage.counters.requests += 1
        try:
            upstream = await self.upstreams.take(self.passage, safe=False)
        except errors.DiffKeeperError as error:
            _log.warning("a connection was closed", volume=self.volume, why=error.message)
            return
        generation = self.passage.generation
        self.passage.answered()
        self.passage.end()
        try:
            await self.tunnels.run(client, upstream)
        finally:
            self.upstreams.give_back(upstream, self.passage, generation=generation, keep=False)
        await client.close()


class Doors:
    """All doors of this process, by volume."""

    def __init__(self) -> None:
        self._doors: dict[str, Door] = {}
        self._changing = asyncio.Lock()

    async def put(self, volume: str, order: Order) -> dict[str, Any]:
        async with self._changing:
            door = self._doors.get(volume)
            if door is not None and door.order.place == order.place:
                door.obey(order)
                return door.status()
            new = Door(volume, order)
            await new.open()  # before the old one is closed: what cannot be had changes nothing
            self._doors[volume] = new
            if door is not None:
                await door.close()
            return new.status()

    def get(self, volume: str) -> Door:
        door = self._doors.get(volume)
        if door is None:
            raise errors.NotFound(
                f"volume {volume} has no front door here", reason="no-door", hint="dkctl run --listen"
            )
        return door

    async def remove(self, volume: str) -> None:
        async with self._changing:
            door = self._doors.pop(volume, None)
            if door is not None:
                await door.close()

    async def close(self) -> None:
        for volume in list(self._doors):
            await self.remove(volume)

    def statuses(self) -> list[dict[str, Any]]:
        return [door.status() for _, door in sorted(self._doors.items())]
