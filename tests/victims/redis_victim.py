"""Redis with ``appendfsync always``: the answer follows the fsync of the append-only file."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from pathlib import Path

from tests.victims import operations, victims

from diffkeeper import nats_server

SETTINGS = {
    "bind": "127.0.0.1",
    "daemonize": "no",
    "save": "",
    "appendonly": "yes",
    "appendfsync": "always",
    "auto-aof-rewrite-percentage": "100",
}


class RedisClient:
    """RESP over a socket."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=victims.ANSWER_TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._answers = self._socket.makefile("rb")
        try:
            if self.call(b"PING") != b"PONG":
                raise ConnectionError("no PONG")
        except victims.RejectedError as error:  # such as LOADING
            self.close()
            raise ConnectionError(str(error)) from error
        except OSError:
            self.close()
            raise

    def put(self, key: str, payload: bytes) -> None:
        self.call(b"SET", key.encode(), payload)

    def abort(self, key: str, payload: bytes) -> None:
        self.call(b"MULTI")
        self.call(b"SET", key.encode(), payload)
        self.call(b"DISCARD")
        raise victims.RejectedError("discarded")

    def call(self, *arguments: bytes) -> object:
        parts = [b"*%d\r\n" % len(arguments)]
        parts += [b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in arguments]
        self._socket.sendall(b"".join(parts))
        return self._answer()

    def _answer(self) -> object:
        line = self._answers.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionResetError("the program closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest
        if kind == b"-":
            raise victims.RejectedError(rest.decode())
        if kind == b":":
            return int(rest)
        if kind == b"$":
            size = int(rest)
            if size < 0:
                return None
            data = self._answers.read(size + 2)
            if len(data) < size + 2:
                raise ConnectionResetError("the program closed the connection")
            return data[:-2]
        if kind == b"*":
            return [self._answer() for _ in range(int(rest))]
        raise ConnectionError(f"not RESP: {line!r}")

    def close(self) -> None:
        self._answers.close()
        self._socket.close()


class RedisVictim:
    name = "redis"

    def __init__(self, rewrite_from: str = "512kb") -> None:
        """``rewrite_from``: small, so that a short run sees rewrites (a new base, a rename, unlinks)."""
        self.port = nats_server.free_port()
        self._rewrite_from = rewrite_from

    def lacking(self) -> str | None:
        absent = [name for name in ("redis-server", "redis-check-aof") if victims.program(name) is None]
        return f"not installed: {', '.join(absent)} (apt-get install redis-server)" if absent else None

    def prepare(self, directory: Path) -> None:
        """The server makes its own files."""

    def command(self, directory: str) -> list[str]:
        settings = SETTINGS | {
            "dir": directory,
            "port": str(self.port),
            "auto-aof-rewrite-min-size": self._rewrite_from,
        }
        options = [part for name, value in settings.items() for part in (f"--{name}", value)]
        return [victims.program("redis-server") or "redis-server", *options]

    def connect(self) -> RedisClient:
        return RedisClient(self.port)

    def found(self) -> operations.Found:
        with contextlib.closing(self.connect()) as client:
            keys = client.call(b"KEYS", b"*")
            assert isinstance(keys, list), "KEYS answers with a list"
            values = client.call(b"MGET", *keys) if keys else []
            assert isinstance(values, list), "MGET answers with a list"
            return {key.decode(): [operations.digest(value)] for key, value in zip(keys, values, strict=True)}

    def examine(self, directory: Path) -> list[str]:
        manifest = directory / "appendonlydir" / "appendonly.aof.manifest"
        check = subprocess.run(
            ["redis-check-aof", str(manifest)], capture_output=True, text=True, timeout=60, check=False
        )
        if check.returncode == 0:
            return []
        return [f"redis-check-aof: {' '.join(check.stdout.split())[-300:]} {check.stderr.strip()}"]

    def side_load(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()
