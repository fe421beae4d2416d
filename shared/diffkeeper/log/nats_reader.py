"""Reading a stream in order, without a hole, for ever.

An ephemeral push consumer without acknowledgements delivers to an inbox. Its flow control is answered when
the messages before it were taken, so a slow reader holds at most the server's window (32 MiB). A hole in the
delivery (consumer sequence) is healed by a new consumer from the next message on; a hole in the stream itself
is Corrupt. Consumers live in memory at the server, are deleted at the end, and vanish by themselves when
their reader does.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple

import nats.errors
from nats.aio.msg import Msg

from diffkeeper.domain import errors, volumes
from diffkeeper.log import event_log, nats_connection, nats_streams

HEARTBEAT_S = 1.0
# Silence for this many heartbeats means that the consumer is gone.
_SILENT_BEATS = 3
_INACTIVE_S = 30
_RETRY_S = 0.2
# How often a reader of a mirror asks how that is doing: while the mirror hears its origin, and while it does not.
_MIRROR_CHECK_S = 1.0
_SILENT_MIRROR_CHECK_S = 0.5
# A mirror that hears its origin and does not grow, while the origin holds more, so many times in a row stands still.
_STOOD_STILL = 2
# Brokers send a mirror a heartbeat a second.
_MIRROR_SILENT_NS = 1_500_000_000
_SOURCE_TIMEOUT_S = 1.0
_NS = 1_000_000_000
_JS_NO_MESSAGE = 10037


class _Again(Exception):
    """This consumer is of no use any more; make the next one."""


class _Inbox:
    """What arrives on one subject in one session, taken in order. ``None`` ends it."""

    def __init__(self, session: nats_connection.Session) -> None:
        self.session = session
        self._items: deque[Msg | None] = deque()
        self._filled = asyncio.Event()

    async def put(self, msg: Msg) -> None:
        self._put(msg)

    def end(self) -> None:
        self._put(None)

    def _put(self, item: Msg | None) -> None:
        self._items.append(item)
        self._filled.set()

    async def take(self, silence_s: float | None) -> Msg:
        """The next message; raises _Again after silence or when the session is lost."""
        if not self._items:
            self._filled.clear()
            timer = None
            if silence_s is not None:
                timer = asyncio.get_running_loop().call_later(silence_s, self.end)
            try:
                await self._filled.wait()
            finally:
                if timer is not None:
                    timer.cancel()
        item = self._items.popleft()
        if item is None:
            raise _Again
        return item


async def subscribe(connection: nats_connection.NatsConnection, subject: str) -> AsyncGenerator[bytes, None]:
    """Payloads of a core subject, across sessions; what is sent while there is none is missed."""
    while True:
        session = await connection.session()
        inbox = _Inbox(session)
        forget = session.on_lost(inbox.end)
        try:
            subscription = await session.subscribe(subject, inbox.put)
            try:
                while True:
                    yield (await inbox.take(None)).data
            finally:
                if not session.lost.is_set():
                    await session.unsubscribe(subscription)
        except (_Again, nats.errors.Error):
            await asyncio.sleep(0)
        finally:
            forget()


async def get(
    connection: nats_connection.NatsConnection, site: str, origin: volumes.Origin, sequence: int
) -> event_log.Stored | None:
    """One message of a site's copy of a stream; None when it does not hold it."""
    subject = f"{nats_streams.api_prefix(site)}.STREAM.MSG.GET.{origin.stream}"
    try:
        answer = await connection.api(subject, {"seq": sequence})
    except errors.Refused as error:
        if error.facts.get("err_code") == _JS_NO_MESSAGE:
            return None
        raise
    message = answer["message"]
    return event_log.Stored(int(message["seq"]), base64.b64decode(message.get("data", "")))


async def get_elsewhere(
    connection: nats_connection.NatsConnection, sites: Sequence[str], origin: volumes.Origin, sequence: int
) -> event_log.Stored | None:
    """The same from the first of several sites that has it. Nobody vouches for it: the reader of a frame checks its hash."""
    for site in sites:
        try:
            stored = await get(connection, site, origin, sequence)
        except errors.DiffKeeperError:
            continue  # away, or without the stream: the next one
        if stored is not None:
            return stored
    return None


