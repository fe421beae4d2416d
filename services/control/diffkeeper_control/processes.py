"""Processes that cannot be mistaken for others: found, watched and killed by number and start time.

Children outlive control (own sessions, no death signal), so the next control watches processes that are not
its children: a pidfd becomes readable at the end of any process, and while it is held its number is not given
to another.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterable, Sequence
from pathlib import Path

from diffkeeper import nats_server
from diffkeeper.domain import errors

ProcessId = nats_server.ProcessId

KILL_TIMEOUT_S = 5.0
# Rounds of looking for children that were forked while their parents were being killed.
_KILL_ROUNDS = 20


def identify(pid: int) -> ProcessId | None:
    """The live process with this number now; None for none, or a zombie."""
    ticks = nats_server.start_ticks(pid)
    return None if ticks is None else ProcessId(pid, ticks)


def is_running(process: ProcessId) -> bool:
    return nats_server.start_ticks(process.pid) == process.start_ticks


def spawn(argv: Sequence[str], log: Path, env: dict[str, str] | None = None) -> ProcessId:
    """Start a daemon in a session of its own, its output appended to ``log``."""
    files = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    pid = os.posix_spawn(argv[0], list(argv), env or os.environ, file_actions=files, setsid=True)
    return ProcessId(pid, nats_server.start_ticks(pid) or 0)


def send(process: ProcessId, number: signal.Signals) -> bool:
    """Send a signal to exactly this process; whether it was there."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        if not is_running(process):
            return False
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, number)
        return True
    finally:
        os.close(handle)


async def wait_for_end(process: ProcessId) -> int | None:
    """Until the process has ended; its exit code (negative for a signal) when it was our child."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    try:
        # No start time: its first thread has ended. The others may still hold its files and ports until the
        # handle says that all of it has ended; only then can it be reaped.
        if nats_server.start_ticks(process.pid) in (None, process.start_ticks):
            loop.add_reader(handle, ended.set)
            try:
                await ended.wait()
            finally:
                loop.remove_reader(handle)
    finally:
        os.close(handle)
    return reap(process.pid)


def reap(pid: int) -> int | None:
    """Take the exit status of a child that has ended; None when it is not our child, or was taken before."""
    try:
        done, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return None
    return os.waitstatus_to_exitcode(status) if done == pid else None


async def stop(process: ProcessId, grace_s: float) -> bool:
    """SIGTERM, a bounded wait, SIGKILL; whether it ended by itself."""
    if not send(process, signal.SIGTERM):
        reap(process.pid)
        return True
    try:
        async with asyncio.timeout(grace_s):
            await wait_for_end(process)
    except TimeoutError:
        await kill(process)
        return False
    return True


async def kill(process: ProcessId) -> None:
    """SIGKILL this one process and wait until it is gone; what it started lives on."""
    if send(process, signal.SIGKILL):
        try:
            async with asyncio.timeout(KILL_TIMEOUT_S):
                await wait_for_end(process)
        except TimeoutError as error:
            raise errors.Transient(
                f"process {process.pid} did not die of SIGKILL within {KILL_TIMEOUT_S:g} s",
                reason="process-stuck",
                hint="look for a disk that hangs (dmesg)",
                pid=process.pid,
            ) from error


async def kill_all(roots: Iterable[ProcessId]) -> list[int]:
    """SIGKILL processes and everything below them, at once; the numbers killed. Waits until they are gone."""
    wanted = set(roots)
    killed: set[ProcessId] = set()
    deadline = asyncio.get_running_loop().time() + KILL_TIMEOUT_S
    for _ in range(_KILL_ROUNDS):
        alive = {process for process in with_descendants(wanted) if is_running(process)}
        if not alive:
            break
        wanted |= alive  # a child whose parent dies is no longer found below it
        for process in alive:
            if send(process, signal.SIGKILL):
                killed.add(process)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await asyncio.gather(*(wait_for_end(process) for process in alive))
    return sorted(process.pid for process in killed)


def with_descendants(roots: Iterable[ProcessId]) -> set[ProcessId]:
    """The processes and all below them, as they are now."""
    children: dict[int, list[int]] = {}
    for pid, parent in _parents():
        children.setdefault(parent, []).append(pid)
    found = set(roots)
    waiting = [process.pid for process in found if is_running(process)]
    while waiting:
        for pid in children.get(waiting.pop(), []):
            process = identify(pid)
            if process is not None and process not in found:
                found.add(process)
                waiting.append(pid)
    return found


def with_argument(argument: str) -> set[ProcessId]:
    """Processes that were started with exactly this argument, such as the path of their own settings file."""
    wanted = os.fsencode(argument)
    found: set[ProcessId] = set()
    for pid in _pids():
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue  # it ended meanwhile
        process = identify(pid) if wanted in line.split(b"\0") else None
        if process is not None and pid != os.getpid():
            found.add(process)
    return found


def with_environment(name: str, value: str) -> set[ProcessId]:
    """Processes that were started with a variable: finds those that left their parents (daemons)."""
    wanted = f"{name}={value}".encode()
    found: set[ProcessId] = set()
    for pid in _pids():
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue  # it ended, or is not ours to look at
        if wanted in environment.split(b"\0"):
            process = identify(pid)
            if process is not None and pid != os.getpid():
                found.add(process)
    return found


def _pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _parents() -> list[tuple[int, int]]:
    pairs: list[tuple[int, int]] = []
    for pid in _pids():
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            continue  # it ended meanwhile
        pairs.append((pid, int(stat.rpartition(")")[2].split()[1])))
    return pairs
