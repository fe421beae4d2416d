"""A slow, obvious twin of a deployment: its failover copies the dead site's directory.

The rounds are tried on it, so that they are known to pass on a perfect failover and to fail on one that
cuts the end of the log. It speaks of a lag as ``dkctl status`` does, of whatever size the test says.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.victims import plain, postgres_victim


class CopyingTwin:
    sites = ("east", "west")

    def __init__(self, folder: Path, *, cut_bytes: int = 0, lag_ms: float = 0.0) -> None:
        self._folder = folder
        self._cut_bytes = cut_bytes
        self._lag_ms = lag_ms
        self._command: Sequence[str] = ()
        self._directory = folder
        self._program: subprocess.Popen[bytes] | None = None
        self._copies = 0
        self._asked = 0

    def run(
        self, volume: str, site: str, path: Path, command: Sequence[str], durability: str, log: Path
    ) -> subprocess.Popen[bytes]:
        self._command = command
        return self._start(path)

    def wait_following(self, volume: str, site: str) -> Path:
        return self._folder / site

    def control(self) -> CopyingTwin:
        return self

    def volume(self, volume: str) -> dict[str, Any]:
        self._asked += 1
        confirmed = dict.fromkeys(self.sites, f"1.{self._asked}")
        return {"lag": {"ms": self._lag_ms, "age_ms": 0}, "positions": {"confirmed": confirmed}}

    def kill_site(self, site: str) -> None:
        assert self._program is not None, "a site is killed after its program was started"
        plain.kill(self._program, self._directory)

    def start_site(self, site: str) -> None:
        """Nothing runs at a site that does not lead."""

    def failover(self, volume: str, target: str, *more: str) -> dict[str, Any]:
        self.kill_site(target)
        self._copies += 1
        copy = self._folder / f"{target}-{self._copies}"
        postgres_victim.copy_state(self._directory, copy)
        for log in copy.rglob("*.incr.aof"):
            with log.open("r+b") as file:
                file.truncate(max(0, log.stat().st_size - self._cut_bytes))
        shutil.rmtree(self._directory)
        self._start(copy)
        return {"result": {"path": str(copy)}, "timings_ms": {}, "planned": False}

    def _start(self, directory: Path) -> subprocess.Popen[bytes]:
        self._directory = directory
        with (self._folder / "twin.log").open("ab") as log:
            self._program = subprocess.Popen(
                [part.replace("{path}", str(directory)) for part in self._command], stdout=log, stderr=log
            )
        return self._program

    def close(self) -> None:
        self.kill_site("")
