"""A deployment of its own in a directory, driven as a user would: by ``dkctl`` as a child process.

Only questions that are asked many times a second (status while measuring) go to the admin API directly.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from diffkeeper.domain import errors
from dkctl import client, daemon, deployments

DKCTL = (sys.executable, "-m", "dkctl.main")
POLL_S = 0.02
UP_TIMEOUT_S = 60.0


class Trial:
    """Sites that live as long as the block; ``directory`` is the caller's."""

    def __init__(self, directory: Path, sites: Sequence[str] = ("east", "west")) -> None:
        self.directory = directory
        self.sites = tuple(sites)
        self._runs: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Trial:
        try:
            self.dkctl("up", "--detach", "--sites", ",".join(self.sites), timeout_s=UP_TIMEOUT_S)
        except BaseException:
            self._kill_what_is_left()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        try:
            self.dkctl("down", timeout_s=UP_TIMEOUT_S)
        finally:
            self._kill_what_is_left()
            for run in self._runs:
                if run.poll() is None:
                    run.terminate()
                run.wait()

    def _kill_what_is_left(self) -> None:
        """Whatever the deployment notes as its own and still runs; nothing after an orderly end."""
        deployment = deployments.find(self.directory)
        for process in deployment.processes() if deployment is not None else ():
            if daemon.is_running(process.pid, process.start_ticks):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)

    def dkctl(self, *arguments: str, timeout_s: float = 60.0, accept: Sequence[int] = (0,)) -> str:
        """What the command printed; raises when its exit code is not one of ``accept``."""
        done = subprocess.run(
            [*DKCTL, arguments[0], "--dir", str(self.directory), *arguments[1:]],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode not in accept:
            raise errors.DiffKeeperError(
                f"dkctl {' '.join(arguments)} ended with {done.returncode}: {done.stderr.strip()}",
                reason="trial-command-failed",
                hint=f"look into {self.directory / 'logs'}",
                exit_code=done.returncode,
            )
        return done.stdout

    def ask(self, *arguments: str, timeout_s: float = 60.0) -> dict[str, Any]:
        """The JSON answer of a command that reads or moves; exit code 1 (look at it) is an answer too."""
        answer = json.loads(self.dkctl(*arguments, "--json", timeout_s=timeout_s, accept=(0, 1)))
        assert isinstance(answer, dict), "a JSON answer of dkctl is an object"
        return answer

    def control(self) -> client.Control:
        return client.Control.of(self.directory)

    def run(
        self,
        volume: str,
        site: str,
        path: Path,
        command: Sequence[str],
        durability: str,
        log: Path,
        *options: str,
    ) -> subprocess.Popen[bytes]:
        """``dkctl run`` in the background; it ends with its program, at the latest with the trial."""
        with log.open("ab") as output:
            run = subprocess.Popen(
                [
                    *DKCTL,
                    "run",
                    volume,
                    f"--dir={self.directory}",
                    f"--site={site}",
                    f"--path={path}",
                    f"--durability={durability}",
                    *options,
                    "--",
                    *command,
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self._runs.append(run)
        return run

    def kill_site(self, site: str) -> None:
        """SIGKILL for all that belongs to the site, at once."""
        self.dkctl("down", "--site", site, "--kill")

    def start_site(self, site: str) -> None:
        self.dkctl("up", "--detach", "--site", site)

    def failover(self, volume: str, target: str, *more: str) -> dict[str, Any]:
        """The finished operation, with its ``timings_ms``."""
        text = self.dkctl("failover", volume, "--to", target, "--yes", *more, "--json", timeout_s=90)
        operation = json.loads(text)
        assert isinstance(operation, dict), "an operation is an object"
        return operation

    def wait_following(self, volume: str, site: str, timeout_s: float = 60.0, behind: int = 0) -> Path:
        """Until the replica of a site follows and has confirmed what was captured, but for at most ``behind``
        frames; where it is.

        A replica alone cannot know how far it is behind while the link to the leader is down: only the leader's
        agent, which hears its confirmations, can.
        """

        def follows() -> bool:
            status = self.control().volume(volume)
            one = _at(status, site)
            confirmed = (status.get("positions") or {}).get("confirmed") or {}
            frames = (status.get("lag") or {}).get("frames")
            complete = one.get("state") == "following" and one.get("base_complete")
            return bool(complete) and site in confirmed and frames is not None and frames <= behind

        wait(f"{site} follows {volume}", follows, timeout_s)
        return Path(str(_at(self.control().volume(volume), site)["path"]))


def _at(status: dict[str, Any], site: str) -> dict[str, Any]:
    """What the replicator of a site says about a volume; empty when it says nothing."""
    return next((one for one in status.get("sites", []) if one.get("site") == site), {})


def wait(what: str, ready: Callable[[], bool], timeout_s: float) -> None:
    """Poll with an end; raises TimedOut that names what was waited for."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > deadline:
            raise errors.TimedOut(
                f"waited {timeout_s:.0f} s in vain until {what}", reason="trial-waited-in-vain"
            )
        time.sleep(POLL_S)
