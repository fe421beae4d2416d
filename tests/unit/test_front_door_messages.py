"""What the front door reads strictly, so that nobody behind it reads it in another way."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffkeeper_control.front_door import bodies, heads
from diffkeeper_control.front_door.heads import BadMessage, Framing

GET = b"GET / HTTP/1.1\r\nHost: a"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1", 400),  # no host
        (GET + b"\r\nHost: b", 400),
        (b"GET  / HTTP/1.1\r\nHost: a", 400),
        (b"GET / HTTP/1.1 \r\nHost: a", 400),
        (b"GET /a b HTTP/1.1\r\nHost: a", 400),
        (b"G\x00T / HTTP/1.1\r\nHost: a", 400),
        (b"GET / HTTP/2.0\r\nHost: a", 505),
        (b"GET / HTTP/1.2\r\nHost: a", 505),
        (b"PRI * HTTP/2.0", 505),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a", 501),
        (GET + b"\r\nContent-Length : 1", 400),
        (GET + b"\r\n Content-Length: 1", 400),
        (GET + b"\r\nContent-Length: 1\r\n\tfolded", 400),
        (GET + b"\r\nContent-Length: +1", 400),
        (GET + b"\r\nContent-Length: 1, 1", 400),
        (GET + b"\r\nContent-Length: 1\r\nContent-Length: 1", 400),
        (GET + b"\r\nContent-Length: 1234567890123456789", 400),
        (GET + b"\r\nTransfer-Encoding: chunked\r\nContent-Length: 4", 400),
        (GET + b"\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked", 501),
        (GET + b"\r\nTransfer-Encoding: gzip, chunked", 501),
        (GET + b"\r\nTransfer-Encoding: xchunked", 501),
        (GET + b"\r\nTransfer-Encoding: \x0bchunked", 400),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked", 400),
        (GET + b"\r\nX: a\nTransfer-Encoding: chunked", 400),
        (GET + b"\r\nX: a\rb", 400),
        (GET + b"".join(b"\r\nx: y" for _ in range(300)), 431),
    ],
)
def test_request_that_two_readers_could_read_in_two_ways_is_refused(head: bytes, status: int) -> None:
    with pytest.raises(BadMessage) as refused:
        heads.read_request(head)
    assert refused.value.status == status


def test_fields_of_one_connection_are_not_passed_on() -> None:
    request = heads.read_request(
        GET + b"\r\nConnection: close, X-Hop, content-length\r\nX-Hop: 1\r\nKeep-Alive: 5"
        b"\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\nContent-Length: 3\r\nX-Forwarded-For: 9.9.9.9\r\nX-End: 2"
    )
    assert not request.keep_alive
    assert heads.to_program(request, b"1.2.3.4") == (
        GET + b"\r\nContent-Length: 3\r\nX-End: 2\r\nX-Forwarded-For: 9.9.9.9, 1.2.3.4\r\n\r\n"
    )


def test_websocket_keeps_its_upgrade() -> None:
    request = heads.read_request(GET + b"\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket")
    assert request.websocket and not request.may_be_resent
    assert b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" in heads.to_program(request, b"c")


@pytest.mark.parametrize(
    ("method", "head", "framing"),
    [
        (b"GET", b"HTTP/1.1 200 OK\r\nContent-Length: 3", Framing.LENGTH),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 3", Framing.NONE),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 3", Framing.NONE),
        (b"GET", b"HTTP/1.1 204", Framing.NONE),
        (b"GET", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked", Framing.CHUNKED),
        (b"GET", b"HTTP/1.0 200 OK", Framing.UNTIL_CLOSE),
    ],
)
def test_end_of_an_answer_is_found_as_the_rfc_says(method: bytes, head: bytes, framing: Framing) -> None:
    request = heads.read_request(method + b" / HTTP/1.1\r\nHost: a")
    assert heads.read_response(head, request).body.framing is framing


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked",
        b"HTTP/1.1 20 OK",
        b"HTTP/2 200 OK",
    ],
)
def test_answer_that_makes_no_sense_is_the_programs_fault(head: bytes) -> None:
    with pytest.raises(BadMessage) as refused:
        heads.read_response(head, heads.read_request(GET))
    assert refused.value.status == 502


def test_only_what_may_happen_twice_is_resent() -> None:
    def may_be_resent(text: bytes) -> bool:
        return heads.read_request(text + b"\r\nHost: a").may_be_resent

    assert may_be_resent(b"GET / HTTP/1.1")
    assert may_be_resent(b"DELETE / HTTP/1.1")
    assert not may_be_resent(b"POST / HTTP/1.1")
    assert not may_be_resent(b"PATCH / HTTP/1.1")
    assert not may_be_resent(b"PUT / HTTP/1.1\r\nContent-Length: 1")


CHUNKED = b"3\r\nabc\r\n00a;x=y\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n"


@given(cuts=st.lists(st.integers(0, len(CHUNKED) + 5)))
def test_chunked_body_ends_at_the_same_byte_however_it_comes(cuts: list[int]) -> None:
    sent = CHUNKED + b"GET /"
    reader, buffer, passed = bodies.ChunkedReader(), bytearray(), bytearray()
    edges = [0, *sorted(cuts), len(sent)]
    for begin, end in itertools.pairwise(edges):
        buffer += sent[begin:end]
        count = reader.take(buffer)
        passed += buffer[:count]
        del buffer[:count]
    assert reader.done
    assert (bytes(passed), bytes(buffer)) == (CHUNKED, b"GET /")


@pytest.mark.parametrize(
    "body",
    [
        b"g\r\n",
        b"-1\r\n",
        b"0x3\r\nabc\r\n",
        b"1111111111111111\r\n",
        b"3\r\nabcd\r\n",
        b"3\r\nabc\n0\r\n\r\n",
        b"3;a\nb\r\nabc\r\n",
        b"3" + b" " * 2000,
        b"0\r\nContent-Length: 3\r\n\r\n",
        b"0\r\nno field\r\n\r\n",
        b"0\r\nX: " + b"y" * 10_000,
    ],
)
def test_malformed_chunked_body_is_not_passed_on(body: bytes) -> None:
    reader = bodies.ChunkedReader()
    with pytest.raises(BadMessage):
        reader.take(bytearray(body))


def test_body_of_a_known_length_leaves_what_follows() -> None:
    reader = bodies.reader(heads.Body(Framing.LENGTH, 5))
    assert reader.take(bytearray(b"abc")) == 3 and not reader.done and not reader.end()
    assert reader.take(bytearray(b"deGET")) == 2 and reader.done
