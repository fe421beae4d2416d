"""One client's HTTP/1 connection: requests read one after the other, each passed to the program that leads now.

The client's connection stays open while the program moves; what is passed on is a request at a time. A
request whose answer never came is sent again only where HTTP says that twice is as good as once (GET, HEAD,
OPTIONS, TRACE, and PUT or DELETE without a body) and not one byte came back; any other is answered 502, for
it may have been carried out.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import msgspec

from diffkeeper.domain import errors
from diffkeeper_control.front_door import bodies, heads
from diffkeeper_control.front_door.heads import BadMessage, Request, Response
from diffkeeper_control.front_door.passage import Passage
from diffkeeper_control.front_door.tunnels import Tunnels
from diffkeeper_control.front_door.upstreams import Upstreams
from diffkeeper_control.front_door.wire import Cut, SinkCut, Wire

# A head that has begun must be whole by then; a connection without a request is closed after the other.
HEAD_TIMEOUT_S = 30.0
IDLE_TIMEOUT_S = 300.0
RESEND_MAX = 3
BAD_ANSWER = "bad-answer"
_REASONS = {
    400: b"Bad Request",
    408: b"Request Timeout",
    431: b"Request Header Fields Too Large",
    501: b"Not Implemented",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    505: b"HTTP Version Not Supported",
}


class Lost(Exception):
    """The program's connection ended before its answer did."""

    def __init__(self, nothing_came: bool) -> None:
        super().__init__("the program's connection ended before its answer")
        self.nothing_came = nothing_came


@dataclass(slots=True)
class _Exchange:
    """A request under way on a connection to the program."""

    upstream: Wire
    generation: int
    counted: bool = False  # the passage was told that the answer begins
    is_tunnel: bool = False  # no request any more, and counted elsewhere
    keep: bool = False


