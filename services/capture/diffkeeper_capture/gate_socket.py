"""The agent's side of ``gate.sock``: run wrappers come, say what they run, and hand over their stopped calls.

A wrapper that died leaves nobody to receive; while descendants of its program live on, the agent does it
itself with the listener it was given, so that a sync call below the gate never fails for want of a listener.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from diffkeeper.domain import errors, stop_signals
from diffkeeper_capture import call_table, gate_messages, seccomp, short_paths, sync_calls
from diffkeeper_capture.gate import Gate

_log = structlog.get_logger("gate")


@dataclass(slots=True)
class Program:
    """A program under a run wrapper."""

    volume: str
    pid: int
    wrapper: int
    gated: bool
    root: str | None = None  # the directory that its caller took the volume for
    seen_at: str | None = None  # where it sees the volume, when that is not the volume's own path
    stop_signal: str = stop_signals.DEFAULT  # how it is asked to end
    hard_limit: bool = False  # stopped while the ring is more than half full
    # Wait status; None while it runs, or when it ended while nobody could say how.
    status: int | None = None
    running: bool = True
    # Its image is in place; until then it may still turn out that it cannot be executed.
    started: bool = False

    @property
    def exit_code(self) -> int | None:
        """As shells say it: the code, or 128 and the signal."""
        if self.status is None:
            return None
        return 128 + os.WTERMSIG(self.status) if os.WIFSIGNALED(self.status) else os.WEXITSTATUS(self.status)


@dataclass(frozen=True, slots=True)
class Admitted:
    """Where a program's calls go. Without a root every call is gated."""

    gate: Gate
    root: sync_calls.Root | None


# The gate a program belongs to, or the error the wrapper is told. Called with each introduction.
Admit = Callable[[Program], Admitted]


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
            with short_paths.short(str(self._path)) as path:
                sock.bind(path)
            os.chmod(self._path, 0o600)
            sock.listen(64)
        except OSError as error:
            sock.close()
            raise errors.Misconfigured(
                f"cannot listen on {self._path}: {error}",
                reason="gate-socket",
                hint="check the owner and mode of its directory",
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

    def has_processes(self, program: Program) -> bool:
        """Whether any process is left under the program's filter."""
        return any(link.program is program and not link.is_abandoned for link in self._links)

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

    def _take(self, program: Program) -> Admitted:
        admitted = self._admit(program)
        for link in list(self._links):
            # A wrapper that begins again; what its old connection received stands in its table.
            if link.program is not None and link.program.wrapper == program.wrapper:
                link.close()
        return admitted


class _WrapperLink:
    """One connection. ``close`` may be called at any time and more than once."""

    def __init__(self, sock: socket.socket, admit: Admit, ended: Callable[[_WrapperLink], None]) -> None:
        self.program: Program | None = None
        self._socket: socket.socket | None = sock
        self._admit = admit
        self._ended = ended
        self._admitted: Admitted | None = None
        self._listener: seccomp.Listener | None = None
        self._table: call_table.CallTable | None = None
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._on_packet)

    @property
    def is_abandoned(self) -> bool:
        return self._listener is None or self._listener.is_abandoned()

    def let_go(self, idents: Sequence[int]) -> None:
        """The gate's word for this program."""
        if self._listener is None or self._table is None:
            return
        had_room = self._table.has_room
        for ident in idents:
            self._listener.let_go(ident)
            self._table.strike(ident)
        if not had_room:
            self._loop.add_reader(self._listener.fileno(), self._on_call)

    def close(self) -> None:
        """Stop receiving, then leave: from then on the wrapper receives."""
        if self._admitted is not None:
            self._admitted.gate.forget(self)
            self._admitted = None
        if self._listener is not None:
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None
        if self._table is not None:
            self._table.close()
            self._table = None
        self._drop_socket()
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
                    self._socket, gate_messages.PACKET_MAX_BYTES, 2
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
        if "gate" in message and self.program is None:
            self._introduced(message, descriptors)
        elif "started" in message and self.program is not None:
            self.program.started = True
        elif "exit" in message and self.program is not None:
            self.program.status = int(message["exit"])
            self.program.running = False

    def _introduced(self, message: dict[str, Any], descriptors: list[int]) -> None:
        assert self._socket is not None, "a message came by it"
        program = Program(
            str(message["gate"]),
            int(message["pid"]),
            int(message["wrapper"]),
            bool(message["gated"]),
            message.get("root"),
            message.get("seen_at"),
            stop_signals.parse(str(message.get("stop_signal", stop_signals.DEFAULT))),
            bool(message.get("hard_limit", False)),
        )
        if len(descriptors) == 2:
            self._listener = seccomp.Listener(descriptors[0])
            self._table = call_table.CallTable(descriptors[1])
        try:
            self._admitted = self._admit(program)
        except errors.DiffKeeperError as error:
            self._socket.send(gate_messages.pack({"error": error.to_dict()}))
            self.close()
            return
        self.program = program
        try:
            self._socket.send(gate_messages.pack({"ok": True}))
        except OSError:
            self._on_end()  # it was killed before it had its answer
            return
        if self._listener is not None and self._table is not None:
            for ident, pid, call in self._table.waiting():
                self._admitted.gate.arrive(self, ident, pid, call)
            self._loop.add_reader(self._listener.fileno(), self._on_call)

    def _on_call(self) -> None:
        listener, table, admitted = self._listener, self._table, self._admitted
        assert listener is not None and table is not None and admitted is not None, "they go with the reader"
        while table.has_room and (stopped := listener.receive()) is not None:
            table.note(stopped)
            if sync_calls.concerns(admitted.root, stopped.call, stopped.pid, stopped.args):
                admitted.gate.arrive(self, stopped.id, stopped.pid, stopped.call)
            else:
                self.let_go([stopped.id])
        if not table.has_room:
            self._loop.remove_reader(listener.fileno())
        elif listener.is_abandoned():
            # Nobody is left under the filter. With the connection still up the wrapper will say how it ended.
            self._loop.remove_reader(listener.fileno())
            if self._socket is None:
                self.close()

    def _on_end(self) -> None:
        """The wrapper is gone: its program ended, or it was killed and took the program along."""
        self._drop_socket()
        if self.program is not None:
            self.program.running = False
        if self._listener is None or self._listener.is_abandoned():
            self.close()
        else:
            _log.warning("processes live on whose run wrapper is gone", **self._facts())

    def _facts(self) -> dict[str, Any]:
        return {} if self.program is None else {"volume": self.program.volume, "pid": self.program.pid}
