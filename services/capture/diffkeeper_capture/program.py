"""Programs that the agent starts itself: under the run wrapper, in a session of their own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import diffkeeper
import diffkeeper_capture
from diffkeeper.domain import errors, stop_signals
from diffkeeper.domain.receipts import Level
from diffkeeper_capture import run_wrapper
from diffkeeper_capture.gate_socket import Program

# How long a program may take to be executed, and to be gone after SIGKILL.
START_TIMEOUT_S = 15.0
KILL_TIMEOUT_S = 10.0
POLL_S = 0.002
# How long one may take to be ready that is started in advance.
PREPARE_TIMEOUT_S = 5.0
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


@dataclass(frozen=True, slots=True)
class Prepared:
    """A wrapper that has done all it can, and waits for the word to start its program."""

    argv: list[str]
    env: dict[str, str]
    # Which directory it took for the volume's: it may have shown that to the program already.
    root: tuple[int, int]
    ended: asyncio.Task[int]
    link: socket.socket
    log: tuple[Path, int]


class Launcher:
    """Starts wrappers and reaps those that end while this agent lives."""

    def __init__(self, gate_socket: Path, logs: Path, nice: int) -> None:
        """``nice``: the priority of programs, which the agent may have left for itself."""
        self._nice = nice
        self._gate_socket = gate_socket
        self._logs = logs
        self._reapers: set[asyncio.Task[int]] = set()
        self._last_log: tuple[Path, int] | None = None
        self._prepared: dict[str, Prepared] = {}

    async def prepare(
        self, volume: str, root: Path, level: Level, command: Command, wait: bool
    ) -> asyncio.Task[int] | None:
        """Start a wrapper in advance, up to where it needs the volume; with ``wait``, until it has come that
        far. None where a program would begin inside of what is still to change.
        """
        self.forget(volume)
        inside = [str(root), *([] if command.bind is None else [command.bind])]
        if any(Path(command.cwd or "/").is_relative_to(directory) for directory in inside):
            return None
        argv = wrapper_argv(self._gate_socket, volume, root, level, command, self._nice)
        identity = _identity(root)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            at = argv.index("--agent-socket")
            waiting = [*argv[:at], "--wait-for", str(theirs.fileno()), *argv[at:]]
            ended = await self._launch(volume, waiting, command.env, (theirs.fileno(),))
        assert self._last_log is not None, "something was started"
        prepared = Prepared(argv, command.env, identity, ended, ours, self._last_log)
        self._prepared[volume] = prepared
        if wait:
            with contextlib.suppress(TimeoutError, OSError):
                async with asyncio.timeout(PREPARE_TIMEOUT_S):
                    await asyncio.get_running_loop().sock_recv(ours, 1)
        return ended

    def forget(self, volume: str) -> None:
        """A wrapper that was started in advance ends without its program."""
        prepared = self._prepared.pop(volume, None)
        if prepared is not None:
            prepared.link.close()

    def close(self) -> None:
        for volume in list(self._prepared):
            self.forget(volume)

    def _go_on(self, volume: str, argv: list[str], env: dict[str, str], root: Path) -> Prepared | None:
        """Give the word to the wrapper that waits for just this; None without one."""
        prepared = self._prepared.pop(volume, None)
        if prepared is None:
            return None
        with prepared.link as link:
            same = (prepared.argv, prepared.env, prepared.root) == (argv, env, _identity(root))
            if same and not prepared.ended.done():
                with contextlib.suppress(OSError):
                    link.send(run_wrapper.GO_ON)
                    return prepared
        return None

    async def start(self, volume: str, root: Path, level: Level, command: Command) -> asyncio.Task[int]:
        """Start a wrapper, or have one go on that waits for this; the task gives its exit code."""
        argv = wrapper_argv(self._gate_socket, volume, root, level, command, self._nice)
        prepared = self._go_on(volume, argv, command.env, root)
        if prepared is not None:
            self._last_log = prepared.log
            return prepared.ended
        return await self._launch(volume, argv, command.env, ())

    async def _launch(
        self, volume: str, argv: list[str], env: dict[str, str], descriptors: tuple[int, ...]
    ) -> asyncio.Task[int]:
        self._logs.mkdir(parents=True, exist_ok=True)
        path = self._logs / f"{volume}.log"
        with path.open("ab") as output:
            begin = output.tell()
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                env=env,  # all of it: nothing of the agent's own reaches the program
                start_new_session=True,
                pass_fds=descriptors,
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


def _identity(directory: Path) -> tuple[int, int]:
    found = directory.stat()
    return found.st_dev, found.st_ino


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
