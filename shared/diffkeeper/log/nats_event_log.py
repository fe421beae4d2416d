"""The event log in JetStream. See ``event_log`` for the promises and ``nats_streams`` for how streams are
made.

Appends are plain publishes with a reply inbox and time-outs of our own (a client's asynchronous publish never
learns of a server error or a lost acknowledgement); what makes them safe is the stream-wide compare-and-set
in their headers. Nothing is buffered while the connection is down.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Self

import nats.errors
from nats.aio.msg import Msg

from diffkeeper import nats_config, topology
from diffkeeper.domain import errors, frames, volumes
from diffkeeper.log import confirmations, event_log, nats_connection, nats_reader, nats_streams

APPEND_TIMEOUT_S = 5.0
_JS_NAME_IN_USE = 10058
_JS_OTHER_STREAM = 10060
_JS_WRONG_LAST = frozenset({10070, 10071})  # message id, sequence
# Insufficient resources, memory and storage exceeded, and a store that failed, most often for want of room.
_JS_FULL = frozenset({10023, 10028, 10047, 10077})


class NatsEventLog:
    """One site's view of the log. Made by ``connect``."""

    def __init__(
        self, site: str, connection: nats_connection.NatsConnection, replicas: int, others: Sequence[str]
    ) -> None:
        self.site = site
        self._others = tuple(other for other in others if other != site)
        self.garbage_confirmations = 0
        self._connection = connection
        self._replicas = replicas
        self._api = nats_streams.api_prefix(site)
        self._outbox: deque[_Append] = deque()
        self._newest: dict[volumes.Origin, _Append] = {}
        self._waiting = asyncio.Event()
        self._sender = asyncio.create_task(self._send_all(), name="event-log-sender")

    @classmethod
    async def connect(
        cls,
        site: str,
        servers: Sequence[str],
        *,
        password: str,
        user: str = nats_config.USER,
        name: str = "diffkeeper",
        sites: Sequence[str] = (),
        timeout_s: float = nats_connection.CONNECT_TIMEOUT_S,
    ) -> Self:
        """Connect to one of ``servers``, which are all of ``site``: a stream has a replica on each of them. Of ``sites``,
        all there are, messages are asked for that this site's copy lost.

        Raises Unreachable, Unauthorised, or Misconfigured for another site's.
        """
        connection = nats_connection.NatsConnection(servers, user, password, name)
        await connection.open(timeout_s)
        try:
            domain = (await connection.api("$JS.API.INFO")).get("domain", "")
        except BaseException:
            await connection.close()
            raise
        if domain != site:
            await connection.close()
            raise errors.Misconfigured(
                f"the servers {', '.join(servers)} are those of site {domain or '(none)'}, not of {site}",
                reason="wrong-domain",
                hint="check the addresses of the site's servers",
                site=site,
            )
        return cls(site, connection, topology.replicas(len(servers)), sites)

    @classmethod
    async def open(
        cls,
        site: str,
        servers: Sequence[str],
        *,
        password: str,
        user: str = nats_config.USER,
        name: str = "diffkeeper",
    ) -> Self:
        """A log of a site that may be away for long: nothing is waited for, and each call says Unreachable meanwhile."""
        connection = nats_connection.NatsConnection(servers, user, password, name)
        connection.start()
        return cls(site, connection, topology.replicas(len(servers)), ())

    async def create_origin(self, origin: volumes.Origin) -> None:
        await self._create(nats_streams.origin_config(origin, self._replicas))

    async def create_mirror(self, origin: volumes.Origin) -> None:
        await self._create(nats_streams.mirror_config(origin, self._replicas))

    async def renew_mirror(self, origin: volumes.Origin) -> None:
        """Throw this site's mirror away and make it anew: it is a cache, and is filled from the origin."""
        assert origin.site != self.site, "an origin's own stream is no cache"
        with contextlib.suppress(errors.NotFound):
            await self._connection.api(f"{self._api}.STREAM.DELETE.{origin.stream}")
        await self.create_mirror(origin)

    async def _create(self, wanted: dict[str, Any]) -> None:
        name = wanted["name"]
        try:
            found = await self._connection.api(f"{self._api}.STREAM.INFO.{name}")
        except errors.NotFound:
            try:
                found = await self._connection.api(f"{self._api}.STREAM.CREATE.{name}", wanted)
            except errors.Refused as error:
                if error.facts.get("err_code") != _JS_NAME_IN_USE:
                    raise
                found = await self._connection.api(f"{self._api}.STREAM.INFO.{name}")
        nats_streams.check(wanted, found["config"])

    async def origins(self) -> list[volumes.Origin]:
        found: list[volumes.Origin] = []
        offset = 0
        while True:
            page = await self._connection.api(f"{self._api}.STREAM.LIST", {"offset": offset})
            streams = page.get("streams") or []
            found += [
                one for one in map(nats_streams.origin_of, (s["config"] for s in streams)) if one is not None
            ]
            offset += len(streams)
            if not streams or offset >= int(page["total"]):
                return sorted(found, key=lambda origin: origin.stream)

    async def last(self, origin: volumes.Origin) -> event_log.Stored | None:
        sequence = await self._end(origin)
        while sequence > 0:
            # Asked for by its number, so that a damaged last message is an error and not the one before it.
            stored = await self.get(origin, sequence)
            if stored is not None:
                return stored
            # A broker that is killed between the two answers comes back without what it had not acknowledged.
            before, sequence = sequence, await self._end(origin)
            if sequence >= before:
                raise event_log.stream_gap(origin, before, None)
        return None

    async def _end(self, origin: volumes.Origin) -> int:
        info = await self._connection.api(f"{self._api}.STREAM.INFO.{origin.stream}")
        return int(info["state"]["last_seq"])

    async def get(self, origin: volumes.Origin, stream_sequence: int) -> event_log.Stored | None:
        stored = await nats_reader.get(self._connection, self.site, origin, stream_sequence)
        if stored is not None:
            return stored
        if not 0 < stream_sequence <= await self._end(origin):
            return None
        return await nats_reader.get_elsewhere(
            self._connection, self._holders(origin), origin, stream_sequence
        )

    def _holders(self, origin: volumes.Origin) -> list[str]:
        """Other sites that may hold the stream, its origin first."""
        return sorted({*self._others, origin.site} - {self.site}, key=lambda site: site != origin.site)

    def append(
        self,
        origin: volumes.Origin,
        frame: frames.Frame,
        expected_sequence: int,
        after: frames.Frame | None = None,
    ) -> asyncio.Future[int]:
        append = _Append(origin, frame, expected_sequence, after, guarded=self._replicas == 1)
        before = self._newest.get(origin)
        self._newest[origin] = append
        if after is not None and not append.guarded and before is not None and not before.future.done():
            before.future.add_done_callback(lambda stored: self._send_after(append, stored))
        else:
            self._send_soon(append)
        return append.future

    def _send_soon(self, append: _Append) -> None:
        if self._connection.current is None:
            append.fail(self._connection.unreachable())
            return
        self._outbox.append(append)
        self._waiting.set()

    def _send_after(self, append: _Append, before: asyncio.Future[int]) -> None:
        """On a stream of several replicas a frame is sent when the one before it is stored.

        The broker's guard against a stranger in between (the expected last message id) must not be used there: a replica
        that was filled from another one does not know the last id, takes the next message for a mismatch and
        stops for good (nats-server 2.15: processCatchupMsg leaves lmsgId as it was).
        """
        if before.cancelled() or before.exception() is not None:
            append.fail(
                errors.Unreachable(
                    f"frame {append.frame.position} was not sent, because the one before it was not stored",
                    reason="not-sent",
                    hint="the publisher asks the stream, and sends it again",
                )
            )
        else:
            self._send_soon(append)

    async def _send_all(self) -> None:
        while True:
            await self._waiting.wait()
            self._waiting.clear()
            while self._outbox:
                await self._send(self._outbox.popleft())

    async def _send(self, append: _Append) -> None:
        session = self._connection.current
        if session is None:
            append.fail(self._connection.unreachable())
            return
        reply = append.await_reply(session)
        try:
            await session.publish(
                append.origin.subject, append.frame.wire, reply=reply, headers=append.headers()
            )
        except nats.errors.MaxPayloadError as error:
            append.fail(
                errors.Misconfigured(
                    f"the broker takes no message of {len(append.frame.wire)} bytes ({error})",
                    reason="max-payload",
                    hint="raise max_payload in the servers' configuration",
                )
            )
        except nats.errors.Error:
            append.fail(self._connection.unreachable())

    def read(self, origin: volumes.Origin, first_sequence: int) -> AsyncGenerator[event_log.Stored, None]:
        reader = nats_reader.Reader(self._connection, self.site, origin, self._holders(origin))
        return reader.read(first_sequence)

    async def confirm(self, origin: volumes.Origin, confirmation: event_log.Confirmation) -> None:
        session = self._connection.current
        if session is None:
            raise self._connection.unreachable()
        try:
            await session.publish(origin.confirm_subject, confirmations.encode(confirmation))
        except nats.errors.Error as error:
            raise self._connection.unreachable() from error

    async def confirmations(self, origin: volumes.Origin) -> AsyncGenerator[event_log.Confirmation, None]:
        async with contextlib.aclosing(
            nats_reader.subscribe(self._connection, origin.confirm_subject)
        ) as heard:
            async for data in heard:
                try:
                    confirmation = confirmations.decode(data)
                except errors.Corrupt:
                    self.garbage_confirmations += 1
                else:
                    yield confirmation

    async def close(self) -> None:
        """End the connection; appends under way raise."""
        self._sender.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._sender
        while self._outbox:
            self._outbox.popleft().fail(self._connection.unreachable())
        await self._connection.close()


