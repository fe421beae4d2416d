"""SQLite in WAL mode or with a rollback journal, behind ``sqlite_server.py``."""

from __future__ import annotations

import contextlib
import shutil
import socket
import sqlite3
import sys
import tempfile
from pathlib import Path

from tests.victims import operations, victims

from diffkeeper import nats_server

SERVER = Path(__file__).with_name("sqlite_server.py")


class SqliteClient:
    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=victims.ANSWER_TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._answers = self._socket.makefile("rb")

    def put(self, key: str, payload: bytes) -> None:
        self._send("PUT", key, payload)

    def abort(self, key: str, payload: bytes) -> None:
        self._send("ABORT", key, payload)

    def _send(self, verb: str, key: str, payload: bytes) -> None:
        self._socket.sendall(f"{verb} {key} {len(payload)}\n".encode() + payload)
        answer = self._line()
        if answer != "OK":
            raise victims.RejectedError(answer)

    def _line(self) -> str:
        line = self._answers.readline()
        if not line.endswith(b"\n"):
            raise ConnectionResetError("the program closed the connection")
        return line.decode().rstrip("\n")

    def ask(self, verb: str) -> list[str]:
        self._socket.sendall(f"{verb}\n".encode())
        lines = []
        while (line := self._line()) != "END":
            lines.append(line)
        return lines

    def close(self) -> None:
        self._answers.close()
        self._socket.close()


class SqliteVictim:
    def __init__(self, journal: str) -> None:
        self.name = f"sqlite-{journal}"
        self.port = nats_server.free_port()
        self._journal = journal

    def lacking(self) -> str | None:
        return None  # the module is part of Python

    def prepare(self, directory: Path) -> None:
        """The server makes its own database."""

    def command(self, directory: str) -> list[str]:
        return [
            sys.executable,
            str(SERVER),
            f"--path={directory}",
            f"--port={self.port}",
            f"--journal={self._journal}",
        ]

    def connect(self) -> SqliteClient:
        return SqliteClient(self.port)

    def found(self) -> operations.Found:
        with contextlib.closing(self.connect()) as client:
            entries: dict[str, list[str]] = {}
            for line in client.ask("DUMP"):
                key, digest = line.split()
                entries.setdefault(key, []).append(digest)
            return entries

    def examine(self, directory: Path) -> list[str]:
        """integrity_check by the running program, and by another SQLite on a copy that recovers by itself."""
        with contextlib.closing(self.connect()) as client:
            live = client.ask("CHECK")
        return [f"integrity_check: {line}" for line in live if line != "ok"] + self._examine_copy(directory)

    def _examine_copy(self, directory: Path) -> list[str]:
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch, "copy")
            shutil.copytree(directory, copy)
            with contextlib.closing(sqlite3.connect(copy / "entries.db")) as database:
                try:
                    rows = database.execute("PRAGMA integrity_check").fetchall()
                except sqlite3.DatabaseError as error:
                    return [f"the copy cannot be read: {error}"]
        return [f"integrity_check of a copy: {row[0]}" for row in rows if row[0] != "ok"]

    def side_load(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()