class _Mirror(NamedTuple):
    """The copy of a stream at the reader's own site: its last message, and whether it hears nothing of its origin."""

    end: int
    is_silent: bool


class Reader:
    """One reading of one stream, across sessions, and across the places where a mirrored stream can be read.

    A new mirror, and one that lost its origin, may look for it only after 10 s, and after an outage up to 150 s later
    (nats-server 2.15). Barriers at level ``remote`` must not wait for that: while the mirror does not hear its origin,
    messages are read from the origin's own stream. And a mirror whose origin died may never have got what another
    site's mirror has: while the origin does not answer either, they are read from there. They stand at the same places
    in all.
    """

    def __init__(
        self,
        connection: nats_connection.NatsConnection,
        site: str,
        origin: volumes.Origin,
        holders: Sequence[str] = (),
    ) -> None:
        self._connection = connection
        self._site = site
        self._origin = origin
        self._holders = holders
        self._source = site
        # Where it was found better to read, while the consumer at ``_source`` ends.
        self._better: str | None = None
        self._following = 1

    async def read(self, first_sequence: int) -> AsyncGenerator[event_log.Stored, None]:
        self._following = first_sequence
        while True:
            session = await self._connection.session()
            try:
                async with aclosing(self._consume(session)) as messages:
                    async for stored in messages:
                        self._following = stored.stream_sequence + 1
                        yield stored
            except (_Again, nats.errors.Error, errors.Transient):
                if self._better is None:
                    await asyncio.sleep(_RETRY_S)
                if not session.lost.is_set():
                    # Whoever does not answer is not asked again: at home it is seen where to read then.
                    self._source = self._better or self._site
                self._better = None
            except errors.Corrupt as gap:
                async with aclosing(self._lost(gap)) as messages:
                    async for stored in messages:
                        self._following = stored.stream_sequence + 1
                        yield stored
            except errors.NotFound:
                if self._source == self._site:
                    raise
                self._source = self._site

    async def _lost(self, gap: errors.Corrupt) -> AsyncGenerator[event_log.Stored, None]:
        """What the copy that is read has lost, from other sites; raises the gap when none of them has it."""
        found = gap.facts.get("found")
        if gap.reason != "stream-gap" or not isinstance(found, int) or found <= self._following:
            raise gap
        for sequence in range(self._following, found):
            stored = await get_elsewhere(self._connection, self._holders, self._origin, sequence)
            if stored is None:
                raise gap
            yield stored

    async def _consume(self, session: nats_connection.Session) -> AsyncGenerator[event_log.Stored, None]:
        """Messages as one consumer delivers them, until it is of no use."""
        inbox = _Inbox(session)
        forget = session.on_lost(inbox.end)
        subject = session.client.new_inbox()
        name = f"dk-{secrets.token_hex(8)}"
        stream, api = self._origin.stream, nats_streams.api_prefix(self._source)
        subscription = await session.subscribe(subject, inbox.put)
        chooser = asyncio.create_task(self._choose_source(inbox), name=f"read-source-{stream}")
        try:
            await self._connection.api(
                f"{api}.CONSUMER.CREATE.{stream}.{name}",
                {"stream_name": stream, "config": _consumer_config(name, subject, self._following)},
            )
            async with aclosing(_in_order(inbox, self._origin, self._following)) as messages:
                async for stored in messages:
                    yield stored
        finally:
            chooser.cancel()
            forget()
            if self._connection.current is session:
                await session.unsubscribe(subscription)
                # Not waited for: a consumer without its reader ends by itself after a while.
                await session.publish(f"{api}.CONSUMER.DELETE.{stream}.{name}")

    async def _choose_source(self, inbox: _Inbox) -> None:
        """End the inbox when messages are better read elsewhere."""
        if self._origin.site == self._site:
            return
        stood_still = 0
        while True:
            before = self._following
            mirror = await self._mirror()
            if mirror is not None:
                better = await self._better_source(mirror, stood_still)
                if better is not None and better != self._source:
                    self._better = better
                    inbox.end()
                    return
            silent = mirror is None or mirror.is_silent
            await asyncio.sleep(_SILENT_MIRROR_CHECK_S if silent else _MIRROR_CHECK_S)
            stood_still = stood_still + 1 if self._following == before else 0

    async def _better_source(self, mirror: _Mirror, stood_still: int) -> str | None:
        """Where to read from now on; None: where it is read now."""
        if mirror.end >= self._following:
            return self._site
        if not mirror.is_silent:
            if self._source != self._site:
                return self._site if mirror.end == self._following - 1 else None
            if stood_still < _STOOD_STILL:
                return None
        end = await self._end(self._origin.site)
        if end is not None:
            return self._origin.site if mirror.is_silent or end >= self._following else None
        others = [site for site in self._holders if site not in (self._origin.site, self._source)]
        ends = await asyncio.gather(*(self._end(site) for site in others))
        return next(
            (site for site, end in zip(others, ends, strict=True) if (end or 0) >= self._following), None
        )

    async def _mirror(self) -> _Mirror | None:
        """The copy at home; None when its broker does not say."""
        info = await self._info(self._site)
        if info is None:
            return None
        # Nanoseconds since its origin's broker was heard; negative: never.
        heard = int((info.get("mirror") or {}).get("active", -1))
        return _Mirror(int(info["state"]["last_seq"]), not 0 <= heard <= _MIRROR_SILENT_NS)

    async def _end(self, site: str) -> int | None:
        """The last message that a site's copy holds; None when it does not say, or has no copy."""
        info = await self._info(site)
        return int(info["state"]["last_seq"]) if info is not None else None

    async def _info(self, site: str) -> dict[str, Any] | None:
        subject = f"{nats_streams.api_prefix(site)}.STREAM.INFO.{self._origin.stream}"
        try:
            return await self._connection.api(subject, timeout_s=_SOURCE_TIMEOUT_S)
        except (errors.Transient, errors.Refused, errors.NotFound):
            return None


