"""A storage node as a nats-server with a JetStream domain of its own. See ``shard_store`` for the promises.

One stream; the subject of an item is its key. An item larger than a message is cut into parts, each subject saying
which part of how many it is, so that a listing shows what is whole without reading it. The newest message of a
subject replaces the one before it; nothing else is ever dropped by the server.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any, Self

import nats.errors

from diffkeeper import nats_server
from diffkeeper.domain import errors, shard_headers
from diffkeeper.domain.shard_headers import Key
from diffkeeper.log import nats_connection
from diffkeeper.shards import shard_store

STREAM = "dk-shards"
_PREFIX = "dks."
# Below the servers' max_payload; half of a full segment fits.
PART_BYTES = 5 * 1024 * 1024
_MAX_PARTS = -(-shard_headers.MAX_BYTES // PART_BYTES)
# Parts on their way over one connection; a server drops a client that has more unread than its max_pending.
_IN_FLIGHT = 4
PUT_TIMEOUT_S = 20.0
GET_TIMEOUT_S = 20.0
_JS_NAME_IN_USE = 10058
_JS_FULL = frozenset({10023, 10028, 10047, 10077})

_CONFIG: dict[str, Any] = {
    "name": STREAM,
    "subjects": [f"{_PREFIX}>"],
    "retention": "limits",
    "storage": "file",
    "discard": "new",
    "max_msgs": -1,
    "max_bytes": -1,
    "max_age": 0,
    "max_msgs_per_subject": 1,
    "allow_direct": True,
    "compression": "none",
    "num_replicas": 1,
}


class NatsShardStore:
    """One node. Made by ``open``, which does not wait for the node to be there."""

    def __init__(self, node: str, connection: nats_connection.NatsConnection) -> None:
        self.node = node
        self._connection = connection
        self._slots = asyncio.Semaphore(_IN_FLIGHT)
        self._known: nats_connection.Session | None = None
        self._sessions = 0

    @classmethod
    async def open(
        cls,
        node: str,
        servers: Sequence[str],
        *,
        password: str,
        user: str = nats_server.USER,
        name: str = "diffkeeper-repair",
    ) -> Self:
        connection = nats_connection.NatsConnection(servers, user, password, name)
        connection.start()
        return cls(node, connection)

    async def wait(self, timeout_s: float) -> None:
        """Until it is connected; raises Unreachable. Asks nothing of the node, and changes nothing there."""
        await self._connection.session(timeout_s)

    async def check(self) -> shard_store.Vitals:
        session = self._connection.current
        if session is None:
            raise self._away()
        if session is not self._known:
            domain = (await self._connection.api("$JS.API.INFO")).get("domain", "")
            if domain != self.node:
                raise errors.Misconfigured(
                    f"at the address of storage node {self.node} answers {domain or 'a server without a name'}",
                    reason="wrong-node",
                    hint="check the addresses of the storage nodes",
                    node=self.node,
                )
            self._known = session
            self._sessions += 1
        info = await self._info()
        return shard_store.Vitals(f"{self._sessions}:{info['created']}", int(info["state"]["bytes"]))

    async def _info(self) -> dict[str, Any]:
        try:
            return await self._connection.api(f"$JS.API.STREAM.INFO.{STREAM}")
        except errors.NotFound:
            try:
                return await self._connection.api(f"$JS.API.STREAM.CREATE.{STREAM}", _CONFIG)
            except errors.Refused as error:
                if error.facts.get("err_code") != _JS_NAME_IN_USE:
                    raise
                return await self._connection.api(f"$JS.API.STREAM.INFO.{STREAM}")

    async def put(self, key: Key, data: bytes) -> None:
        parts = _cut(data)
        await asyncio.gather(
            *(self._put_part(_subject(key, number, len(parts)), part) for number, part in enumerate(parts))
        )

    async def _put_part(self, subject: str, part: bytes) -> None:
        async with self._slots:
            try:
                answer = json.loads((await self._connection.request(subject, part, PUT_TIMEOUT_S)).data)
            except (nats.errors.MaxPayloadError, ValueError) as error:
                raise shard_store.unreachable(self.node, str(error)) from error
        refusal = answer.get("error")
        if refusal is None:
            return
        if refusal.get("err_code") in _JS_FULL:
            raise shard_store.full(self.node, str(refusal.get("description")))
        raise nats_connection.api_error(refusal, subject)

    async def get(self, key: Key) -> bytes | None:
        """The number of parts is in no listing we keep, so the first tells: it is asked for as a part of one, then two…"""
        for count in range(1, _MAX_PARTS + 1):
            first = await self._get_part(_subject(key, 0, count))
            if first is None:
                continue
            rest = await asyncio.gather(
                *(self._get_part(_subject(key, number, count)) for number in range(1, count))
            )
            parts = [first, *rest]
            return b"".join(part for part in parts if part is not None) if None not in parts else None
        return None

    async def _get_part(self, subject: str) -> bytes | None:
        async with self._slots:
            msg = await self._connection.request(f"$JS.API.DIRECT.GET.{STREAM}.{subject}", b"", GET_TIMEOUT_S)
        status = (msg.headers or {}).get("Status")
        if status is None:
            return msg.data if len(msg.data) <= PART_BYTES else None
        if status == "404":
            return None
        raise shard_store.unreachable(self.node, f"{status} {(msg.headers or {}).get('Description', '')}")

    async def remove(self, key: Key) -> None:
        await self._connection.api(f"$JS.API.STREAM.PURGE.{STREAM}", {"filter": f"{_PREFIX}{key}.*"})

    async def keys(self) -> shard_store.Listing:
        found: dict[tuple[Key, int], set[int]] = {}
        offset = 0
        while True:
            info = await self._connection.api(
                f"$JS.API.STREAM.INFO.{STREAM}", {"subjects_filter": f"{_PREFIX}>", "offset": offset}
            )
            subjects = (info["state"].get("subjects") or {}).keys()
            for subject in subjects:
                _note(subject, found)
            offset += len(subjects)
            if not subjects or offset >= int(info.get("total", 0)):
                break
        whole = {key for (key, count), parts in found.items() if len(parts) == count}
        torn = {key for key, _ in found if key not in whole}
        return shard_store.Listing(sorted(whole), sorted(torn))

    async def close(self) -> None:
        await self._connection.close()

    def _away(self) -> errors.Unreachable:
        return shard_store.unreachable(self.node, self._connection.unreachable().message)


def _cut(data: bytes) -> list[bytes]:
    return [data[at : at + PART_BYTES] for at in range(0, len(data), PART_BYTES)] or [b""]


def _subject(key: Key, number: int, count: int) -> str:
    return f"{_PREFIX}{key}.{number}-{count}"


def _note(subject: str, found: dict[tuple[Key, int], set[int]]) -> None:
    name, _, part = subject.removeprefix(_PREFIX).rpartition(".")
    number, _, count = part.partition("-")
    key = shard_headers.parse_key(name)
    if key is None or not (number.isdecimal() and count.isdecimal()):
        return  # not ours
    if 0 <= int(number) < int(count) <= _MAX_PARTS:
        found.setdefault((key, int(count)), set()).add(int(number))
