"""Programs that the agent starts itself: under the run wrapper, in a session of their own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import diffkeeper
import diffkeeper_capture
from diffkeeper.domain import errors, stop_signals
from diffkeeper.domain.receipts import Level
from diffkeeper_capture.gate_socket import Program

# How long a program may take to be executed, and to be gone after SIGKILL.
START_TIMEOUT_S = 15.0
KILL_TIMEOUT_S = 10.0
POLL_S = 0.01
# Of the program's output, how much is shown when it could not be started.
TAIL_BYTES = 2000


# The wrapper is started with the program's environment, in which PYTHONPATH and the like are meant for the
# program: so it runs isolated from them (-I), and finds itself where this agent found it. The agent's own
# priority is not for programs.
_BOOT = (
    "import os, sys; os.setpriority(os.PRIO_PROCESS, 0, {nice}); sys.path[:0] = {paths!r}; "
    "from diffkeeper_capture.run_wrapper import main; main()"
)


@dataclass(frozen=True, slots=True)
class Command:
    argv: list[str]
    env: dict[str, str]
    cwd: str | None = None
    uid: int | None = None
    gid: int | None = None
    bind: str | None = None  # where the program sees the volume
    stop_signal: str = stop_signals.DEFAULT
    io_uring: bool = False
    hard_limit: bool = False


def _package_roots() -> list[str]:
    return sorted(
        {
            str(Path(package.__file__ or "").resolve().parents[1])
            for package in (diffkeeper, diffkeeper_capture)
        }
    )


def wrapper_argv(
    gate_socket: Path, volume: str, root: Path, level: Level, command: Command, nice: int
) -> list[str]:
    words = [sys.executable, "-I", "-c", _BOOT.format(paths=_package_roots(), nice=nice)]
    words += ["--agent-socket", str(gate_socket), "--volume", volume, "--root", str(root)]
    if level is Level.OBSERVE and not command.hard_limit:
        words.append("--no-gate")  # nothing ever waits, so nothing needs to be stopped
    if command.stop_signal != stop_signals.DEFAULT:
        words += ["--stop-signal", command.stop_signal]
    if command.hard_limit:
        words.append("--hard-limit")
    if command.io_uring:
        words += ["--io-uring", "allow"]
    for option, value in (("--cwd", command.cwd), ("--uid", command.uid), ("--gid", command.gid)):
        if value is not None:
            words += [option, str(value)]
    if command.bind is not None:
        words += ["--bind", f"{root}={command.bind}"]
    return [*words, "--", *command.argv]


class Launcher:
    """Starts wrappers and reaps those that end while this agent lives."""

    def __init__(self, gate_socket: Path, logs: Path, nice: int) -> None:
        """``nice``: the priority of programs, which the agent may have left for itself."""
        self._nice = nice
        self._gate_socket = gate_socket
        self._logs = logs
        self._reapers: set[asyncio.Task[int]] = set()
        self._last_log: tuple[Path, int] | None = None

    async def start(self, volume: str, root: Path, level: Level, command: Command) -> asyncio.Task[int]:
        """Start a wrapper; the task gives its exit code."""
        self._logs.mkdir(parents=True, exist_ok=True)
        path = self._logs / f"{volume}.log"
        argv = wrapper_argv(self._gate_socket, volume, root, level, command, self._nice)
        with path.open("ab") as output:
            begin = output.tell()
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                env=command.env,  # all of it: nothing of the agent's own reaches the program
                start_new_session=True,
            )
        reaper = asyncio.create_task(process.wait(), name=f"program of {volume}")
        self._reapers.add(reaper)
        reaper.add_done_callback(self._reapers.discard)
        self._last_log = path, begin
        return reaper

    def tail(self) -> str:
        """What the last started program, or its wrapper, said first."""
        assert self._last_log is not None, "something was started"
        path, begin = self._last_log
        with path.open("rb") as file:
            file.seek(begin)
            return file.read(TAIL_BYTES).decode(errors="replace").strip()


async def stop(program: Program, grace_s: float) -> None:
    """Its stop signal, then SIGKILL after ``grace_s``; raises TimedOut when it will not go."""
    try:
        descriptor = os.pidfd_open(program.pid)
    except ProcessLookupError:
        return
    try:
        asking = stop_signals.number(program.stop_signal)
        for number, patience_s in ((asking, grace_s), (signal.SIGKILL, KILL_TIMEOUT_S)):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)
            if await _ended(descriptor, patience_s):
                return
    finally:
        os.close(descriptor)
    raise errors.TimedOut(
        f"process {program.pid} did not end after SIGKILL; nothing was handed over",
        reason="program-stuck",
        hint="it hangs in the kernel: look at /proc/PID/stack",
        pid=program.pid,
    )


async def _ended(descriptor: int, patience_s: float) -> bool:
    loop = asyncio.get_running_loop()
    ended = loop.create_future()

    def tell() -> None:
        loop.remove_reader(descriptor)
        if not ended.done():
            ended.set_result(None)

    loop.add_reader(descriptor, tell)
    try:
        await asyncio.wait_for(ended, patience_s)
    except TimeoutError:
        loop.remove_reader(descriptor)
        return bool(select.select([descriptor], [], [], 0)[0])
    return True


def kill_session(leader: int) -> None:
    """SIGKILL to every process of a session. A dead leader's number stays taken while members live."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and _session_of(entry.name) == leader:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(entry.name), signal.SIGKILL)


def _session_of(pid: str) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # After the command in parentheses: state, parent, group, session.
            return int(file.read().rsplit(b")", 1)[1].split()[3])
    except (FileNotFoundError, ProcessLookupError):
        return None
