"""Large messages past the buffer of nats-py's parser.

That parser appends what was read to its buffer, and copies a payload twice out of it: for a frame of a megabyte that
takes as long as checking its hash. Here the parts of a payload are kept as they were read and put together once; all
else goes to the parser, which is also the twin of this in the tests.
"""

from __future__ import annotations

from typing import Any

from nats.aio.client import Client
from nats.protocol import parser

# Below this a copy costs less than what is done here.
LARGE_BYTES = 64 * 1024
_END_BYTES = 2  # of the line end behind a payload


class LargePayloads:
    """Stands in a client for its parser; same calls."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._parser: Any = client._ps
        # Of the message whose payload is put together: sid, subject, reply, headers.
        self._head: tuple[Any, ...] = ()
        self._parts: list[bytes] = []
        # What its payload lacks, its line end included; 0: there is none.
        self._missing = 0

    def reset(self) -> None:
        self._forget()
        self._parser.reset()

    async def parse(self, data: bytes = b"") -> None:
        while self._missing:
            if len(data) < self._missing:
                if data:
                    self._parts.append(data)
                    self._missing -= len(data)
                return
            self._parts.append(data[: self._missing])
            data = data[self._missing :]
            await self._finish()
        await self._parser.parse(data)
        self._take_over()

    def _take_over(self) -> None:
        """Take a payload that has begun out of the parser's hands; its headers stay within the first part."""
        inner = self._parser
        if inner.state != parser.AWAITING_MSG_PAYLOAD or inner.needed < LARGE_BYTES:
            return
        begun = bytes(inner.buf)
        if len(begun) < inner.header_needed:
            return
        arguments, headers = inner.msg_arg, begun[: inner.header_needed] if inner.header_needed else None
        self._head = (arguments["sid"], arguments["subject"], arguments["reply"], headers)
        self._parts = [begun[inner.header_needed :]]
        self._missing = inner.needed + _END_BYTES - len(begun)
        inner.reset()

    async def _finish(self) -> None:
        sid, subject, reply, headers = self._head
        last = self._parts[-1]
        if len(last) >= _END_BYTES:
            self._parts[-1] = last[:-_END_BYTES]
            payload = b"".join(self._parts)
        else:
            payload = b"".join(self._parts)[:-_END_BYTES]
        self._forget()
        await self._client._process_msg(sid, subject, reply, payload, headers)

    def _forget(self) -> None:
        self._head, self._parts, self._missing = (), [], 0
