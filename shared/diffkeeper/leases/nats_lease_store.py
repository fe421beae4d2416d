"""Leases in JetStream: one key-value bucket a volume, with a replica at the link server of each site.

A bucket a volume, because each has a Raft group of its own, and so a leader that can be kept away from the site that
holds the lease: when that site dies, no election (4 to 9 s in nats-server 2.15) stands between its death and the next
holder. Every link server is kept connected; a question goes to the one that answered last and at once to the next
when it does not answer.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Self

from nats.aio.msg import Msg

from diffkeeper import nats_config, topology
from diffkeeper.domain import errors, leases
from diffkeeper.leases import lease_records, lease_store
from diffkeeper.log import nats_connection, nats_streams

_KEY = "holder"
_JS_NO_MESSAGE = 10037
_JS_NAME_IN_USE = 10058
# The second is said while another write of the same record is on its way.
_JS_WRONG_LAST = frozenset({10071, 10164})
# Making a bucket, and moving its leader, take longer than reading and writing.
SLOW_TIMEOUT_S = 5.0

Ask = Callable[[nats_connection.NatsConnection], Awaitable[dict[str, Any]]]


class NatsLeaseStore:
    """``servers`` are the link servers, the nearest first. ``attempt_s`` is how long each of them is waited for."""

    def __init__(self, connections: Sequence[nats_connection.NatsConnection], attempt_s: float) -> None:
        self._connections = list(connections)
        self._attempt_s = attempt_s
        self._api = nats_streams.api_prefix(topology.LINK_DOMAIN)

    @classmethod
    def open(cls, servers: Sequence[str], *, password: str, name: str, attempt_s: float) -> Self:
        """Connects behind the call: those that are away now are used once they are there."""
        made = [
            nats_connection.NatsConnection([server], nats_config.USER, password, name) for server in servers
        ]
        for connection in made:
            connection.start()
        return cls(made, attempt_s)

    async def prepare(self, volume: str) -> None:
        wanted = _bucket_config(volume, topology.replicas(len(self._connections)))
        name = wanted["name"]
        try:
            found = await self._call("STREAM.INFO", name)
        except errors.NotFound:
            try:
                found = await self._call("STREAM.CREATE", name, wanted)
            except errors.Refused as error:
                if error.facts.get("err_code") != _JS_NAME_IN_USE:
                    raise
                found = await self._call("STREAM.INFO", name)
        nats_streams.check(wanted, found["config"])

    async def read(self, volume: str) -> leases.Held | None:
        body = {"last_by_subj": _subject(volume)}
        try:
            answer = await self._ask(
                lambda one: one.api(f"{self._api}.STREAM.MSG.GET.{_bucket(volume)}", body, self._attempt_s)
            )
        except errors.Refused as error:
            if error.facts.get("err_code") == _JS_NO_MESSAGE:
                return None
            raise
        message = answer["message"]
        lease = lease_records.decode(base64.b64decode(message.get("data", "")))
        if lease.volume != volume:
            raise errors.Corrupt(f"the lease of {volume} is one of {lease.volume}", reason="malformed-lease")
        return leases.Held(lease, int(message["seq"]))

    async def write(self, lease: leases.Lease, revision: int) -> leases.Held:
        payload = lease_records.encode(lease)
        headers = {
            "Nats-Expected-Stream": _bucket(lease.volume),
            "Nats-Expected-Last-Subject-Sequence": str(revision),
        }
        subject = f"{self._api}.{_subject(lease.volume)}"
        unknown: errors.TimedOut | None = None
        for connection in list(self._connections):
            try:
                answer = await connection.request(subject, payload, self._attempt_s, headers)
                return leases.Held(lease, _stored_at(answer, lease.volume, revision, subject))
            except errors.TimedOut as error:
                unknown = error
                self._put_last(connection)
            except errors.Unreachable:
                self._put_last(connection)
            except errors.Fenced:
                if unknown is None:
                    raise
                return await self._own_or_moved(lease, revision)
        raise unknown or _nobody()

    async def _own_or_moved(self, lease: leases.Lease, revision: int) -> leases.Held:
        """A write whose answer was lost may be what stands in the way of its second sending."""
        found = await self.read(lease.volume)
        if found is not None and found.lease == lease:
            return found
        raise lease_store.moved(lease.volume, revision)

    async def lead_elsewhere(self, volume: str, site: str) -> bool:
        name = _bucket(volume)
        info = await self._call("STREAM.INFO", name)
        cluster = info.get("cluster") or {}
        avoided = _server_name(site)
        if cluster.get("leader") != avoided:
            return bool(cluster.get("leader"))
        others = [
            peer["name"]
            for peer in cluster.get("replicas") or []
            if peer.get("current") and not peer.get("offline")
        ]
        if others:
            await self._call("STREAM.LEADER.STEPDOWN", name, {"placement": {"preferred": others[0]}})
        return False

    async def close(self) -> None:
        for connection in self._connections:
            await connection.close()

    async def _call(self, verb: str, bucket: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return await self._ask(lambda one: one.api(f"{self._api}.{verb}.{bucket}", body, SLOW_TIMEOUT_S))

    async def _ask(self, ask: Ask) -> dict[str, Any]:
        """From whoever answers first, in the order of who answered last."""
        failure: errors.Transient | None = None
        for connection in list(self._connections):
            try:
                return await ask(connection)
            except errors.Transient as error:
                failure = error
                self._put_last(connection)
        raise failure or _nobody()

    def _put_last(self, connection: nats_connection.NatsConnection) -> None:
        self._connections.remove(connection)
        self._connections.append(connection)


def _stored_at(answer: Msg, volume: str, revision: int, subject: str) -> int:
    try:
        fields = json.loads(answer.data)
        error = fields.get("error")
        sequence = int(fields["seq"]) if error is None else 0
    except (ValueError, KeyError, TypeError, AttributeError) as cause:
        raise errors.TimedOut(
            f"the answer about the lease of {volume} cannot be read", reason="malformed-ack"
        ) from cause
    if error is None:
        return sequence
    if error.get("err_code") in _JS_WRONG_LAST:
        raise lease_store.moved(volume, revision)
    raise nats_connection.api_error(error, subject)


def _bucket_config(volume: str, replicas: int) -> dict[str, Any]:
    """A key-value bucket of NATS is a stream of this shape (ADR-8); ours keeps one value and is never purged."""
    return {
        "name": _bucket(volume),
        "subjects": [f"$KV.dk-lease-{volume}.>"],
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "max_msgs_per_subject": 1,
        "max_age": 0,
        "duplicate_window": nats_streams.DUPLICATE_WINDOW_NS,
        "deny_delete": True,
        "deny_purge": True,
        "allow_rollup_hdrs": False,
        "allow_direct": False,
        "num_replicas": replicas,
    }


def _bucket(volume: str) -> str:
    return f"KV_dk-lease-{volume}"


def _subject(volume: str) -> str:
    return f"$KV.dk-lease-{volume}.{_KEY}"


def _server_name(site: str) -> str:
    return f"dk-link-{site}"


def _nobody() -> errors.Unreachable:
    return errors.Unreachable(
        "no link server answers",
        reason="lease-store-unreachable",
        hint="dkctl status shows which servers run; a majority of the sites must",
    )
