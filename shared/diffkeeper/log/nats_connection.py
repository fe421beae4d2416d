"""The connection of one service to the NATS servers of its site, kept up for ever.

One nats-py client stands for one TCP connection and ends with it: its own reconnecting would deliver
publishes buffered minutes before, and a server's error would close it for good. The supervisor here opens the
next one. Whoever needs a subscription binds it to a ``Session`` and starts again when that is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import nats.aio.client
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from diffkeeper.domain import errors, limits

CONNECT_TIMEOUT_S = 5.0
REQUEST_TIMEOUT_S = 5.0
# A connection on which nothing comes back is given up after about three of these.
PING_INTERVAL_S = 3
_RETRY_S = 0.1
_LOOK_S = 0.25
# The client reads and parses so much at a time; with its own 32 KiB a frame of a megabyte takes as long to receive
# as to decompress. It has no option for that, only a constant of its module.
_READ_BYTES = 256 * 1024
nats.aio.client.DEFAULT_BUFFER_SIZE = _READ_BYTES
_T = TypeVar("_T")
_JS_NO_STREAM = 10059
_JS_UNAVAILABLE = (408, 503)
# A stream needs as many brokers as it has replicas to be made, and one of them is away.
_JS_NO_PEERS = 10005


class Session:
    """One TCP connection, with an inbox for replies. When it is lost, everything that waits on it is told."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.lost = asyncio.Event()
        self._inbox = client.new_inbox()
        self._numbers = itertools.count(1)
        self._replies: dict[str, asyncio.Future[Msg]] = {}
        self._callbacks: set[Callable[[], None]] = set()

    async def prepare(self) -> None:
        await self.subscribe(f"{self._inbox}.*", self._hear)

    async def publish(
        self, subject: str, payload: bytes = b"", *, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Hand a message to the client; raises nats.errors.Error."""
        await self._until_lost(self.client.publish(subject, payload, reply=reply, headers=headers))

    async def subscribe(
        self, subject: str, heard: Callable[[Msg], Coroutine[Any, Any, None]]
    ) -> Subscription:
        return await self._until_lost(self.client.subscribe(subject, cb=heard))

    async def unsubscribe(self, subscription: Subscription) -> None:
        await self._until_lost(subscription.unsubscribe())

    async def _until_lost(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Nothing is waited for beyond the session's end: a client with much to send waits for a flush, and one whose
        connection ends meanwhile never tells that it will not come (nats-py 2.16).
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(None) as limit:
                forget = self.on_lost(lambda: limit.reschedule(loop.time()))
                try:
                    return await work
                finally:
                    forget()
        except TimeoutError:
            raise nats.errors.ConnectionClosedError from None

    def expect(self) -> tuple[str, asyncio.Future[Msg]]:
        """A reply subject and what will come on it; raises TimedOut when the session is lost before."""
        token = str(next(self._numbers))
        future: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._replies[token] = future
        future.add_done_callback(lambda _: self._replies.pop(token, None))
        return f"{self._inbox}.{token}", future

    async def _hear(self, msg: Msg) -> None:
        future = self._replies.get(msg.subject.rpartition(".")[2])
        if future is not None and not future.done():
            future.set_result(msg)

    def on_lost(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Have ``callback`` called once when the session ends; returns the function that takes it back."""
        if self.lost.is_set():
            callback()
        self._callbacks.add(callback)
        return lambda: self._callbacks.discard(callback)

    def lose(self) -> None:
        if self.lost.is_set():
            return
        self.lost.set()
        for future in list(self._replies.values()):
            if not future.done():
                future.set_exception(connection_lost())
        for callback in list(self._callbacks):
            callback()


class NatsConnection:
    """Opens sessions one after the other. ``current`` is None while there is none, so that
    callers can fail fast.
    """

    def __init__(self, servers: Sequence[str], user: str, password: str, name: str) -> None:
        self._servers = list(servers)
        self._user, self._password, self._name = user, password, name
        self._session: Session | None = None
        self._arrived = asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None
        self._last_error = ""

    async def open(self, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        """Connect for the first time; raises Unreachable, or Unauthorised when the server
        refuses the credentials.
        """
        self.start()
        try:
            await self.session(timeout_s)
        except errors.Unreachable as error:
            told = self._last_error
            await self.close()
            if "authorization" in told.lower():
                raise errors.Unauthorised(
                    f"the NATS server refuses the credentials ({told})",
                    reason="nats-credentials",
                    hint="the secret of the deployment and that of its servers differ",
                ) from error
            raise

    def start(self) -> None:
        """Begin to connect, without waiting for it: for servers that may be away for long."""
        self._supervisor = asyncio.create_task(self._supervise(), name="nats-supervisor")

    @property
    def current(self) -> Session | None:
        session = self._session
        return session if session is not None and session.client.is_connected else None

    async def session(self, timeout_s: float | None = None) -> Session:
        """The live session, waiting for it at most ``timeout_s``; raises Unreachable."""
        try:
            async with asyncio.timeout(timeout_s):
                while (session := self.current) is None:
                    self._arrived.clear()
                    await self._arrived.wait()
                return session
        except TimeoutError:
            raise self.unreachable() from None

    async def request(
        self,
        subject: str,
        payload: bytes,
        timeout_s: float = REQUEST_TIMEOUT_S,
        headers: dict[str, str] | None = None,
    ) -> Msg:
        session = self.current
        if session is None:
            raise self.unreachable()
        reply, future = session.expect()
        try:
            async with asyncio.timeout(timeout_s):
                await session.publish(subject, payload, reply=reply, headers=headers)
                msg = await future
        except TimeoutError:
            raise errors.TimedOut(
                f"no answer on {subject} within {timeout_s:g} s",
                reason="request-timed-out",
                hint="it may still have been done",
                subject=subject,
            ) from None
        except nats.errors.Error as error:
            raise self.unreachable() from error
        finally:
            future.cancel()
        check_responders(msg, subject)
        return msg

    async def api(
        self, subject: str, body: dict[str, Any] | None = None, timeout_s: float = REQUEST_TIMEOUT_S
    ) -> dict[str, Any]:
        """One JetStream API call; raises what the error in its answer means to us."""
        payload = json.dumps(body).encode() if body is not None else b""
        answer: dict[str, Any] = json.loads((await self.request(subject, payload, timeout_s)).data)
        if "error" in answer:
            raise api_error(answer["error"], subject)
        return answer

    def unreachable(self) -> errors.Unreachable:
        told = f" ({self._last_error})" if self._last_error else ""
        return errors.Unreachable(
            f"no connection to the NATS server at {', '.join(self._servers)}{told}",
            reason="nats-unreachable",
            hint="dkctl status shows which servers run",
        )

    async def close(self) -> None:
        supervisor, self._supervisor = self._supervisor, None
        while supervisor is not None and not supervisor.done():
            supervisor.cancel()
            # Asked again and again: nats-py swallows a cancellation that comes while it closes a connection.
            await asyncio.wait({supervisor}, timeout=_RETRY_S)

    async def _supervise(self) -> None:
        while True:
            session = await self._connect()
            try:
                await session.prepare()
                self._session = session
                self._arrived.set()
                await _until_lost(session)
            except nats.errors.Error as error:
                self._last_error = str(error)
            finally:
                self._session = None
                session.lose()
                await _close(session.client)

    async def _connect(self) -> Session:
        while True:
            client = Client()
            session = Session(client)
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    await self._dial(client, _async(session.lose))
                self._last_error = ""
                return session
            except (nats.errors.Error, OSError, TimeoutError) as error:
                self._last_error = str(error) or self._last_error or type(error).__name__
                await _close(client)
                await asyncio.sleep(_RETRY_S)
            except BaseException:
                await _close(client)
                raise

    async def _dial(self, client: Client, ended: Callable[[], Coroutine[Any, Any, None]]) -> None:
        await client.connect(
            servers=self._servers,
            user=self._user,
            password=self._password,
            name=self._name,
            allow_reconnect=False,
            reconnect_time_wait=_RETRY_S,
            connect_timeout=2,
            ping_interval=PING_INTERVAL_S,
            max_outstanding_pings=2,
            error_cb=self._heard_error,
            closed_cb=ended,
            disconnected_cb=ended,
        )
        if client.max_payload < limits.BROKER_MAX_PAYLOAD_BYTES:
            raise nats.errors.Error(f"its max_payload is below {limits.BROKER_MAX_PAYLOAD_BYTES}")

    async def _heard_error(self, error: Exception) -> None:
        self._last_error = str(error) or type(error).__name__


async def _until_lost(session: Session) -> None:
    """Until the client says that it is closed, or is so without a word: it drains a connection that was reset before it
    calls anybody, and the error of that ends its reading task (nats-py 2.16).
    """
    while not session.lost.is_set() and session.client.is_connected:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_S):
                await session.lost.wait()


async def _close(client: Client) -> None:
    # Whatever it says of a connection that is given up: the same draining lets the reset out here.
    with contextlib.suppress(OSError, nats.errors.Error):
        await client.close()


def _async(function: Callable[[], None]) -> Callable[[], Coroutine[Any, Any, None]]:
    async def call() -> None:
        function()

    return call


def check_responders(msg: Msg, subject: str) -> None:
    """Raise Unreachable when the reply is the server's word that nobody listens on the subject."""
    if msg.headers is not None and msg.headers.get("Status") == "503":
        raise errors.Unreachable(
            f"nobody answers on {subject}",
            reason="no-responders",
            hint="is JetStream up at that site, and the leaf link to it?",
            subject=subject,
        )


def connection_lost() -> errors.TimedOut:
    return errors.TimedOut(
        "the connection to the NATS server was lost before it answered",
        reason="connection-lost",
        hint="it may still have been done",
    )


def api_error(error: dict[str, Any], subject: str) -> errors.DiffKeeperError:
    """What a JetStream API error means to us."""
    number, text = error.get("err_code", 0), error.get("description", "")
    facts = {"subject": subject, "err_code": number}
    if number == _JS_NO_STREAM:
        return errors.NotFound(
            f"there is no such stream ({subject})", reason="no-stream", hint="dkctl status", **facts
        )
    if error.get("code") in _JS_UNAVAILABLE or number == _JS_NO_PEERS:
        return errors.Unreachable(
            f"JetStream cannot answer now: {text}", reason="jetstream-unavailable", hint="try again", **facts
        )
    return errors.Refused(
        f"JetStream refuses {subject}: {text}",
        reason="jetstream-refused",
        hint="read the server's log",
        **facts,
    )
