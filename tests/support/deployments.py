"""A whole deployment for tests: real control, brokers, replicators and agents below a temporary directory."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
from tests.support import leftovers

from diffkeeper import http
from diffkeeper.domain import errors

START_TIMEOUT_S = 60.0


class Deployment:
    """One ``--dir``. ``stop`` leaves no process of it behind, whatever the test did."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.dir = base / "deployment"
        # What control is told besides the sites, such as ["--nodes", "3"].
        self.told: list[str] = []
        self.control: subprocess.Popen[bytes] | None = None
        self.programs: list[subprocess.Popen[bytes]] = []
        self._session: aiohttp.ClientSession | None = None

    # Control itself.

    def launch(self, sites: str | None = None) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "diffkeeper_control.main", "--dir", str(self.dir)]
        with (self.base / "control.log").open("ab") as log:
            return subprocess.Popen(
                argv + (["--sites", sites] if sites else []) + self.told,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(),
                start_new_session=True,
            )

    async def up(self, sites: str | None = None) -> None:
        """Start control and wait until every site that is not stopped is alive."""
        control = self.control = self.launch(sites)
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            assert control.poll() is None, f"control ended with {control.returncode}:\n{self.log()}"
            assert time.monotonic() < deadline, f"the deployment did not start:\n{self.log()}"
            if self.note().get("control", None) and self.note()["control"]["pid"] == control.pid:
                try:
                    states = [site["state"] for site in (await self.get("/v1/status"))["sites"]]
                except errors.Transient:
                    states = ["not yet"]
                if all(state in ("alive", "stopped") for state in states):
                    return
            await asyncio.sleep(0.05)

    def kill_control(self) -> None:
        assert self.control is not None, "it was started"
        self.control.kill()
        self.control.wait()

    async def shut_down(self) -> int:
        await self.post("/v1/shutdown", {"timeout_s": 60})
        assert self.control is not None, "it was started"
        return await asyncio.to_thread(self.control.wait, START_TIMEOUT_S)

    def note(self) -> dict[str, Any]:
        try:
            note: dict[str, Any] = json.loads((self.dir / "deployment.json").read_text())
        except FileNotFoundError:
            return {}
        return note

    def log(self) -> str:
        return (self.base / "control.log").read_text()

    # Its API.

    async def get(self, path: str) -> Any:
        return await self._call("GET", path, None)

    async def post(self, path: str, body: Any = None, timeout_s: float = 60.0) -> Any:
        return await self._call("POST", path, body or {}, timeout_s)

    async def _call(self, method: str, path: str, body: Any, timeout_s: float = 10.0) -> Any:
        if self._session is None:
            self._session = aiohttp.ClientSession()
        return await http.call(
            self._session,
            method,
            self.note()["control"]["address"] + path,
            token=(self.dir / "token").read_text().strip(),
            body=body,
            timeout_s=timeout_s,
        )

    async def volume(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = await self.get(f"/v1/volumes/{name}")
        return found

    async def site(self, name: str) -> dict[str, Any]:
        found = [site for site in (await self.get("/v1/status"))["sites"] if site["site"] == name]
        site: dict[str, Any] = found[0]
        return site

    async def run(
        self,
        volume: str,
        site: str,
        path: Path,
        argv: list[str],
        durability: str = "remote",
        front_door: dict[str, Any] | None = None,
    ) -> subprocess.Popen[bytes]:
        """What ``dkctl run`` does up to the start of the program; its output goes to ``VOLUME.out``."""
        body = {
            "site": site,
            "path": str(path),
            "argv": argv,
            "env": environment(),
            "cwd": str(self.base),
            "durability": durability,
            "front_door": front_door,
        }
        ready = await self.post(f"/v1/volumes/{volume}/run", body)
        await until(lambda: self.volume(volume), lambda found: bool(found["ready"]), "the base is safe")
        return self.start_program([*ready["wrapper"], *ready["argv"]], ready["env"], f"{volume}.out")

    def start_program(self, argv: list[str], env: dict[str, str], output: str) -> subprocess.Popen[bytes]:
        """A process that ``stop`` ends, in a session of its own."""
        with (self.base / output).open("wb") as said, (self.base / f"{output}.err").open("wb") as complained:
            program = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=complained,
                env=env,
                start_new_session=True,
            )
        self.programs.append(program)
        return program

    # Its processes.

    def processes(self, part: str = "") -> dict[int, str]:
        """Live processes whose command line names the test's directory, or ``part`` of the deployment's."""
        wanted = os.fsencode(self.dir / part if part else self.base)
        found = {}
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) == os.getpid():
                continue
            try:
                line = Path(f"/proc/{entry}/cmdline").read_bytes()
                state = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if wanted in line and state not in "ZX":
                found[int(entry)] = line.replace(b"\0", b" ").decode(errors="replace")
        return found

    async def stop(self) -> None:
        for program in self.programs:
            if program.poll() is None:
                program.kill()
            program.wait()
        if self.control is not None and self.control.poll() is None:
            self.control.kill()
            self.control.wait()
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        leftovers.unpin_below(self.dir)
        if self._session is not None:
            await self._session.close()


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}


async def until(
    ask: Callable[[], Any],
    is_so: Callable[[Any], bool],
    what: str,
    timeout_s: float = 60.0,
    pause_s: float = 0.05,
) -> Any:
    """Ask again and again until the answer is so; fails with the last answer."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = await ask()
        if is_so(answer):
            return answer
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s in vain until {what}: {answer}"
        await asyncio.sleep(pause_s)
