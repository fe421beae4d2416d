"""The run wrapper's link to the agent: one connection after the other, and what each of them has been told.

A new connection gets the introduction and then every call that still waits, so an agent's successor knows
all of them. Connecting goes on for ever with a bounded pause. Only standard library here.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import time
from collections.abc import Iterator, Mapping

from diffkeeper.domain import errors
from diffkeeper_capture import gate_messages, seccomp

_PAUSE_FIRST_S = 0.02
_PAUSE_MOST_S = 1.0
# A successor that is up but does not know the volume yet says no; that it does is seen within this time.
_ANSWER_S = 1.0
_SAY_EXIT_S = 2.0


class AgentSaidNo(Exception):
    def __init__(self, reason: errors.DiffKeeperError) -> None:
        super().__init__(reason.message)
        self.reason = reason


class AgentLink:
    def __init__(self, path: str, volume: str, child: int, listener: seccomp.Listener | None) -> None:
        self._path = path
        self._listener = listener
        self._hello = {"gate": volume, "pid": child, "wrapper": os.getpid(), "gated": listener is not None}
        self._socket: socket.socket | None = None
        # Ids this connection has not been told.
        self._untold: list[int] = []
        self._pause_s = _PAUSE_FIRST_S
        self._next_try = 0.0
        self._complained = False

    def introduce(self, patience_s: float) -> None:
        """Connect and be accepted; raises AgentSaidNo or OSError (a time-out included)."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            sock.settimeout(patience_s)
            sock.connect(self._path)
            hello = gate_messages.pack(self._hello)
            if self._listener is None:
                sock.send(hello)
            else:
                socket.send_fds(sock, [hello], [self._listener.fileno()])
            data = sock.recv(gate_messages.PACKET_MAX_BYTES)
            if not data:
                raise ConnectionResetError("it closed the connection")
            answer = gate_messages.unpack(data)
            if "error" in answer:
                raise AgentSaidNo(errors.from_dict(answer["error"]))
        except BaseException:
            sock.close()
            raise
        sock.setblocking(False)
        self._socket = sock

    @contextlib.contextmanager
    def registered(self, poll: select.poll) -> Iterator[None]:
        """The connection is part of ``poll`` within the block, for writing too when something could not be
        said.
        """
        sock = self._socket
        if sock is None:
            yield
            return
        poll.register(sock, select.POLLIN | (select.POLLOUT if self._untold else 0))
        try:
            yield
        finally:
            poll.unregister(sock)

    def patience_ms(self) -> float | None:
        """How long the loop may sleep: until the next try to connect, or until something happens."""
        return None if self._socket is not None else max(0.0, (self._next_try - time.monotonic()) * 1000)

    def add(self, ident: int) -> None:
        self._untold.append(ident)

    def exchange(self, waiting: Mapping[int, tuple[int, str]]) -> list[int]:
        """Tell what is untold, hear what may go on; a lost connection is replaced. Never blocks for long."""
        if self._socket is None and not self._reconnect(waiting):
            return []
        try:
            self._tell(waiting)
            return self._hear()
        except (OSError, ValueError) as error:
            self._lose(str(error))
            return []

    def say_exit(self, status: int) -> None:
        """The program's wait status, if anybody listens; the agent also sees the connection end."""
        if self._socket is None:
            return
        with contextlib.suppress(OSError):
            self._socket.settimeout(_SAY_EXIT_S)
            self._socket.send(gate_messages.pack({"exit": status}))

    def _tell(self, waiting: Mapping[int, tuple[int, str]]) -> None:
        assert self._socket is not None
        while self._untold:
            batch = self._untold[: gate_messages.IDS_PER_PACKET]
            calls = [[ident, *waiting[ident]] for ident in batch if ident in waiting]
            try:
                if calls:
                    self._socket.send(gate_messages.pack({"calls": calls}))
            except BlockingIOError:
                return
            del self._untold[: len(batch)]

    def _hear(self) -> list[int]:
        assert self._socket is not None
        go: list[int] = []
        while True:
            try:
                data = self._socket.recv(gate_messages.PACKET_MAX_BYTES)
            except BlockingIOError:
                return go
            if not data:
                self._lose("it closed the connection")
                return go
            message = gate_messages.unpack(data)
            if "error" in message:
                self._lose(errors.from_dict(message["error"]).message)
                return go
            go.extend(message.get("go", ()))

    def _lose(self, why: str) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            self._pause_s = _PAUSE_FIRST_S
        self._next_try = time.monotonic() + self._pause_s
        self._pause_s = min(_PAUSE_MOST_S, self._pause_s * 2)
        if not self._complained and self._pause_s >= _PAUSE_MOST_S:
            # Once an outage, and not for a quick restart: stderr is the program's.
            sys.stderr.write(f"diffkeeper-run: sync calls wait for the capture agent ({why})\n")
            self._complained = True

    def _reconnect(self, waiting: Mapping[int, tuple[int, str]]) -> bool:
        if time.monotonic() < self._next_try:
            return False
        try:
            self.introduce(_ANSWER_S)
        except (AgentSaidNo, OSError, ValueError) as error:
            self._lose(str(error))
            return False
        self._untold = list(waiting)
        self._pause_s = _PAUSE_FIRST_S
        self._complained = False
        return True
