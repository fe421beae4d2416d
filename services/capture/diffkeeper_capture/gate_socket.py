"""The agent's side of ``gate.sock``: run wrappers come, say what they run, and hand over their stopped calls.

A wrapper that died leaves nobody to receive; while descendants of its program live on, the agent does it
itself with the listener it was given, so that a sync call below the gate never fails for want of a listener.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from diffkeeper.domain import errors
from diffkeeper_capture import gate_messages, seccomp
from diffkeeper_capture.gate import Gate

_log = structlog.get_logger("gate")


@dataclass(slots=True)
class Program:
    """A program under a run wrapper."""

    volume: str
    pid: int
    wrapper: int
    gated: bool
    # Wait status; None while it runs, or when it ended while nobody could say how.
    status: int | None = None
    running: bool = True

    @property
    def exit_code(self) -> int | None:
        """As shells say it: the code, or 128 and the signal."""
        if self.status is None:
            return None
        return 128 + os.WTERMSIG(self.status) if os.WIFSIGNALED(self.status) else os.WEXITSTATUS(self.status)


# The gate a program belongs to, or the error the wrapper is told. Called with each introduction.
Admit = Callable[[Program], Gate]


class GateSocket:
    """Listens for wrappers for as long as it is open."""

    def __init__(self, path: Path, admit: Admit) -> None:
        self._path = path
        self._admit = admit
        self._links: set[_WrapperLink] = set()
        self._socket: socket.socket | None = None

    def open(self) -> None:
        """Bind and listen in place of an agent that died; raises Misconfigured when that cannot be."""
        sock = socket.socket(
            socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        )
        try:
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISSOCK(self._path.stat().st_mode):
                    self._path.unlink()
            sock.bind(str(self._path))
            os.chmod(self._path, 0o600)
            sock.listen(64)
        except OSError as error:
            sock.close()
            raise errors.Misconfigured(
                f"cannot listen on {self._path}: {error}",
                reason="gate-socket",
                hint="a socket's path has at most 107 bytes; choose a shorter data_dir",
            ) from error
        self._socket = sock
        asyncio.get_running_loop().add_reader(sock, self._accept)

    def close(self) -> None:
        """Stop listening and leave the wrappers; their calls stay stopped for a successor."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
        for link in list(self._links):
            link.close()

    def drop(self, program: Program) -> None:
        """End the connection of a program whose volume is no longer ours."""
        for link in list(self._links):
            if link.program is program:
                link.close()

    def _accept(self) -> None:
        assert self._socket is not None
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            sock, _ = self._socket.accept()
            sock.setblocking(False)
            self._links.add(_WrapperLink(sock, self._take, self._links.discard))

    def _take(self, program: Program) -> Gate:
        gate = self._admit(program)
        for link in list(self._links):
            # A wrapper that begins again: what its old connection still waits for, it repeats on the new one.
            if link.program is not None and link.program.wrapper == program.wrapper:
                link.close()
        return gate