class HttpRelay:
    def __init__(self, client: Wire, passage: Passage, upstreams: Upstreams, tunnels: Tunnels) -> None:
        self._client = client
        self._passage = passage
        self._upstreams = upstreams
        self._tunnels = tunnels

    async def run(self) -> None:
        """Until the client, or what it sends, ends the connection."""
        try:
            while (request := await self._next()) is not None:
                self._passage.counters.requests += 1
                if not await self._serve(request):
                    break
        except BadMessage as error:
            self._refuse(error.status, "bad-request", error.why, "")
        except (Cut, Lost):
            self._client.abort()  # nobody must take a part for the whole
            return
        await self._client.close()

    async def _next(self) -> Request | None:
        try:
            if not self._client.buffer:
                async with asyncio.timeout(IDLE_TIMEOUT_S):
                    if not await self._client.fill():
                        return None
        except TimeoutError:
            return None
        try:
            async with asyncio.timeout(HEAD_TIMEOUT_S):
                head = await self._client.read_head()
        except TimeoutError as error:
            raise BadMessage(408, f"the head was not whole after {HEAD_TIMEOUT_S:g} s") from error
        return None if head is None else heads.read_request(head)

    async def _serve(self, request: Request) -> bool:
        """Answer one request; whether the connection goes on."""
        for tries_left in reversed(range(RESEND_MAX)):
            try:
                return await self._pass(request)
            except Lost as lost:
                if lost.nothing_came and request.may_be_resent and tries_left:
                    self._passage.counters.resent += 1
                    continue
                self._passage.counters.lost += 1
                return self._refuse(
                    502,
                    "answer-lost",
                    "the program ended before it had answered; the request may have been carried out",
                    "find out whether it was, then send it again",
                    request,
                )
            except errors.DiffKeeperError as error:
                status = 502 if error.reason == BAD_ANSWER else 503
                return self._refuse(status, error.reason, error.message, error.hint, request)
        raise AssertionError("the last try returns or is answered")

    async def _pass(self, request: Request) -> bool:
        async with self._exchange(request) as exchange:
            exchange.upstream.write(heads.to_program(request, self._client.peer.encode()))
            sending = self._begin_body(request, exchange.upstream)
            try:
                response = await self._relay_head(request, exchange)
                if response.status == 101:
                    self._passage.end()
                    exchange.is_tunnel = True
                    self._client.write(heads.to_client(response, close=False))
                    await self._tunnels.run(self._client, exchange.upstream)
                    return False
                # An answer before all of the request was read: what is left of it has nowhere to go.
                done = sending is None or sending.done()
                going_on = request.keep_alive and response.ends_itself and done
                await self._relay_answer(response, exchange, close=not going_on)
                exchange.keep = response.keep_alive and done
                return going_on
            except Lost:
                if sending is not None and sending.done() and (fault := sending.exception()) is not None:
                    raise fault from None  # it is the client who broke off
                raise
            finally:
                if sending is not None:
                    sending.cancel()
                    await asyncio.gather(sending, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def _exchange(self, request: Request) -> AsyncIterator[_Exchange]:
        upstream = await self._upstreams.take(self._passage, safe=request.may_be_resent)
        exchange = _Exchange(upstream, self._passage.generation)
        try:
            yield exchange
        finally:
            if not exchange.counted:
                self._passage.answered()
            self._upstreams.give_back(
                upstream, self._passage, generation=exchange.generation, keep=exchange.keep
            )
            if not exchange.is_tunnel:
                self._passage.end()

    def _begin_body(self, request: Request, upstream: Wire) -> asyncio.Task[None] | None:
        """Pass the request's body on beside the answer: a program may answer before it has all of it."""
        if request.body == heads.NO_BODY:
            return None
        reader = bodies.reader(request.body)
        count = reader.take(self._client.buffer)
        upstream.write(bytes(self._client.buffer[:count]))
        del self._client.buffer[:count]
        if reader.done:
            return None
        return asyncio.create_task(self._pass_body(reader, upstream), name="pass a body on")

    async def _pass_body(self, body: bodies.BodyReader, upstream: Wire) -> None:
        try:
            await self._client.pass_on(body, upstream)
        except SinkCut:
            return  # the program reads no more; perhaps it has answered all the same
        except (Cut, BadMessage):
            upstream.abort()  # it must not take a part for the whole
            raise

    async def _relay_head(self, request: Request, exchange: _Exchange) -> Response:
        """The final head of the answer, interim ones passed on. Raises Lost."""
        upstream = exchange.upstream
        while True:
            try:
                await upstream.flush()
                head = await upstream.read_head()
                if head is None:
                    raise Cut("it was closed")
                response = heads.read_response(head, request)
            except Cut as error:
                raise Lost(nothing_came=not upstream.heard) from error
            except BadMessage as error:
                self._passage.counters.lost += 1
                raise errors.DiffKeeperError(error.why, reason=BAD_ANSWER) from error
            if not exchange.counted:
                exchange.counted = True
                self._passage.answered()
            if response.status == 101 and not request.websocket:
                raise errors.DiffKeeperError("the program switched protocols unasked", reason=BAD_ANSWER)
            if not response.is_interim:
                return response
            if request.minor == 1:
                self._client.write(heads.to_client(response, close=False))
                await self._client.flush()

    async def _relay_answer(self, response: Response, exchange: _Exchange, *, close: bool) -> None:
        self._client.write(heads.to_client(response, close=close))
        try:
            await exchange.upstream.pass_on(bodies.reader(response.body), self._client)
        except BadMessage as error:
            raise Cut(error.why) from error

    def _refuse(
        self, status: int, reason: str, message: str, hint: str, request: Request | None = None
    ) -> bool:
        """Answer in the program's stead; whether the connection goes on."""
        going_on = request is not None and request.keep_alive and request.body == heads.NO_BODY
        told = {"error": {"family": "transient", "reason": reason, "message": message, "hint": hint}}
        body = b"" if request is not None and request.method == b"HEAD" else msgspec.json.encode(told)
        fields: list[heads.Field] = [
            (b"Content-Type", b"application/json"),
            (b"Content-Length", b"%d" % len(msgspec.json.encode(told))),
            (b"Diffkeeper-Reason", reason.encode()),
        ]
        if status == 503:
            fields.append((b"Retry-After", b"1"))
        head = Response(1, status, _REASONS.get(status, b"Error"), tuple(fields), heads.NO_BODY, going_on)
        self._client.write(heads.to_client(head, close=not going_on) + body)
        return going_on
