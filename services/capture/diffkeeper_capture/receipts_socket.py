"""``receipts.sock``: where a program asks whether what it wrote before now is safe, where, and since when.

One JSON object a line in, one a line out, in order; a connection may ask as often as it likes:

    {"volume": "orders", "level": "remote", "timeout_s": 5}
    {"safe": true, "volume": "orders", "level": "remote", "position": "7.1042", "hash": "…",
     "holders": ["spool:east", "stream:east", "replica:west"], "since_us": 1767225600000000}

``volume`` is in the program's environment (DIFFKEEPER_VOLUME) as this socket's path is (DIFFKEEPER_SOCKET). ``level`` is
the volume's own when it is left out. Everything whose call had returned when the line was sent is covered. ``timeout_s``
(30) is how long to wait for the level, 0 to be told how it stands: ``safe`` is false then, and ``since_us`` null, when
it is not met. What cannot be answered is ``{"error": {family, reason, message, hint, facts}}``. It is the same answer as
``dkctl sync`` gives. Root, the agent's own user, the owner of the directory and the user of the program may ask.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import structlog

from diffkeeper.domain import errors, receipts
from diffkeeper_capture import short_paths
from diffkeeper_capture.volume_capture import VolumeCapture

NAME = "receipts.sock"
LINE_MAX_BYTES = 4096
ASKERS_MAX = 256
WAIT_MAX_S = 3600.0
_PEER = struct.Struct("=iII")  # struct ucred: pid, uid, gid

_log = structlog.get_logger("receipts")

# The capture of a volume; raises NotFound, or what ended it.
Find = Callable[[str], VolumeCapture]


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    volume: str
    level: str | None = None
    timeout_s: float = 30.0


class ReceiptsSocket:
    def __init__(self, path: Path, find: Find) -> None:
        self.path = path
        self._find = find
        self._server: asyncio.Server | None = None
        self._askers: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """In place of an agent that died; raises Misconfigured when that cannot be."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISSOCK(self.path.stat().st_mode):
                    self.path.unlink()
            with short_paths.short(str(self.path)) as path:
                sock.bind(path)
            # Whoever may enter the directory may knock; who is answered depends on the volume.
            os.chmod(self.path, 0o666)
        except OSError as error:
            sock.close()
            raise errors.Misconfigured(
                f"cannot listen on {self.path}: {error}",
                reason="receipts-socket",
                hint="check the owner and mode of its directory",
            ) from error
        self._server = await asyncio.start_unix_server(self._serve, sock=sock, limit=LINE_MAX_BYTES)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
            self.path.unlink(missing_ok=True)
        for asker in self._askers:
            asker.cancel()
        if self._askers:
            await asyncio.wait(self._askers)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "the server makes one for each connection"
        self._askers.add(task)
        try:
            if len(self._askers) <= ASKERS_MAX:
                await self._answer_all(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            return  # the asker, or the agent, is gone
        finally:
            self._askers.discard(task)
            writer.close()

    async def _answer_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer: socket.socket = writer.get_extra_info("socket")
        _, uid, _ = _PEER.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        while True:
            try:
                line = await reader.readline()
            except ValueError:
                line = b" " * (LINE_MAX_BYTES + 1)
            if not line:
                return
            answer = await self._answer(line, uid)
            writer.write(msgspec.json.encode(answer) + b"\n")
            await writer.drain()
            if len(line) > LINE_MAX_BYTES:
                return  # where the next line begins is not known

    async def _answer(self, line: bytes, uid: int) -> dict[str, Any]:
        try:
            return await self._ask(line, uid)
        except errors.DiffKeeperError as error:
            return {"error": error.to_dict()}

    async def _ask(self, line: bytes, uid: int) -> dict[str, Any]:
        try:
            question = msgspec.json.decode(line[: LINE_MAX_BYTES + 1], type=Question)
        except msgspec.DecodeError as error:
            raise errors.Refused(
                f"that is not a question: {error}",
                reason="bad-request",
                hint='one line, such as {"volume": "orders", "level": "remote", "timeout_s": 5}',
            ) from error
        if not 0 <= question.timeout_s <= WAIT_MAX_S:
            raise errors.Refused(f"timeout_s is 0 to {WAIT_MAX_S:g} seconds", reason="bad-request")
        capture = self._find(question.volume)
        if uid not in _may_ask(capture):
            raise errors.Refused(
                f"user {uid} may not ask about volume {question.volume}",
                reason="not-yours",
                hint="root, the owner of its directory and the user of its program may",
            )
        level = capture.order.durability if question.level is None else receipts.parse_level(question.level)
        return await capture.tell(level, question.timeout_s)


def _may_ask(capture: VolumeCapture) -> set[int]:
    allowed = {0, os.geteuid()}
    with contextlib.suppress(OSError):
        allowed.add(os.stat(capture.order.path).st_uid)
    if capture.program is not None and capture.program.running:
        with contextlib.suppress(OSError):
            allowed.add(os.stat(f"/proc/{capture.program.pid}").st_uid)
    return allowed
