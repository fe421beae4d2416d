"""What one daemon says to another: tokens, bodies, and errors that arrive as what they were."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator

import aiohttp
import msgspec
import pytest
from aiohttp import web

from diffkeeper import http, metrics
from diffkeeper.domain import errors

TOKEN = "tök\u20ac"


class Body(msgspec.Struct, forbid_unknown_fields=True):
    number: int = 0


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as made:
        yield made


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async def raise_family(request: web.Request) -> web.Response:
        cls = errors.FAMILIES[request.match_info["family"]]
        raise cls("what failed", reason="why-so", hint="do this", position="7.1042")

    async def crash(_request: web.Request) -> web.Response:
        raise RuntimeError("a defect")

    async def echo(request: web.Request) -> web.Response:
        return http.json_response((await http.read_body(request, Body)).number)

    async def sleep(_request: web.Request) -> web.Response:
        await asyncio.sleep(30)
        return web.Response()

    async def healthz(_request: web.Request) -> web.Response:
        return http.json_response({"ok": True})

    app = http.make_app(TOKEN)
    measured = metrics.Metrics()
    measured.counter("things_total", "Things").inc(3)
    app.add_routes(
        [
            web.get("/errors/{family}", raise_family),
            web.get("/crash", crash),
            web.post("/echo", echo),
            web.get("/sleep", sleep),
            web.get("/healthz", healthz),
            measured.route(),
        ]
    )
    async with http.serve(app, "127.0.0.1", 0) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("family", sorted(errors.FAMILIES))
async def test_an_error_arrives_as_what_it_was(session: aiohttp.ClientSession, url: str, family: str) -> None:
    with pytest.raises(errors.FAMILIES[family]) as caught:
        await http.call(session, "GET", f"{url}/errors/{family}", token=TOKEN)
    error = caught.value
    assert type(error) is errors.FAMILIES[family]
    assert (error.message, error.reason, error.hint) == ("what failed", "why-so", "do this")
    assert error.facts == {"position": "7.1042"}


async def test_the_status_tells_the_family_to_those_who_read_no_body(
    session: aiohttp.ClientSession, url: str
) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    for family, status in http.STATUS_OF_FAMILY.items():
        async with session.get(f"{url}/errors/{family}", headers=headers) as response:
            assert response.status == status


@pytest.mark.parametrize("token", ["", "wrong", TOKEN + "x", TOKEN[:-1]])
async def test_without_the_token_nothing_is_done(
    session: aiohttp.ClientSession, url: str, token: str
) -> None:
    with pytest.raises(errors.Unauthorised):
        await http.call(session, "POST", f"{url}/echo", token=token, body={})


async def test_health_and_metrics_are_open(session: aiohttp.ClientSession, url: str) -> None:
    async with session.get(f"{url}/healthz") as response:
        assert response.status == 200
    async with session.get(f"{url}/metrics") as response:
        assert "diffkeeper_things_total 3.0" in await response.text()


async def test_a_body_is_checked_and_unknown_keys_are_named(session: aiohttp.ClientSession, url: str) -> None:
    async def echo(body: object) -> object:
        return await http.call(session, "POST", f"{url}/echo", token=TOKEN, body=body)

    assert await echo({"number": 7}) == 7
    assert await echo(None) == 0
    for body, word in (({"nmber": 7}, "nmber"), ({"number": "x"}, "number"), ([1], "object")):
        with pytest.raises(errors.Refused, match=word) as caught:
            await echo(body)
        assert caught.value.reason == "bad-request"
    with pytest.raises(errors.Refused) as caught:
        await echo("x" * (http.BODY_MAX_BYTES + 1))
    assert caught.value.reason == "body-too-large"
    headers = {"Authorization": f"Bearer {TOKEN}"}
    large = io.BytesIO(b" " * (http.BODY_MAX_BYTES + 1))
    async with session.post(f"{url}/echo", data=large, headers=headers) as response:
        assert (response.status, (await response.json())["error"]["reason"]) == (413, "body-too-large")


async def test_what_does_not_exist_is_said_clearly(session: aiohttp.ClientSession, url: str) -> None:
    with pytest.raises(errors.NotFound, match="GET /nothing"):
        await http.call(session, "GET", f"{url}/nothing", token=TOKEN)
    with pytest.raises(errors.Refused, match="does not take GET"):
        await http.call(session, "GET", f"{url}/echo", token=TOKEN)


async def test_a_defect_is_an_answer_and_the_service_goes_on(
    session: aiohttp.ClientSession, url: str
) -> None:
    with pytest.raises(errors.DiffKeeperError, match="a defect"):
        await http.call(session, "GET", f"{url}/crash", token=TOKEN)
    assert await http.call(session, "POST", f"{url}/echo", token=TOKEN, body={"number": 1}) == 1


async def test_silence_and_absence_are_told_apart(session: aiohttp.ClientSession, url: str) -> None:
    with pytest.raises(errors.TimedOut):
        await http.call(session, "GET", f"{url}/sleep", token=TOKEN, timeout_s=0.05)
    with pytest.raises(errors.Unreachable):
        await http.call(session, "GET", "http://127.0.0.1:1/", token=TOKEN)


async def test_a_taken_port_is_the_operators_business(url: str) -> None:
    port = int(url.rsplit(":", 1)[1])
    with pytest.raises(errors.Misconfigured, match=str(port)):
        async with http.serve(http.make_app("t"), "127.0.0.1", port):
            pass
