"""``diffkeeper-run``: starts a program behind the gate and stays its parent.

It forks; the child puts the seccomp filter on itself and becomes the program (``program_launch``). The
wrapper gives the agent the listener on which stopped sync calls are received. When the agent goes, the
wrapper takes over: it receives, so that no call waits unseen, lets none go on, and offers all of them to the
agent's successor for ever. Signals, exit code and death by signal pass through. Small on purpose: standard
library only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from diffkeeper.domain import errors, stop_signals
from diffkeeper_capture import call_table, program_launch, seccomp
from diffkeeper_capture.agent_link import AgentLink, AgentSaidNo
from diffkeeper_capture.program_launch import EXIT_OWN_FAILURE, Launch
from diffkeeper_capture.signal_relay import SignalRelay

# Between an agent and a wrapper that it started in advance, and how long such a one waits to be needed.
READY, GO_ON = b"r", b"g"
WORD_S = 120.0
# How long the agent may take for its first answer, before the program is started.
FIRST_ANSWER_S = 10.0


@dataclass(frozen=True, slots=True)
class ProgramGate:
    """The listener of one program and the calls received on it."""

    listener: seccomp.Listener
    table: call_table.CallTable

    def receive(self) -> None:
        while self.table.has_room and (stopped := self.listener.receive()) is not None:
            self.table.note(stopped)


def supervise(child: int, gate: ProgramGate | None, link: AgentLink, signals: SignalRelay) -> int:
    """Until the program has ended; its wait status."""
    while True:
        ready = _wait(gate, link, signals)
        if signals.fileno() in ready:
            status = signals.relay(child)
            if status is not None:
                link.say({"exit": status})
                return status
        if link.is_up:
            if not link.listen() and gate is not None:
                gate.table.recover(gate.listener)
        else:
            if gate is not None:
                gate.receive()
            link.try_again()


def _wait(gate: ProgramGate | None, link: AgentLink, signals: SignalRelay) -> set[int]:
    poll = select.poll()
    poll.register(signals.fileno(), select.POLLIN)
    if link.is_up:
        poll.register(link.fileno(), select.POLLIN)
        return {descriptor for descriptor, _ in poll.poll()}
    if gate is not None and gate.table.has_room:
        poll.register(gate.listener.fileno(), select.POLLIN)
    return {descriptor for descriptor, _ in poll.poll(link.pause_ms())}


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
    if options.wait_for is not None:
        os.set_inheritable(options.wait_for, False)
    launch = Launch(
        tuple(options.argv),
        # Before the identity changes: a process that changed it may not read its own any more.
        program_launch.environment_as_given(),
        options.cwd,
        options.uid,
        options.gid,
        options.bind,
        gated=not options.no_gate,
        io_uring=options.io_uring == "allow",
    )
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
    gate = _take_gate(ours, child, failures_out) if launch.gated else None
    if options.wait_for is not None and not _told_to_go_on(options.wait_for):
        ours.close()  # the child reads the end of it and exits
        return os.waitpid(child, 0)[1]
    hello = {
        "gate": options.volume,
        "pid": child,
        "wrapper": wrapper_pid,
        "gated": gate is not None,
        "root": options.root,
        "seen_at": options.bind[1] if options.bind else None,
        "stop_signal": options.stop_signal,
        "hard_limit": options.hard_limit,
    }
    descriptors = [] if gate is None else [gate.listener.fileno(), gate.table.descriptor]
    link = AgentLink(options.agent_socket, hello, descriptors)
    try:
        link.introduce(FIRST_ANSWER_S)
    except (AgentSaidNo, OSError, ValueError) as error:
        ours.close()  # the child reads the end of it and exits
        os.waitpid(child, 0)
        raise _no_agent(options.agent_socket, error) from error
    with contextlib.suppress(BrokenPipeError):  # the child has failed already, and said why
        ours.send(b"g")
    ours.close()
    failure = _read_failure(failures_out)
    if failure is not None:
        status = os.waitpid(child, 0)[1]
        link.say({"exit": status})
        raise _NotStarted(failure)
    link.say({"started": True})
    return supervise(child, gate, link, relay)


def _told_to_go_on(descriptor: int) -> bool:
    """Everything is ready but the volume: tell the agent, and wait for its word; without it nothing starts."""
    try:
        with socket.socket(fileno=descriptor) as agent:
            agent.settimeout(WORD_S)
            with contextlib.suppress(BrokenPipeError):  # it has given its word already, and left
                agent.send(READY)
            return agent.recv(1) == GO_ON
    except OSError:
        return False  # it gave up, or has forgotten


def _take_gate(ours: socket.socket, child: int, failures: int) -> ProgramGate:
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
    listener = seccomp.Listener(descriptors[0])
    table = call_table.CallTable.create()
    table.begin_after(_first_call(listener))
    return ProgramGate(listener, table)


def _first_call(listener: seccomp.Listener) -> int:
    """The number of the call that the child makes for this purpose; those of the program follow it."""
    poll = select.poll()
    poll.register(listener.fileno(), select.POLLIN)
    while (stopped := listener.receive()) is None:
        if any(event & select.POLLHUP for _, event in poll.poll()):
            raise errors.DiffKeeperError("the program's process was killed before it was started")
    listener.let_go(stopped.id)
    return stopped.id


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
    parser.add_argument("--root", metavar="DIR", help="refuse when the volume is another directory than this")
    parser.add_argument("--no-gate", action="store_true", help="no filter: sync calls never wait")
    parser.add_argument(
        "--stop-signal", default=stop_signals.DEFAULT, metavar="NAME", help="how it is asked to end"
    )
    parser.add_argument(
        "--hard-limit",
        action="store_true",
        help="stop the program while the probe's ring is more than half full",
    )
    parser.add_argument(
        "--io-uring",
        choices=["refuse", "allow"],
        default="refuse",
        help="behind the gate io_uring is refused, because its syncs cannot be held",
    )
    parser.add_argument("--wait-for", type=int, metavar="FD", help="start the program at a word from FD")
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
