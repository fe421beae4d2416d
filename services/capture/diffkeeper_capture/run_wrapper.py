"""``diffkeeper-run``: starts a program behind the gate and stays its parent.

It forks; the child puts the seccomp filter on itself and becomes the program (``program_launch``). The
wrapper receives each stopped sync call, lets it go on at once when it concerns no file of the volume, and
otherwise tells the agent and waits for its word (``gate_messages``). When the agent goes it keeps all calls
stopped and offers itself to the successor for ever. Signals, exit code and death by signal pass through.
Small on purpose: standard library only.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from diffkeeper.domain import errors
from diffkeeper_capture import program_launch, seccomp, sync_calls
from diffkeeper_capture.agent_link import AgentLink, AgentSaidNo
from diffkeeper_capture.program_launch import EXIT_OWN_FAILURE, Launch
from diffkeeper_capture.signal_relay import SignalRelay

# How long the agent may take for its first answer, before the program is started.
FIRST_ANSWER_S = 10.0


class Wrapper:
    """One program, its listener, and the link to whichever agent there is."""

    def __init__(
        self, child: int, listener: seccomp.Listener | None, link: AgentLink, root: sync_calls.Root | None
    ) -> None:
        self._child = child
        self._listener = listener
        self._link = link
        self._root = root
        self._signals: SignalRelay | None = None
        # Stopped calls the agent has not let go yet, oldest first. Invariant: a superset of what the agent
        # knows.
        self._waiting: dict[int, tuple[int, str]] = {}

    def supervise(self, signals: SignalRelay) -> int:
        """Until the program has ended; its wait status."""
        poll = select.poll()
        poll.register(signals.fileno(), select.POLLIN)
        if self._listener is not None:
            poll.register(self._listener.fileno(), select.POLLIN)
        while True:
            with self._link.registered(poll):
                ready = poll.poll(self._link.patience_ms())
            self._receive()
            for ident in self._link.exchange(self._waiting):
                self._let_go(ident)
            if any(descriptor == signals.fileno() for descriptor, _ in ready):
                status = signals.relay(self._child)
                if status is not None:
                    self._link.say_exit(status)
                    return status

    def _receive(self) -> None:
        if self._listener is None:
            return
        while (stopped := self._listener.receive()) is not None:
            if sync_calls.concerns(self._root, stopped.call, stopped.pid, stopped.args):
                self._waiting[stopped.id] = (stopped.pid, stopped.call)
                self._link.add(stopped.id)
            else:
                self._listener.let_go(stopped.id)

    def _let_go(self, ident: int) -> None:
        assert self._listener is not None, "only gated calls wait"
        if self._waiting.pop(ident, None) is not None:
            self._listener.let_go(ident)


def main() -> NoReturn:
    options = _parse(sys.argv[1:])
    try:
        status = run(options)
    except errors.DiffKeeperError as error:
        _say(error.message, error.hint)
        sys.exit(EXIT_OWN_FAILURE)
    except _NotStarted as error:
        _say(error.failure.message, error.failure.hint)
        sys.exit(error.failure.exit_code)
    _end_like(status)


class _NotStarted(Exception):
    def __init__(self, failure: program_launch.Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def run(options: argparse.Namespace) -> int:
    """Start the program and stay with it; its wait status."""
    launch = Launch(
        tuple(options.argv), options.cwd, options.uid, options.gid, options.bind, gated=not options.no_gate
    )
    root = None
    if options.root is not None:
        root = sync_calls.Root.of(options.root, options.bind[1] if options.bind else None)
    # Before the fork, so that no signal is lost between it and the loop.
    relay = SignalRelay()
    ours, childs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    failures_out, failures_in = os.pipe2(os.O_CLOEXEC)
    wrapper_pid = os.getpid()
    child = os.fork()
    if child == 0:
        ours.close()
        os.close(failures_out)
        program_launch.become_program(
            launch,
            parent=wrapper_pid,
            parent_end=childs,
            failures=failures_in,
            signal_mask=relay.mask_before,
        )
    childs.close()
    os.close(failures_in)
    listener = _take_listener(ours, child, failures_out) if launch.gated else None
    link = AgentLink(options.agent_socket, options.volume, child, listener)
    try:
        link.introduce(FIRST_ANSWER_S)
    except (AgentSaidNo, OSError) as error:
        ours.close()  # the child reads the end of it and exits
        os.waitpid(child, 0)
        raise _no_agent(options.agent_socket, error) from error
    ours.send(b"g")
    ours.close()
    failure = _read_failure(failures_out)
    if failure is not None:
        status = os.waitpid(child, 0)[1]
        link.say_exit(status)
        raise _NotStarted(failure)
    return Wrapper(child, listener, link, root).supervise(relay)


def _take_listener(ours: socket.socket, child: int, failures: int) -> seccomp.Listener:
    _data, descriptors, _flags, _address = socket.recv_fds(ours, 16, 1)
    if not descriptors:
        os.waitpid(child, 0)
        raise _NotStarted(
            _read_failure(failures)
            or program_launch.Failure(
                "the program's process ended before it had a gate", "", EXIT_OWN_FAILURE
            )
        )
    os.set_inheritable(descriptors[0], False)
    return seccomp.Listener(descriptors[0])


def _read_failure(descriptor: int) -> program_launch.Failure | None:
    """What the child reported, or None once exec has closed the pipe."""
    data = os.read(descriptor, 65_536)
    os.close(descriptor)
    return program_launch.Failure(*json.loads(data)) if data else None


def _no_agent(path: str, error: Exception) -> errors.DiffKeeperError:
    if isinstance(error, AgentSaidNo):
        return error.reason
    return errors.Unreachable(
        f"the capture agent does not answer at {path}: {error}; the program was not started",
        hint="dkctl status shows whether the site's agent runs",
    )


def _end_like(status: int) -> NoReturn:
    """End as the program ended: with its code, or by its signal, so that whoever waits sees no difference."""
    if not os.WIFSIGNALED(status):
        os._exit(os.WEXITSTATUS(status))
    number = os.WTERMSIG(status)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    time.sleep(1)
    os._exit(128 + number)


def _say(message: str, hint: str) -> None:
    sys.stderr.write(f"diffkeeper-run: {message}\n" + (f"  hint: {hint}\n" if hint else ""))
    sys.stderr.flush()


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="diffkeeper-run", description="Start a program behind a volume's durability gate."
    )
    parser.add_argument("--agent-socket", required=True, metavar="PATH")
    parser.add_argument("--volume", required=True)
    parser.add_argument(
        "--root", metavar="DIR", help="the volume's directory: calls on files elsewhere pass at once"
    )
    parser.add_argument("--no-gate", action="store_true", help="no filter: sync calls never wait")
    parser.add_argument("--cwd", metavar="DIR")
    parser.add_argument("--uid", type=int)
    parser.add_argument("--gid", type=int)
    parser.add_argument("--bind", type=_bind, metavar="DIR=PATH", help="show DIR at PATH to the program only")
    parser.add_argument("argv", nargs="+", metavar="COMMAND")
    return parser.parse_args(arguments)


def _bind(text: str) -> tuple[str, str]:
    directory, equals, path = text.partition("=")
    if not (equals and directory and path):
        raise argparse.ArgumentTypeError("write DIR=PATH")
    return directory, path


if __name__ == "__main__":
    main()