class _WrapperLink:
    """One connection. ``close`` may be called at any time and more than once."""

    def __init__(self, sock: socket.socket, admit: Admit, ended: Callable[[_WrapperLink], None]) -> None:
        self.program: Program | None = None
        self._socket: socket.socket | None = sock
        self._admit = admit
        self._ended = ended
        self._gate: Gate | None = None
        self._listener: seccomp.Listener | None = None
        self._wrapper_fd: int | None = None
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._on_packet)

    def let_go(self, idents: Sequence[int]) -> None:
        """Gate's word for this program. A wrapper that does not read is one that died, or is repeated to."""
        if self._socket is None:
            if self._listener is not None:
                for ident in idents:
                    self._listener.let_go(ident)
            return
        for start in range(0, len(idents), gate_messages.IDS_PER_PACKET):
            part = list(idents[start : start + gate_messages.IDS_PER_PACKET])
            try:
                self._socket.send(gate_messages.pack({"go": part}))
            except OSError as error:
                # It connects again and repeats these calls; a new barrier then covers them.
                _log.warning("a run wrapper does not listen", error=str(error), **self._facts())
                self.close()
                return

    def close(self) -> None:
        self._drop_socket()
        if self._listener is not None:
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None
        if self._wrapper_fd is not None:
            self._loop.remove_reader(self._wrapper_fd)
            os.close(self._wrapper_fd)
            self._wrapper_fd = None
        if self._gate is not None:
            self._gate.forget(self)
            self._gate = None
        self._ended(self)

    def _drop_socket(self) -> None:
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def _on_packet(self) -> None:
        while self._socket is not None:
            try:
                data, descriptors, _flags, _ = socket.recv_fds(
                    self._socket, gate_messages.PACKET_MAX_BYTES, 1
                )
            except BlockingIOError:
                return
            except OSError as error:
                _log.warning("a run wrapper's connection broke", error=str(error), **self._facts())
                data, descriptors = b"", []
            if not data:
                self._on_end()
                return
            try:
                self._on_message(gate_messages.unpack(data), descriptors)
            except (ValueError, KeyError, TypeError) as error:
                _log.error("a run wrapper sent nonsense", error=repr(error), **self._facts())
                self.close()

    def _on_message(self, message: dict[str, Any], descriptors: list[int]) -> None:
        if "gate" in message:
            self._introduced(message, descriptors)
        elif "calls" in message and self._gate is not None:
            for ident, pid, call in message["calls"]:
                self._gate.arrive(self, int(ident), int(pid), str(call))
        elif "exit" in message and self.program is not None:
            self.program.status = int(message["exit"])
            self.program.running = False

    def _introduced(self, message: dict[str, Any], descriptors: list[int]) -> None:
        assert self._socket is not None
        program = Program(
            str(message["gate"]), int(message["pid"]), int(message["wrapper"]), bool(message["gated"])
        )
        if descriptors:
            os.set_inheritable(descriptors[0], False)
            self._listener = seccomp.Listener(descriptors[0])
        try:
            self._gate = self._admit(program)
        except errors.DiffKeeperError as error:
            self._socket.send(gate_messages.pack({"error": error.to_dict()}))
            self.close()
            return
        self.program = program
        self._socket.send(gate_messages.pack({"ok": True}))
        with contextlib.suppress(ProcessLookupError):
            self._wrapper_fd = os.pidfd_open(program.wrapper)

    def _on_end(self) -> None:
        """The wrapper left: it died, its program ended, or it begins again."""
        self._drop_socket()
        if self.program is None or self._listener is None or self._gate is None:
            self._settle()
            self.close()
            return
        if self._wrapper_fd is not None and not select.select([self._wrapper_fd], [], [], 0)[0]:
            # Not dead, or not yet: it may begin again (then ``_take`` closes this link), or its death is on
            # its way.
            self._loop.add_reader(self._wrapper_fd, self._on_wrapper_death)
            return
        self._receive_for_orphans()

    def _on_wrapper_death(self) -> None:
        assert self._wrapper_fd is not None
        self._loop.remove_reader(self._wrapper_fd)
        self._receive_for_orphans()

    def _receive_for_orphans(self) -> None:
        self._settle()
        assert self._listener is not None
        if self._listener.is_abandoned():
            self.close()
            return
        _log.warning("a program's run wrapper is gone; the agent receives its sync calls", **self._facts())
        self._loop.add_reader(self._listener.fileno(), self._on_call)

    def _on_call(self) -> None:
        assert self._listener is not None and self._gate is not None
        while (stopped := self._listener.receive()) is not None:
            self._gate.arrive(self, stopped.id, stopped.pid, stopped.call)
        if self._listener.is_abandoned():
            self.close()

    def _settle(self) -> None:
        """The program itself ended with its wrapper, which takes it along."""
        if self.program is not None and self.program.running:
            self.program.running = False
            if self.program.status is None:
                self.program.status = signal.SIGKILL

    def _facts(self) -> dict[str, Any]:
        return {} if self.program is None else {"volume": self.program.volume, "pid": self.program.pid}
