"""Bodies of HTTP/1 messages, found to their end as they pass. Pure.

A body is passed on as it came, byte for byte, but only what has been understood: ``take`` says how many bytes
at the front of a buffer may go on. What is not complete yet (half a chunk's size line) stays in the buffer.
"""

from __future__ import annotations

import enum
import re
from typing import Protocol

from diffkeeper_control.front_door import heads
from diffkeeper_control.front_door.heads import BadMessage, Framing

# The line before a chunk, with its extensions, and all trailer fields together.
SIZE_LINE_MAX_BYTES = 1024
TRAILER_MAX_BYTES = 8 * 1024

_SIZE_LINE = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?")
_TRAILER = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[\t\x20-\x7e\x80-\xff]*")
# A trailer that said how the message is framed or routed would be read by some and not by others.
_NO_TRAILERS = frozenset({b"transfer-encoding", b"content-length", b"host", b"connection", b"upgrade", b"te"})


class BodyReader(Protocol):
    @property
    def done(self) -> bool: ...

    def take(self, buffer: bytearray) -> int:
        """How many bytes at the front belong to the body and may be passed on. Raises BadMessage."""

    def end(self) -> bool:
        """The sender has closed its connection; whether that is where the body ends."""


def reader(body: heads.Body) -> BodyReader:
    if body.framing is Framing.CHUNKED:
        return ChunkedReader()
    if body.framing is Framing.UNTIL_CLOSE:
        return UntilCloseReader()
    return LengthReader(body.length)


class LengthReader:
    def __init__(self, length: int) -> None:
        self._left = length

    @property
    def done(self) -> bool:
        return self._left == 0

    def take(self, buffer: bytearray) -> int:
        count = min(len(buffer), self._left)
        self._left -= count
        return count

    def end(self) -> bool:
        return self.done


class UntilCloseReader:
    def __init__(self) -> None:
        self.done = False

    def take(self, buffer: bytearray) -> int:
        return len(buffer)

    def end(self) -> bool:
        self.done = True
        return True


class _At(enum.Enum):
    SIZE = "the line with the chunk's size"
    DATA = "the chunk's bytes"
    DATA_END = "the line end behind them"
    TRAILER = "the fields behind the last chunk"
    DONE = "done"


class ChunkedReader:
    def __init__(self) -> None:
        self._at = _At.SIZE
        self._left = 0
        self._trailer_left = TRAILER_MAX_BYTES

    @property
    def done(self) -> bool:
        return self._at is _At.DONE

    def end(self) -> bool:
        return self.done

    def take(self, buffer: bytearray) -> int:
        at = 0
        while self._at is not _At.DONE:
            count = self._step(buffer, at)
            if count == 0:
                break
            at += count
        return at

    def _step(self, buffer: bytearray, at: int) -> int:
        """The length of the next whole element from ``at``; 0 when it is not there yet."""
        match self._at:
            case _At.DATA:
                count = min(len(buffer) - at, self._left)
                self._left -= count
                if self._left == 0:
                    self._at = _At.DATA_END
                return count
            case _At.DATA_END:
                if not b"\r\n".startswith(buffer[at : at + 2]):
                    raise BadMessage(400, "a chunk is longer than it says")
                if len(buffer) - at < 2:
                    return 0
                self._at = _At.SIZE
                return 2
            case _At.SIZE:
                line = _line(buffer, at, SIZE_LINE_MAX_BYTES)
                if line is not None:
                    self._sized(line)
            case _:
                line = _line(buffer, at, self._trailer_left)
                if line is not None:
                    self._trailed(line)
        return 0 if line is None else len(line) + 2

    def _sized(self, line: bytes) -> None:
        match = _SIZE_LINE.fullmatch(line)
        if match is None:
            raise BadMessage(400, "the size of a chunk is malformed")
        self._left = int(match[1], 16)
        self._at = _At.DATA if self._left else _At.TRAILER

    def _trailed(self, line: bytes) -> None:
        if not line:
            self._at = _At.DONE
            return
        self._trailer_left -= len(line) + 2
        match = _TRAILER.fullmatch(line)
        if match is None or match[1].lower() in _NO_TRAILERS:
            raise BadMessage(400, "a trailer field is malformed, or may not be one")


def _line(buffer: bytearray, at: int, most: int) -> bytes | None:
    """The line from ``at`` without its end; None while it is not whole."""
    end = buffer.find(b"\r\n", at, at + most + 2)
    if end >= 0:
        return bytes(buffer[at:end])
    if len(buffer) - at > most:
        raise BadMessage(400, "a line within a chunked body is too long")
    return None
