"""The front door between real sockets: what holds while a program moves, and what its clients are told."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest
from tests.support.door_programs import Client, Program, order, read_body, read_head, until

from diffkeeper import nats_server
from diffkeeper.domain import errors
from diffkeeper_control.front_door import passage
from diffkeeper_control.front_door.doors import Door, Doors


@contextlib.asynccontextmanager
async def a_door(program: Program, **changes: object) -> AsyncIterator[Door]:
    door = Door("v", order(nats_server.free_port("127.0.0.1"), program, **changes))
    await door.open()
    try:
        yield door
    finally:
        await door.close()


async def test_requests_on_one_connection_reach_the_program_over_one_connection() -> None:
    async with Program("east") as east, a_door(east) as door:
        client = await Client.of(door)
        for text in (b"a", b"", b"c"):
            client.post(text)
            assert await client.answer() == (200, b"east:" + text)
        assert b"X-Forwarded-For: 127.0.0.1\r\n" in east.heads[-1]
        assert east.connections == 2, "one that only asked whether it accepts, and one for all requests"
        client.close()


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with Program("east") as east, a_door(east) as door:
        client = await Client.of(door)
        for number in range(20):
            client.post(b"%d" % number)
        for number in range(20):
            assert await client.answer() == (200, b"east:%d" % number)
        client.close()


async def test_chunked_body_passes_whole() -> None:
    async with Program("east") as east, a_door(east) as door:
        client = await Client.of(door)
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab")
        await until(lambda: len(east.heads) == 1, "the program reads while the client still sends")
        client.send(b"c\r\n2\r\nde\r\n0\r\n\r\n")
        client.get()
        assert await client.answer() == (200, b"east:abcde")
        assert await client.answer() == (200, b"east:")
        client.close()


async def test_large_bodies_pass_both_ways() -> None:
    size = 32 * 1024 * 1024

    async def slow(program: Program, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not await read_head(reader):
            return
        left = size
        while left:
            left -= len(await reader.read(1 << 20))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(32):
            writer.write(bytes(1024 * 1024))
            await writer.drain()

    async with Program("east", slow) as east, a_door(east) as door:
        client = await Client.of(door)
        client.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(32):
            client.send(bytes(1024 * 1024))
            await client.writer.drain()
        status, body = await client.answer()
        assert (status, len(body)) == (200, size)
        client.close()


async def test_client_that_asks_before_it_sends_hears_the_program() -> None:
    async def willing(program: Program, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await read_head(reader)
        if head:
            assert b"Expect: 100-continue" in head
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = await read_body(head, reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            await writer.drain()

    async with Program("east", willing) as east, a_door(east) as door:
        client = await Client.of(door)
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        assert await client.answer() == (100, b"")
        client.send(b"hello")
        assert await client.answer() == (200, b"hello")
        client.close()


async def test_program_that_answers_early_is_heard_and_the_rest_goes_nowhere() -> None:
    async def curt(program: Program, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await read_head(reader):
            writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            await reader.read(-1)

    async with Program("east", curt) as east, a_door(east) as door:
        client = await Client.of(door)
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\n")
        head = await client.reader.readuntil(b"\r\n\r\n")
        assert b" 413 " in head and b"Connection: close" in head
        client.send(b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
        assert await client.rest() == b""
        assert len(east.heads) == 0
        client.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET",
        b"GET / HTTP/1.1\nHost: a\r\n\r\n",
        b"\x16\x03\x01 tls?\r\n\r\n",
    ],
)
async def test_nonsense_is_answered_and_never_reaches_the_program(sent: bytes) -> None:
    async with Program("east") as east, a_door(east) as door:
        client = await Client.of(door)
        client.send(sent)
        status, body = await client.answer()
        assert status == 400 and json.loads(body)["error"]["reason"] == "bad-request"
        assert await client.rest() == b""
        assert east.heads == []
        client.close()


async def test_malformed_chunk_cuts_the_program_off_and_is_told() -> None:
    async with Program("east") as east, a_door(east) as door:
        client = await Client.of(door)
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab")
        await until(lambda: len(east.heads) == 1, "it has begun")
        client.send(b"cdefg\r\n")
        assert (await client.answer())[0] == 400
        client.close()


async def test_planned_move_fails_no_request_and_keeps_connections() -> None:
    async with Program("east") as east, Program("west") as west, a_door(east) as door:
        clients = [await Client.of(door) for _ in range(8)]
        for client in clients:
            client.get()
        assert {await client.answer() for client in clients} == {(200, b"east:")}
        east.answer_after = asyncio.Event()
        clients[0].post(b"under way")
        await until(lambda: len(east.heads) == 9, "the program has it")
        door.obey(order(door.order.listen_port, east, state="hold"))
        for client in clients[1:]:
            client.post(b"held")
        await until(lambda: door.passage.waiting == 7, "they wait")
        draining = asyncio.create_task(door.drain(20))
        east.answer_after.set()
        assert (await draining)["drained"]
        await east.kill()
        door.obey(order(door.order.listen_port, west))
        assert await clients[0].answer() == (200, b"east:under way")
        assert [await client.answer() for client in clients[1:]] == [(200, b"west:held")] * 7
        assert door.passage.counters.lost == 0
        for client in clients:
            client.close()


async def test_requests_wait_for_a_program_that_has_not_begun_to_listen() -> None:
    east = Program("east", port=nats_server.free_port("127.0.0.1"))
    async with a_door(east) as door:
        client = await Client.of(door)
        client.post(b"early")
        await until(lambda: door.passage.waiting == 1, "it waits")
        await east.start()
        assert await client.answer() == (200, b"east:early")
        await east.kill()
        client.close()


async def test_held_requests_are_bounded_in_number_and_in_time() -> None:
    async with Program("east") as east, a_door(east, hold_max=1, hold_ms=300) as door:
        door.obey(order(door.order.listen_port, east, state="hold", hold_max=1, hold_ms=300))
        first, second = await Client.of(door), await Client.of(door)
        first.get()
        await until(lambda: door.passage.waiting == 1, "it waits")
        second.get()
        status, body = await second.answer()
        assert status == 503 and json.loads(body)["error"]["reason"] == "hold-full"
        status, body = await first.answer()
        assert status == 503 and json.loads(body)["error"]["reason"] == "hold-too-long"
        door.obey(order(door.order.listen_port, east))
        for client in (first, second):
            client.get()
            assert await client.answer() == (200, b"east:"), "a refusal costs no connection"
            client.close()


async def test_hold_that_nobody_ends_lapses() -> None:
    async with Program("east") as east, a_door(east) as door:
        door.obey(order(door.order.listen_port, east, state="hold", lapse_ms=50))
        client = await Client.of(door)
        client.get()
        assert await client.answer() == (200, b"east:")
        client.close()


async def test_write_whose_answer_was_lost_is_not_sent_again() -> None:
    async with Program("east") as east, Program("west") as west, a_door(east) as door:
        east.answer_after = asyncio.Event()
        writer, reader = await Client.of(door), await Client.of(door)
        writer.post(b"order")
        reader.get()
        await until(lambda: len(east.heads) == 2, "the program has both")
        door.obey(order(door.order.listen_port, east, state="hold", cut=True))
        status, body = await writer.answer()
        assert status == 502 and json.loads(body)["error"]["reason"] == "answer-lost"
        door.obey(order(door.order.listen_port, west))
        assert await reader.answer() == (200, b"west:"), "what may happen twice is sent again"
        assert not any(b"POST" in head for head in west.heads)
        for client in (writer, reader):
            client.close()


async def test_answer_cut_in_the_middle_is_not_taken_for_whole() -> None:
    async def half(program: Program, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await read_head(reader):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
            await writer.drain()

    async with Program("east", half) as east, a_door(east) as door:
        client = await Client.of(door)
        client.get()
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await client.answer()
        client.close()


async def test_connection_that_the_program_closed_while_idle_costs_no_request() -> None:
    async def once(program: Program, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await read_head(reader):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()

    async with Program("east", once) as east, a_door(east) as door:
        client = await Client.of(door)
        for _ in range(5):
            client.get()
            assert (await client.answer())[0] == 200
            await asyncio.sleep(0.02)
        client.close()


async def upgrade(program: Program, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    if await read_head(reader):
        writer.write(b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        while data := await reader.read(100):
            writer.write(program.name.encode() + b" " + data)


async def test_websocket_passes_and_is_closed_at_rest_before_a_move() -> None:
    async with Program("east", upgrade) as east, a_door(east) as door:
        client = await Client.of(door)
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        assert b" 101 " in await client.reader.readuntil(b"\r\n\r\n")
        client.send(b"ping")
        assert await client.reader.readexactly(9) == b"east ping"
        assert door.passage.in_flight == 0 and len(door.tunnels) == 1
        door.obey(order(door.order.listen_port, east, state="hold"))
        drained = await door.drain(20)
        assert drained["drained"] and drained["cut_off"] == 0
        assert await client.rest() == b""
        client.close()


async def shout(program: Program, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(100):
        if program.answer_after is not None:
            await program.answer_after.wait()
        writer.write(program.name.encode() + b" " + data)


async def test_tcp_connection_that_waits_for_an_answer_gets_it_before_a_move() -> None:
    async with (
        Program("east", shout) as east,
        Program("west", shout) as west,
        a_door(east, protocol="tcp") as door,
    ):
        client = await Client.of(door)
        client.send(b"one")
        assert await client.reader.readexactly(8) == b"east one"
        east.answer_after = asyncio.Event()
        client.send(b"two")
        await until(lambda: not next(iter(door.tunnels._open)).program_spoke_last, "it asked")
        door.obey(order(door.order.listen_port, east, protocol="tcp", state="hold"))
        draining = asyncio.create_task(door.drain(20))
        late = await Client.of(door)
        late.send(b"three")
        await asyncio.sleep(0.1)
        assert not draining.done(), "an answer is owed"
        east.answer_after.set()
        assert (await draining)["drained"]
        assert await client.rest() == b"east two"
        door.obey(order(door.order.listen_port, west, protocol="tcp"))
        assert await late.reader.readexactly(10) == b"west three"
        client.close()
        late.close()


async def test_program_that_begins_is_asked_by_few_at_first() -> None:
    async with Program("east") as east:
        east.answer_after = asyncio.Event()
        port = nats_server.free_port("127.0.0.1")
        door = Door("v", order(port, east, state="hold"))
        await door.open()
        clients = [await Client.of(door) for _ in range(40)]
        for client in clients:
            client.post(b"x")
        await until(lambda: door.passage.waiting == 40, "all wait")
        door.obey(order(port, east))
        await until(lambda: len(east.heads) >= passage.FIRST_WINDOW, "the first are let through")
        assert len(east.heads) < 40
        east.answer_after.set()
        assert [await client.answer() for client in clients] == [(200, b"east:x")] * 40
        for client in clients:
            client.close()
        await door.close()


async def test_address_that_is_taken_leaves_the_door_as_it_was() -> None:
    doors = Doors()
    async with Program("east") as east:
        good = order(nats_server.free_port("127.0.0.1"), east)
        await doors.put("v", good)
        with pytest.raises(errors.Refused) as refused:
            await doors.put("v", order(east.port, east))
        assert refused.value.reason == "listen-taken"
        client = await Client.of(doors.get("v"))
        client.get()
        assert await client.answer() == (200, b"east:")
        client.close()
        await doors.close()
