"""The run wrapper's link to the agent: one connection after the other, tried for ever with a bounded pause.

Only standard library here.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from typing import Any

from diffkeeper.domain import errors
from diffkeeper_capture import gate_messages, short_paths

_PAUSE_FIRST_S = 0.02
_PAUSE_MOST_S = 1.0
_SAY_S = 2.0


class AgentSaidNo(Exception):
    def __init__(self, reason: errors.DiffKeeperError) -> None:
        super().__init__(reason.message)
        self.reason = reason


class AgentLink:
    """``hello`` and the descriptors that go with it are ``gate_messages``' introduction."""

    def __init__(self, path: str, hello: dict[str, Any], descriptors: list[int]) -> None:
        self._path = path
        self._descriptors = descriptors
        self._hello = hello
        self._socket: socket.socket | None = None
        self._pause_s = _PAUSE_FIRST_S
        self._next_try = 0.0
        self._complained = False

    @property
    def is_up(self) -> bool:
        """While it is, the agent receives, or will once it has answered; the wrapper does not."""
        return self._socket is not None

    def fileno(self) -> int:
        assert self._socket is not None, "only a link that is up can be waited for"
        return self._socket.fileno()

    def introduce(self, patience_s: float) -> None:
        """The first time: connect and be accepted; raises AgentSaidNo, ValueError or OSError."""
        sock = self._begin()
        try:
            sock.settimeout(patience_s)
            data = sock.recv(gate_messages.PACKET_MAX_BYTES)
            if not data:
                raise ConnectionResetError("it closed the connection")
            _check(data)
        except BaseException:
            sock.close()
            raise
        sock.setblocking(False)
        self._socket = sock

    def pause_ms(self) -> float:
        """How long until the next try to connect is due."""
        return max(0.0, (self._next_try - time.monotonic()) * 1000)

    def try_again(self) -> None:
        """One try when it is due. No time-out for its answer: a slow agent that accepts begins to receive."""
        if time.monotonic() < self._next_try:
            return
        try:
            self._socket = self._begin()
        except OSError as error:
            self._lose(str(error))

    def listen(self) -> bool:
        """Hear the agent out; whether it is still there."""
        assert self._socket is not None, "only a link that is up can be listened to"
        try:
            data = self._socket.recv(gate_messages.PACKET_MAX_BYTES)
            if not data:
                raise ConnectionResetError("it closed the connection")
            _check(data)
        except BlockingIOError:
            return True
        except (AgentSaidNo, OSError, ValueError) as error:
            self._lose(str(error))
            return False
        self._pause_s = _PAUSE_FIRST_S
        self._complained = False
        return True

    def _begin(self) -> socket.socket:
        """A connection on which the introduction was sent."""
        sock = socket.socket(
            socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        )
        try:
            with short_paths.short(self._path) as path:
                sock.connect(path)
            hello = gate_messages.pack(self._hello)
            if self._descriptors:
                socket.send_fds(sock, [hello], self._descriptors)
            else:
                sock.send(hello)
        except BaseException:
            sock.close()
            raise
        return sock

    def say(self, message: dict[str, Any]) -> None:
        """What became of the program, if anybody listens; the agent also sees the connection end."""
        if self._socket is None:
            return
        with contextlib.suppress(OSError):
            self._socket.settimeout(_SAY_S)
            self._socket.send(gate_messages.pack(message))
            self._socket.setblocking(False)

    def _lose(self, why: str) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._next_try = time.monotonic() + self._pause_s
        self._pause_s = min(_PAUSE_MOST_S, self._pause_s * 2)
        if not self._complained and self._pause_s >= _PAUSE_MOST_S:
            # Once an outage, and not for a quick restart: stderr is the program's.
            sys.stderr.write(f"diffkeeper-run: sync calls wait for the capture agent ({why})\n")
            self._complained = True


def _check(data: bytes) -> None:
    """Raise AgentSaidNo when a packet of the agent is its refusal."""
    answer = gate_messages.unpack(data)
    if "error" in answer:
        raise AgentSaidNo(errors.from_dict(answer["error"]))
