"""HTTP as every daemon speaks it: a bearer token, JSON bodies, and errors that keep their family on the way.

A handler returns a ``web.Response`` (``json_response``) or raises an error of ``diffkeeper.domain.errors``;
the middleware turns the latter into ``{"error": {...}}`` with a matching status, and ``call`` on the other
side raises it again as what it was. Where a foreign program may look without a token, the path is in
``OPEN_PATHS``.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import aiohttp
import msgspec
import structlog
from aiohttp import web

from diffkeeper.domain import errors

BODY_MAX_BYTES = 1024 * 1024
# An answer that a daemon believes without having asked how large it is (digests of large volumes are the
# largest).
ANSWER_MAX_BYTES = 256 * 1024 * 1024
OPEN_PATHS = frozenset({"/healthz", "/metrics"})

STATUS_OF_FAMILY = {
    "refused": 409,
    "fenced": 409,
    "not-found": 404,
    "unauthorised": 401,
    "misconfigured": 422,
    "unreachable": 503,
    "transient": 503,
    "timed-out": 504,
    "corrupt": 500,
    "error": 500,
}
# A few refusals have a status of their own that every HTTP client knows.
STATUS_OF_REASON = {"bad-request": 400, "body-too-large": 413, "method-not-allowed": 405}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
T = TypeVar("T")

_log = structlog.get_logger("http")


def make_app(token: str) -> web.Application:
    """An application that asks for ``token`` and speaks our errors; add routes to it."""
    return web.Application(middlewares=[_speak_errors, _ask_token(token)], client_max_size=BODY_MAX_BYTES)


def json_response(value: Any, status: int = 200) -> web.Response:
    """``value`` (plain data, Structs or dataclasses) as a JSON answer."""
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


def error_response(error: errors.DiffKeeperError) -> web.Response:
    status = STATUS_OF_REASON.get(error.reason) or STATUS_OF_FAMILY.get(error.family, 500)
    return json_response({"error": error.to_dict()}, status)


async def read_body(request: web.Request, kind: type[T]) -> T:
    """The request's JSON body as ``kind`` (a strict Struct, or ``dict``); raises Refused.

    No body at all reads as ``{}``, so that a call whose fields all have defaults can be made without one.
    """
    data = await request.read()
    try:
        return msgspec.json.decode(data or b"{}", type=kind)
    except msgspec.DecodeError as error:
        raise errors.Refused(f"the body of the request is wrong: {error}", reason="bad-request") from error


@contextlib.asynccontextmanager
async def serve(app: web.Application, host: str, port: int) -> AsyncIterator[int]:
    """Serve ``app`` within the block; gives the bound port (that of the kernel's choice for port 0)."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=2.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise errors.Misconfigured(
                f"cannot listen on {host}:{port}: {error.strerror}",
                reason="address-unusable",
                hint="choose another port, or 0 for any free one",
            ) from error
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


async def call(
    session: aiohttp.ClientSession,
    method: str,
    url: str,
    *,
    token: str,
    body: Any = None,
    timeout_s: float = 10.0,
) -> Any:
    """Ask another daemon; its JSON answer, or its error raised as it was there.

    Raises Unreachable when nothing answered and TimedOut when the answer did not come within ``timeout_s``
    (what was asked for may still happen).
    """
    headers = {"Authorization": f"Bearer {token}"}
    data = None
    if body is not None:
        headers["Content-Type"] = "application/json"
        data = msgspec.json.encode(body)
        if len(data) > BODY_MAX_BYTES:
            raise _too_large()
    limit = aiohttp.ClientTimeout(total=timeout_s, connect=min(timeout_s, 5.0))
    try:
        async with session.request(method, url, data=data, headers=headers, timeout=limit) as response:
            answer = await response.content.read(ANSWER_MAX_BYTES)
            status = response.status
            while chunk := await response.content.read(ANSWER_MAX_BYTES):
                answer += chunk
                if len(answer) > ANSWER_MAX_BYTES:
                    raise errors.Refused(f"the answer of {url} is too large", reason="answer-too-large")
    except TimeoutError as error:
        raise errors.TimedOut(
            f"{method} {url} gave no answer within {timeout_s:g} s", reason="no-answer", url=url
        ) from error
    except (aiohttp.ClientError, OSError) as error:
        raise errors.Unreachable(
            f"{method} {url} could not be asked: {error}", reason="no-connection", url=url
        ) from error
    return _read_answer(url, status, answer)


def _read_answer(url: str, status: int, answer: bytes) -> Any:
    try:
        value = msgspec.json.decode(answer) if answer else None
    except msgspec.DecodeError as error:
        raise errors.DiffKeeperError(
            f"{url} answered {status} with something that is not JSON", reason="bad-answer", status=status
        ) from error
    if status < 400:
        return value
    raise _sent_error(url, status, value)


def error_of(status: int, answer: bytes) -> errors.DiffKeeperError:
    """The error in the body of a refused call whose answer is read as a stream."""
    try:
        value = msgspec.json.decode(answer)
    except msgspec.DecodeError:
        value = None
    return _sent_error("the service", status, value)


def _sent_error(url: str, status: int, value: Any) -> errors.DiffKeeperError:
    sent = value.get("error") if isinstance(value, dict) else None
    if isinstance(sent, dict):
        return errors.from_dict(sent)
    return errors.DiffKeeperError(f"{url} answered {status}", reason="bad-answer", status=status)


def _ask_token(token: str) -> Any:
    expected = f"Bearer {token}".encode()

    @web.middleware
    async def ask(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path not in OPEN_PATHS:
            # Bytes, because compare_digest refuses text that is not ASCII; surrogates stand for the raw
            # bytes sent.
            given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
            if not hmac.compare_digest(given, expected):
                raise errors.Unauthorised(
                    "the request carries no valid token",
                    reason="bad-token",
                    hint="send 'Authorization: Bearer TOKEN' with the deployment's token",
                )
        return await handler(request)

    return ask


@web.middleware
async def _speak_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except errors.DiffKeeperError as error:
        return error_response(error)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return error_response(_from_http(request, error))
    except asyncio.CancelledError:
        raise
    except Exception as error:  # noqa: BLE001
        # The caller must get an answer and the operator the traceback; the daemon itself goes on.
        _log.exception("a request failed", method=request.method, path=request.path)
        return error_response(
            errors.DiffKeeperError(f"{request.method} {request.path} failed: {error!r}", reason="internal")
        )


def _from_http(request: web.Request, error: web.HTTPException) -> errors.DiffKeeperError:
    match error.status:
        case 404:
            return errors.NotFound(f"there is no {request.method} {request.path}", reason="no-such-route")
        case 405:
            return errors.Refused(
                f"{request.path} does not take {request.method}",
                reason="method-not-allowed",
                hint=f"it takes {error.headers.get('Allow', '')}",
            )
        case 413:
            return _too_large()
        case _:
            return errors.Refused(f"{error.status} {error.reason}", reason="bad-request")


def _too_large() -> errors.Refused:
    return errors.Refused(f"the body exceeds {BODY_MAX_BYTES} bytes", reason="body-too-large")
