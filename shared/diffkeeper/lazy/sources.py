"""Where the bytes of a lazily filled tree come from: a history over HTTP, a connection a thread."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import quote, urlencode, urlsplit

import msgspec
from blake3 import blake3

from diffkeeper import atomic_files
from diffkeeper.domain import errors

# In the hidden folder.
NAME = "source.json"
# Of one answer.
MOST_BYTES = 4 * 1024 * 1024
MOST_PARTS = 256
_DIGEST_BYTES = 32
_TIMEOUT_S = 60.0
_ERROR_BYTES = 1024 * 1024


class Part(NamedTuple):
    """So many bytes of a file, by the key that the source gave it."""

    key: int
    offset: int
    length: int


class Source(Protocol):
    def fetch(self, parts: Sequence[Part]) -> list[memoryview]:
        """The bytes of each part, verified. Raises Transient and Unreachable for what may pass, and others."""


class Address(msgspec.Struct, frozen=True):
    """``source.json``. With ``deployment``, the directory of one, what that says of itself comes first."""

    volume: str
    position: str
    address: str
    token: str
    deployment: str | None = None


class HttpSource:
    """``folder`` has ``source.json``, which is read anew for each connection: addresses change."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._local = threading.local()

    def fetch(self, parts: Sequence[Part]) -> list[memoryview]:
        wanted = sum(part.length for part in parts)
        assert 0 < wanted <= MOST_BYTES and len(parts) <= MOST_PARTS, "the caller cuts it up"
        body = self._ask(parts, wanted)
        data = memoryview(body)[_DIGEST_BYTES:]
        if len(data) != wanted or blake3(data).digest() != body[:_DIGEST_BYTES]:
            raise errors.Transient(
                "what came is not what was sent; nothing of it was used", reason="answer-damaged"
            )
        found, at = [], 0
        for part in parts:
            found.append(data[at : at + part.length])
            at += part.length
        return found

    def unpin(self, tag: str) -> None:
        """The moment need not be kept for this any more. Best done; a tag that stays keeps more than is needed."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection, where = self._connection(), self._local.where
            path = f"/v1/volumes/{quote(where.volume, safe='')}/history/tags/{tag}"
            connection.request("DELETE", path, headers={"Authorization": f"Bearer {where.token}"})
            connection.getresponse().read(_ERROR_BYTES)
        self._drop()

    def _ask(self, parts: Sequence[Part], wanted: int) -> bytes:
        query = [("part", f"{part.key}:{part.offset}:{part.length}") for part in parts]
        try:
            # A connection that was kept may have ended on the other side, which shows when it is used.
            fresh = getattr(self._local, "connection", None) is None
            try:
                status, body = self._exchange(query, wanted)
            except (OSError, http.client.HTTPException):
                self._drop()
                if fresh:
                    raise
                status, body = self._exchange(query, wanted)
        except (OSError, http.client.HTTPException) as error:
            self._drop()
            raise errors.Unreachable(
                f"the history does not answer: {error}",
                reason="history-lost",
                hint="start the deployment again (dkctl up); the filling goes on then",
            ) from error
        if status != 200:
            raise _told(body)
        return body

    def _exchange(self, query: list[tuple[str, str]], wanted: int) -> tuple[int, bytes]:
        connection = self._connection()
        where = self._local.where
        path = f"/v1/volumes/{quote(where.volume, safe='')}/history/range"
        asked = urlencode([("when", where.position), *query])
        connection.request("GET", f"{path}?{asked}", headers={"Authorization": f"Bearer {where.token}"})
        response = connection.getresponse()
        most = wanted + _DIGEST_BYTES if response.status == 200 else _ERROR_BYTES
        body = response.read(most + 1)
        if response.read(1):
            self._drop()
        return response.status, body

    def _connection(self) -> http.client.HTTPConnection:
        found: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if found is None:
            where = _current(msgspec.json.decode(self._path.read_bytes(), type=Address))
            found = http.client.HTTPConnection(urlsplit(where.address).netloc, timeout=_TIMEOUT_S)
            self._local.connection, self._local.where = found, where
        return found

    def _drop(self) -> None:
        found, self._local.connection = getattr(self._local, "connection", None), None
        if found is not None:
            found.close()


def write(folder: Path, where: Address) -> None:
    atomic_files.write_bytes(folder / NAME, msgspec.json.encode(where))


def _current(where: Address) -> Address:
    if where.deployment is None:
        return where
    try:
        folder = Path(where.deployment)
        control = json.loads((folder / "deployment.json").read_text())["control"]
        token = (folder / "token").read_text().strip()
        return msgspec.structs.replace(where, address=control["address"], token=token)
    except (OSError, ValueError, KeyError, TypeError):
        return where


def _told(body: bytes) -> errors.DiffKeeperError:
    try:
        return errors.from_dict(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return errors.Transient("the history's answer makes no sense", reason="odd-answer")
