"""A site for capture tests: a real nats-server, a real agent process, a checker that replays the stream."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
from tests.support.brokers import SECRET, Brokers

from diffkeeper import http, pins
from diffkeeper.domain import deltas, errors, frames, positions, trees, volumes
from diffkeeper.log.event_log import Confirmation
from diffkeeper.log.nats_event_log import NatsEventLog
from diffkeeper_replicator.reconcile import reconcile

TOKEN = "token of tests"
FIRST = {"position": "0.0", "hash": frames.NO_HASH.hex()}


class CaptureRig:
    """Site east with one agent, volume ``v`` in ``volume``; site west is played by ``confirm``."""

    def __init__(self, base: Path, brokers: Brokers) -> None:
        self.base = base
        self.brokers = brokers
        self.volume = base / "vol"
        self.volume.mkdir()
        self.gate = base / "capture" / "gate.sock"
        self.log: NatsEventLog
        self.session: aiohttp.ClientSession
        self.agent: subprocess.Popen[str] | None = None
        self.origin = volumes.Origin("v", "east")
        self._url = ""
        self._programs: list[subprocess.Popen[str]] = []
        # Programs that the agent started; they outlive it, as they should, but not the test.
        self._started: list[int] = []

    async def open(self) -> None:
        await self.brokers.start("east")
        self.log = await self.brokers.log("east")
        self.session = aiohttp.ClientSession()

    async def close(self) -> None:
        for pid in self._started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in (*self._programs, self.agent):
            if process is not None and process.poll() is None:
                process.kill()
            if process is not None:
                await asyncio.to_thread(process.communicate, timeout=20)
        # A killed agent leaves its probe in the kernel, for a successor that does not come here.
        pins.remove(self.gate.parent)
        await self.session.close()

    async def start_agent(self, **settings: Any) -> None:
        (self.base / "token").write_text(TOKEN)
        (self.base / "secret").write_text(SECRET)
        config = self.base / "capture.json"
        config.write_text(
            json.dumps(
                {
                    "site": "east",
                    "dir": str(self.gate.parent),
                    "token_file": str(self.base / "token"),
                    "broker_secret_file": str(self.base / "secret"),
                    "servers": [self.brokers.servers["east"].config.client_url],
                    "ring_bytes": 4 * 1024 * 1024,
                    **settings,
                }
            )
        )
        log = (self.base / "agent.log").open("ab")
        self.agent = subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-m", "diffkeeper_capture.main", "--config", str(config)],
            stderr=log,
            env=environment(),
            text=True,
        )
        log.close()
        await self.until("the agent is ready", self._is_ready)

    async def _is_ready(self) -> bool:
        assert self.agent is not None and self.agent.poll() is None, self.agent_log()
        lines = [line for line in self.agent_log().splitlines() if "event=ready" in line]
        if len(lines) <= self._ready_before:
            return False
        self._ready_before = len(lines)
        port = next(word for word in lines[-1].split() if word.startswith("port=")).removeprefix("port=")
        self._url = f"http://127.0.0.1:{port}"
        return True

    _ready_before = 0

    def agent_log(self) -> str:
        return (self.base / "agent.log").read_text()

    async def kill_agent(self) -> None:
        assert self.agent is not None
        self.agent.kill()
        await asyncio.to_thread(self.agent.wait, 20)

    async def call(self, method: str, path: str, body: Any = None, timeout_s: float = 60.0) -> Any:
        answer = await http.call(
            self.session, method, self._url + path, token=TOKEN, body=body, timeout_s=timeout_s
        )
        if path.endswith("/start"):
            self._started.append(answer["pid"])
        return answer

    async def attach(self, **changes: Any) -> Any:
        body = {"path": str(self.volume), "epoch": 1, "parent": FIRST, "durability": "site", **changes}
        return await self.call("POST", "/v1/volumes/v/attach", body)

    async def status(self) -> dict[str, Any]:
        status = await self.call("GET", "/v1/status")
        return dict(next(entry for entry in status["volumes"] if entry["volume"] == "v"))

    async def until_capturing(self) -> dict[str, Any]:
        async def capturing() -> bool:
            status = await self.status()
            assert status["error"] is None, status["error"]
            return bool(status["state"] == "capturing")

        await self.until("the volume is captured", capturing)
        return await self.status()

    def run(self, *argv: str, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        """A program under the run wrapper, as a user would start it."""
        words = ["-m", "diffkeeper_capture.run_wrapper", "--agent-socket", str(self.gate), "--volume", "v"]
        process = subprocess.Popen(
            [sys.executable, *words, *options, "--", *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        self._programs.append(process)
        return process

    async def confirm(self, site: str = "west") -> None:
        """Play the replicator of another site: confirm all that is in the stream; until cancelled."""
        async for stored in self.log.read(self.origin, 1):
            frame = frames.open_frame(stored.wire)
            await self.log.confirm(
                self.origin,
                Confirmation(site, frame.position, frame.hash, frame.position, time.time_ns() // 1000),
            )

    async def stream(self) -> list[frames.Frame]:
        """Everything in the stream, checked to be one chain."""
        last = await self.log.last(self.origin)
        found: list[frames.Frame] = []
        tip = frames.ORIGIN_TIP
        for sequence in range(1, (last.stream_sequence if last else 0) + 1):
            stored = await self.log.get(self.origin, sequence)
            assert stored is not None
            frame = frames.open_frame(stored.wire)
            assert frames.follows(tip, frame) is frames.Follows.NEXT, f"{frame.position} after {tip.position}"
            tip = frames.Tip(frame.position, frame.hash)
            found.append(frame)
        return found

    async def replayed(self, upto: positions.Position | None = None) -> dict[str, tuple[int, str]]:
        """The digest of what the stream makes of an empty directory."""
        log = [frame for frame in await self.stream() if upto is None or frame.position <= upto]
        scratch = self.base / f"replay-{time.monotonic_ns()}"
        await self._replay(scratch, log)
        return digest(scratch)

    async def replayed_into(self, directory: Path) -> None:
        await self._replay(directory, await self.stream())

    async def _replay(self, directory: Path, log: list[frames.Frame]) -> None:
        directory.mkdir()
        state = trees.TreeState("v", positions.START, frames.NO_HASH, 0, trees.Tree(), {}, {})
        await asyncio.to_thread(reconcile, directory, state, lambda: log)

    async def fence(self, epoch: int) -> None:
        """Put a frame of a newer epoch into the stream, as control does with a leader it cannot reach."""
        while True:
            last = await self.log.last(self.origin)
            assert last is not None
            before = frames.open_frame(last.wire)
            fence = frames.seal(
                frames.pack(deltas.Columns(), frames.Compressor()),
                volume="v",
                origin="east",
                position=positions.Position(epoch, before.position.sequence + 1),
                parent=before.position,
                parent_hash=before.hash,
                first=before.header.last,
                last=before.header.last,
                flags=frames.Flag.FENCE,
            )
            try:
                await self.log.append(self.origin, fence, last.stream_sequence)
                return
            except errors.Fenced:
                continue  # the writer was faster

    async def until(self, what: str, holds: Callable[[], Awaitable[bool]], within_s: float = 30.0) -> None:
        end = time.monotonic() + within_s
        while not await holds():
            assert time.monotonic() < end, f"{what}: not within {within_s} s\n{self.agent_log()}"
            await asyncio.sleep(0.02)

    async def error_of(self, call: Awaitable[Any]) -> errors.DiffKeeperError:
        try:
            answer = await call
        except errors.DiffKeeperError as error:
            return error
        raise AssertionError(f"it was accepted: {answer}")


def environment() -> dict[str, str]:
    return dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path))


def digest(root: Path) -> dict[str, tuple[int, str]]:
    """Path → (mode, hash of content or target)."""
    found: dict[str, tuple[int, str]] = {}
    for directory, names, files in os.walk(root):
        for name in (*names, *files):
            path = Path(directory, name)
            status = path.lstat()
            content = b""
            if stat.S_ISREG(status.st_mode):
                content = path.read_bytes()
            elif stat.S_ISLNK(status.st_mode):
                content = os.fsencode(os.readlink(path))
            found[str(path.relative_to(root))] = (status.st_mode, hashlib.sha256(content).hexdigest())
    return found