def _consumer_config(name: str, subject: str, first_sequence: int) -> dict[str, Any]:
    return {
        "name": name,
        "deliver_subject": subject,
        "deliver_policy": "by_start_sequence",
        "opt_start_seq": first_sequence,
        "ack_policy": "none",
        "max_deliver": 1,
        "flow_control": True,
        "idle_heartbeat": int(HEARTBEAT_S * _NS),
        "inactive_threshold": _INACTIVE_S * _NS,
        "mem_storage": True,
        "num_replicas": 1,
    }


async def _in_order(
    inbox: _Inbox, origin: volumes.Origin, first_sequence: int
) -> AsyncGenerator[event_log.Stored, None]:
    expected, delivered = first_sequence, 0
    while True:
        msg = await inbox.take(_SILENT_BEATS * HEARTBEAT_S)
        if msg.headers is not None and msg.headers.get("Status") == "100":
            await _answer_control(inbox.session, msg, delivered)
            continue
        sequence, count = _places(msg.reply)
        if count != delivered + 1:
            raise _Again
        if sequence != expected:
            raise event_log.stream_gap(origin, expected, sequence)
        delivered = count
        expected += 1
        yield event_log.Stored(sequence, msg.data)


async def _answer_control(session: nats_connection.Session, msg: Msg, delivered: int) -> None:
    """Flow control is answered here, after everything before it was taken. A heartbeat says
    what was delivered.
    """
    assert msg.headers is not None, "only messages with a status come here"
    answer = msg.reply or msg.headers.get("Nats-Consumer-Stalled")
    if answer:
        await session.publish(answer)
    last = msg.headers.get("Nats-Last-Consumer")
    if last is not None and last.isdigit() and int(last) != delivered:
        raise _Again


def _places(reply: str) -> tuple[int, int]:
    """Stream and consumer sequence from ``$JS.ACK…``: 9 tokens, or 11 and more with domain and account before
    the stream.
    """
    tokens = reply.split(".")
    at = 5 if len(tokens) == 9 else 7
    try:
        return int(tokens[at]), int(tokens[at + 1])
    except (IndexError, ValueError):
        raise _Again from None
