"""The way of large messages past the parser of nats-py gives what that parser gives."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from nats.aio.client import Client

from diffkeeper.log import large_payloads

_SIZES = (0, 1, 5, 1000, large_payloads.LARGE_BYTES - 1, large_payloads.LARGE_BYTES, 300_001)


class _Heard:
    """A client that only notes what its parser finds."""

    def __init__(self, *, beside: bool) -> None:
        self.messages: list[tuple[Any, ...]] = []
        self.client = Client()
        self.client._process_msg = self._note
        self.parser: Any = self.client._ps
        if beside:
            self.parser = large_payloads.LargePayloads(self.client)

    async def _note(self, *message: Any) -> None:
        self.messages.append(message)


def _message(rng: random.Random, size: int, with_headers: bool) -> bytes:
    payload = rng.randbytes(size)
    reply = b" reply.%d" % size if rng.random() < 0.5 else b""
    if not with_headers:
        return b"MSG a.b 7%s %d\r\n%s\r\n" % (reply, size, payload)
    headers = b"NATS/1.0\r\nNats-Msg-Id: %d\r\n\r\n" % size
    whole = headers + payload
    return b"HMSG a.b 7%s %d %d\r\n%s\r\n" % (reply, len(headers), len(whole), whole)


@given(
    st.lists(st.tuples(st.sampled_from(_SIZES), st.booleans()), min_size=1, max_size=6),
    st.sampled_from([1000, 65_536, 262_144]),
    st.integers(0, 1 << 32),
)
@settings(max_examples=25, deadline=None)
def test_every_message_comes_out_as_from_the_parser_alone(
    wanted: list[tuple[int, bool]], most: int, seed: int
) -> None:
    rng = random.Random(seed)
    wire = b"".join(_message(rng, size, headers) for size, headers in wanted)
    cuts = sorted({rng.randrange(len(wire)) for _ in range(1 + min(400, len(wire) // most))})
    pieces = [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True)]

    async def heard(beside: bool) -> list[tuple[Any, ...]]:
        found = _Heard(beside=beside)
        for piece in pieces:
            await found.parser.parse(piece)
        return found.messages

    alone, beside = asyncio.run(heard(False)), asyncio.run(heard(True))
    assert len(alone) == len(wanted)
    assert [[part or b"" for part in message] for message in beside] == [
        [part or b"" for part in message] for message in alone
    ]


def test_a_payload_that_was_cut_off_is_forgotten_with_its_connection() -> None:
    async def run() -> None:
        heard = _Heard(beside=True)
        await heard.parser.parse(b"MSG a 1 200000\r\n" + bytes(70_000))
        heard.parser.reset()
        await heard.parser.parse(b"MSG b 2 3\r\nxyz\r\n")
        assert [message[3] for message in heard.messages] == [b"xyz"]

    asyncio.run(run())