class _Append:
    """One append, from the call to its result. Its clock starts when it is handed to the connection."""

    def __init__(
        self,
        origin: volumes.Origin,
        frame: frames.Frame,
        expected: int,
        after: frames.Frame | None,
        *,
        guarded: bool,
    ) -> None:
        # Whether the broker refuses it behind a stranger's message; else it is sent behind its own predecessor only.
        self.guarded = guarded
        self.origin = origin
        self.frame = frame
        self.expected = expected
        self.after = after
        self.future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def headers(self) -> dict[str, str]:
        headers = {
            "Nats-Expected-Stream": self.origin.stream,
            "Nats-Expected-Last-Sequence": str(self.expected),
            "Nats-Msg-Id": self.frame.message_id,
        }
        if self.after is not None and self.guarded:
            # Only behind a frame under way: a broker started anew has forgotten the last id if it is old.
            headers["Nats-Expected-Last-Msg-Id"] = self.after.message_id
        return headers

    def await_reply(self, session: nats_connection.Session) -> str:
        subject, reply = session.expect()
        timer = asyncio.get_running_loop().call_later(APPEND_TIMEOUT_S, self._time_out, reply)

        def settle(_: asyncio.Future[Msg]) -> None:
            timer.cancel()
            self._settle(reply)

        reply.add_done_callback(settle)
        return subject

    def fail(self, error: errors.DiffKeeperError) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def _time_out(self, reply: asyncio.Future[Msg]) -> None:
        if not reply.done():
            reply.set_exception(
                errors.TimedOut(
                    f"frame {self.frame.position} was not acknowledged within {APPEND_TIMEOUT_S:g} s",
                    reason="append-timed-out",
                    hint="it may still be stored; the publisher asks the stream",
                    position=str(self.frame.position),
                )
            )

    def _settle(self, reply: asyncio.Future[Msg]) -> None:
        try:
            sequence = self._stored_at(reply.result())
        except errors.DiffKeeperError as error:
            self.fail(error)
        else:
            if not self.future.done():
                self.future.set_result(sequence)

    def _stored_at(self, msg: Msg) -> int:
        nats_connection.check_responders(msg, self.origin.subject)
        try:
            answer = json.loads(msg.data)
            error = answer.get("error")
            sequence = int(answer["seq"]) if error is None else 0
        except (ValueError, KeyError, TypeError, AttributeError) as cause:
            raise errors.TimedOut(
                f"the acknowledgement of frame {self.frame.position} cannot be read",
                reason="malformed-ack",
                hint="it may still be stored; the publisher asks the stream",
            ) from cause
        if error is not None:
            raise self._refusal(error)
        if sequence != self.expected + 1:
            # A duplicate is acknowledged with the place of the first one.
            raise self._elsewhere(f"it stands at {sequence}")
        return sequence

    def _refusal(self, error: dict[str, Any]) -> errors.DiffKeeperError:
        number, text = error.get("err_code", 0), str(error.get("description", ""))
        if number in _JS_WRONG_LAST:
            return self._elsewhere(text)
        if number in _JS_FULL:
            return errors.Refused(
                f"stream {self.origin.stream} has no room for frame {self.frame.position}: {text}",
                reason="log-full",
                hint="free or add disk at the broker; the frame stays in the spool and is sent again",
                stream=self.origin.stream,
            )
        if number == _JS_OTHER_STREAM:
            return errors.Misconfigured(
                f"another stream than {self.origin.stream} takes {self.origin.subject}: {text}",
                reason="wrong-stream",
                hint=f"nats stream find {self.origin.subject}",
            )
        return nats_connection.api_error(error, self.origin.subject)

    def _elsewhere(self, text: str) -> errors.Fenced:
        return errors.Fenced(
            f"stream {self.origin.stream} is not at sequence {self.expected}: {text}",
            reason="wrong-last-sequence",
            hint="read what stands there before drawing a conclusion",
            stream=self.origin.stream,
            expected=self.expected,
        )
