"""The simple-query part of PostgreSQL's wire protocol 3.0: enough to know when a transaction was answered.

A statement is done when CommandComplete arrived, which the server sends after its commit record is flushed.
"""

from __future__ import annotations

import socket
import struct

from tests.victims import victims

_PROTOCOL = 3 << 16
# SQLSTATE classes after which the outcome is not known: the server goes down (57P), a connection was lost
# (08).
_UNSURE = ("57P", "08")

Row = tuple[str | None, ...]


class Connection:
    """One connection without a password. Raises OSError when it ends, RejectedError for an error answer."""

    def __init__(self, port: int, user: str, database: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=victims.ANSWER_TIMEOUT_S)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            fields = b"".join(part.encode() + b"\0" for part in ("user", user, "database", database)) + b"\0"
            self._socket.sendall(struct.pack("!II", len(fields) + 8, _PROTOCOL) + fields)
            self._until_ready()
        except victims.RejectedError as error:  # such as "the database system is starting up"
            self._socket.close()
            raise ConnectionError(str(error)) from error
        except OSError:
            self._socket.close()
            raise

    def query(self, statement: str) -> list[Row]:
        """Run one or more statements as one transaction; the rows of all of them."""
        body = statement.encode() + b"\0"
        self._socket.sendall(b"Q" + struct.pack("!I", len(body) + 4) + body)
        return self._until_ready()

    def _until_ready(self) -> list[Row]:
        rows: list[Row] = []
        rejected: str | None = None
        while True:
            kind, body = self._message()
            if kind == b"Z":
                break
            if kind == b"D":
                rows.append(_row(body))
            elif kind == b"R" and struct.unpack_from("!I", body)[0] != 0:
                raise ConnectionError("the server wants a password")
            elif kind == b"E":
                fields = {part[:1]: part[1:].decode() for part in body.split(b"\0") if part}
                rejected = f"{fields.get(b'C')} {fields.get(b'M')}"
                if rejected.startswith(_UNSURE):
                    raise ConnectionAbortedError(rejected)
                if fields.get(b"S") == "FATAL":
                    raise victims.RejectedError(rejected)
        if rejected is not None:
            raise victims.RejectedError(rejected)
        return rows

    def _message(self) -> tuple[bytes, bytes]:
        head = victims.receive_exactly(self._socket, 5)
        return head[:1], victims.receive_exactly(self._socket, struct.unpack("!I", head[1:])[0] - 4)

    def close(self) -> None:
        self._socket.close()


def _row(body: bytes) -> Row:
    (count,) = struct.unpack_from("!H", body)
    at, values = 2, []
    for _ in range(count):
        (size,) = struct.unpack_from("!i", body, at)
        at += 4
        values.append(None if size < 0 else body[at : at + size].decode())
        at += max(size, 0)
    return tuple(values)
