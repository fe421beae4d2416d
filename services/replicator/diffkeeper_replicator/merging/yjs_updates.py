"""What stands in a Yjs update (format 1), read without taking it in: the guard before ``pycrdt``.

Only what a text at one root can consist of is let through: runs of characters, deleted and collected runs, and
ranges to delete. Anything else, and anything that names what is not there, is Corrupt. The format is that of
https://github.com/yjs/yjs (``src/utils/UpdateEncoder.js``, ``src/structs/Item.js``).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from diffkeeper_replicator.merging import wire

ROOT = "text"
# yrs counts with 32 bits.
CLOCK_MAX = 1 << 31
# Client numbers have 53 bits, so that JavaScript can hold them.
CLIENT_MAX = (1 << 53) - 1

_COLLECTED = 0
_DELETED = 1
_STRING = 4
_ROOT_NAMED = 1


@dataclass
class Contents:
    """``runs``: client to its (first clock, length, text or None when deleted), rising without a hole.
    ``needed``: client to the highest clock that is referred to.
    """

    runs: dict[int, list[tuple[int, int, bytes | None]]] = field(default_factory=dict)
    needed: dict[int, int] = field(default_factory=dict)
    deletes: bool = False

    def end(self, client: int) -> int:
        """The clock after the last run; 0 for a client that wrote nothing."""
        runs = self.runs.get(client)
        return runs[-1][0] + runs[-1][1] if runs else 0


def read(update: bytes) -> Contents:
    """Corrupt unless it is an update of a text at ``ROOT`` and nothing else."""
    reader = _Reader(update)
    contents = Contents()
    try:
        for _ in range(reader.number()):
            _read_client(reader, contents)
        for _ in range(reader.number()):
            client = reader.client()
            for _ in range(reader.number()):
                end = reader.number() + reader.number()
                contents.deletes = True
                _need(contents, client, end - 1)
    except IndexError as error:
        raise wire.damaged("a text update ends too early") from error
    wire.expect(reader.at == len(update), "bytes after the end of a text update")
    return contents


def _read_client(reader: _Reader, contents: Contents) -> None:
    count, client, clock = reader.number(), reader.client(), reader.number()
    wire.expect(client not in contents.runs and count > 0, "client")
    runs = contents.runs[client] = []
    for _ in range(count):
        info = reader.byte()
        text: bytes | None = None
        if info == _COLLECTED:
            length = reader.number()
        else:
            _read_place(reader, contents, info)
            if info & 0x1F == _STRING:
                text = reader.string()
                length = utf16_length(text)
            else:
                wire.expect(info & 0x1F == _DELETED, "content that is no text")
                length = reader.number()
        wire.expect(length > 0 and clock + length < CLOCK_MAX, "length")
        runs.append((clock, length, text))
        clock += length


def _read_place(reader: _Reader, contents: Contents, info: int) -> None:
    wire.expect(not info & 0x20, "a key")
    for flag in (0x80, 0x40):
        if info & flag:
            client = reader.client()
            _need(contents, client, reader.number())
    if not info & 0xC0:
        wire.expect(reader.number() == _ROOT_NAMED and reader.string() == ROOT.encode(), "root")


def _need(contents: Contents, client: int, clock: int) -> None:
    wire.expect(0 <= clock < CLOCK_MAX, "clock")
    if clock >= contents.needed.get(client, -1):
        contents.needed[client] = clock


def utf16_length(text: bytes) -> int:
    """Units of UTF-16, in which Yjs counts. Corrupt when it is not UTF-8."""
    if text.isascii():
        return len(text)
    try:
        return len(text.decode().encode("utf-16-le")) // 2
    except UnicodeDecodeError as error:
        raise wire.damaged("a text update is not UTF-8") from error


class _Reader:
    """IndexError at the end of the bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def byte(self) -> int:
        value = self._data[self.at]
        self.at += 1
        return value

    def number(self) -> int:
        data, at = self._data, self.at
        byte = data[at]
        value = byte & 0x7F
        shift = 7
        while byte >= 0x80:
            at += 1
            byte = data[at]
            value |= (byte & 0x7F) << shift
            shift += 7
            if shift > 70:
                raise wire.damaged("a text update has a number without end")
        self.at = at + 1
        return value

    def client(self) -> int:
        value = self.number()
        wire.expect(value <= CLIENT_MAX, "client")
        return value

    def string(self) -> bytes:
        length = self.number()
        end = self.at + length
        if end > len(self._data):
            raise IndexError
        value = self._data[self.at : end]
        self.at = end
        return value
