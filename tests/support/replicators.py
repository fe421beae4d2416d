"""Real replicator processes: started from a settings file, killed by their process id."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import aiohttp
from tests.support import brokers as support

from diffkeeper import http, nats_server
from diffkeeper.domain import errors

TOKEN = "a token of tests"


class ReplicatorProcess:
    def __init__(self, site: str, under: Path, url: str) -> None:
        self.under = under
        under.mkdir(parents=True, exist_ok=True)
        (under / "token").write_text(TOKEN)
        (under / "secret").write_text(support.SECRET)
        self.site, self.url = site, url
        self.port = 0
        self.config = under / "replicator.json"
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        # A new port each time: while it is down another program may be given the old one.
        self.port = nats_server.free_port()
        settings = {
            "site": self.site,
            "dir": str(self.under / "replicator"),
            "volumes_dir": str(self.under / "volumes"),
            "port": self.port,
            "token_file": str(self.under / "token"),
            "servers": [self.url],
            "broker_secret_file": str(self.under / "secret"),
        }
        self.config.write_text(json.dumps(settings))
        with (self.under / "log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "diffkeeper_replicator.main", "--config", str(self.config), stderr=log
            )
        async with asyncio.timeout(60):
            while True:
                try:
                    await self.call("GET", "/v1/status", None)
                    return
                except errors.Unreachable:
                    assert self.process.returncode is None, (self.under / "log").read_text()
                    await asyncio.sleep(0.05)

    async def kill(self) -> None:
        assert self.process is not None, "started"
        self.process.kill()
        await self.process.wait()

    async def stop(self) -> int:
        """An orderly end; its exit code."""
        assert self.process is not None, "started"
        if self.process.returncode is None:
            self.process.terminate()
        return await self.process.wait()

    async def call(self, method: str, path: str, body: Any = None, timeout_s: float = 30.0) -> Any:
        async with aiohttp.ClientSession() as session:
            return await http.call(
                session,
                method,
                f"http://127.0.0.1:{self.port}{path}",
                token=TOKEN,
                body=body,
                timeout_s=timeout_s,
            )
