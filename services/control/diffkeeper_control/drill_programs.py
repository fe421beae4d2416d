"""A volume's program on a clone: started outside of any capture, asked until it works, ended for good.

It is told that it is a drill (``DIFFKEEPER_DRILL``) and where its files and its port are. A program that finds
its files under a fixed path sees the clone there, in a mount namespace of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from diffkeeper import nats_server
from diffkeeper.domain import errors
from diffkeeper_control import clones, processes, programs, registry

DRILL = "DIFFKEEPER_DRILL"
POLL_S = 0.005
LIVES_S = 1.0
STOP_GRACE_S = 5.0
OUTPUT_BYTES = 4000
# Shows the first directory at the second, then becomes the rest.
_SHOW = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """How the program is started on a clone."""

    argv: list[str]
    env: dict[str, str]
    cwd: str | None
    port: int | None


def rehearse(volume: registry.Volume, site: str, clone: Path, port: int) -> Rehearsal:
    """``port`` is free; it is used where the volume has a front door."""
    command = volume.command
    assert command is not None, "asked for volumes with a program only"
    door = volume.door
    there = msgspec.structs.replace(
        volume,
        paths={**volume.paths, site: str(clone)},
        door=None if door is None else msgspec.structs.replace(door, ports={**door.ports, site: port}),
    )
    # Without the mark by which a site's own programs are found when it is killed.
    start = programs.at(there, site, "", command)
    env = {**start.env, clones.CLONE: str(clone), DRILL: "1"}
    argv = start.argv
    if command.uid not in (None, os.getuid()) or command.gid not in (None, os.getgid()):
        argv = ["setpriv", *_identity(command), "--clear-groups", "--", *argv]
    if start.bind is not None:
        show = ["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", _SHOW, "sh"]
        argv = [*show, str(clone), start.bind, *argv]
    return Rehearsal(argv, env, command.cwd, None if door is None else port)


def _identity(command: registry.Command) -> list[str]:
    pairs = (("--reuid", command.uid), ("--regid", command.gid))
    return [f"{option}={value}" for option, value in pairs if value is not None]


class DrillProgram:
    """Runs within the block, its output in ``log``."""

    def __init__(self, rehearsal: Rehearsal, log: Path) -> None:
        self._rehearsal = rehearsal
        self._log = log
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> DrillProgram:
        with self._log.open("wb") as output:
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *self._rehearsal.argv,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=self._rehearsal.env,
                    cwd=self._rehearsal.cwd,
                    start_new_session=True,
                )
            except OSError as error:
                raise errors.Refused(
                    f"the program cannot be started: {error}",
                    reason="program-not-started",
                    hint="check the command and its rights at this site",
                ) from error
        return self

    async def __aexit__(self, *_: object) -> None:
        process = self._process
        identity = None if process is None else processes.identify(process.pid)
        marked = processes.with_environment(clones.CLONE, self._rehearsal.env[clones.CLONE])
        family = processes.with_descendants(marked | ({identity} if identity is not None else set()))
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_GRACE_S):
                    await process.wait()
        await processes.kill_all(family)
        if process is not None:
            await process.wait()

    async def works(self, check: str | None, timeout_s: float) -> None:
        """Return once it does its work; raises TimedOut, or Refused when it ended."""
        began = time.monotonic()
        while not await self._is_up(check, began):
            assert self._process is not None, "asked within the block"
            if self._process.returncode is not None and check is None:
                raise errors.Refused(
                    f"the program ended with {self._process.returncode}",
                    reason="program-ended",
                    hint="its output is in the report",
                )
            if time.monotonic() - began > timeout_s:
                raise errors.TimedOut(
                    f"the program did not do its work within {timeout_s:g} s", reason="not-up"
                )
            await asyncio.sleep(POLL_S)

    def output(self) -> str:
        try:
            return self._log.read_bytes()[-OUTPUT_BYTES:].decode(errors="replace")
        except FileNotFoundError:
            return ""

    async def _is_up(self, check: str | None, began: float) -> bool:
        if check is not None:
            return await _succeeds(["sh", "-c", check], self._rehearsal)
        port = self._rehearsal.port
        if port is None:
            assert self._process is not None, "asked within the block"
            return self._process.returncode is None and time.monotonic() - began >= LIVES_S
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.transport.abort()
        return True


async def _succeeds(argv: Sequence[str], rehearsal: Rehearsal) -> bool:
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        env=rehearsal.env,
        cwd=rehearsal.cwd,
        start_new_session=True,
    )
    return await process.wait() == 0


def free_port() -> int:
    return nats_server.free_port("127.0.0.1")
