"""Heads of HTTP/1 requests and responses: read strictly, and written anew for the next hop. Pure.

Where RFC 9112 lets a reader be lenient, this one refuses: whatever two readers could take for two different
messages is answered 400 and never passed on. What is passed on is composed from what was understood.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

# A head as a whole, its fields included.
HEAD_MAX_BYTES = 64 * 1024
FIELDS_MAX = 200
END = b"\r\n\r\n"

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e\x80-\xff]+) HTTP/(\d)\.(\d)")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9]\d\d)(?: ([\t\x20-\x7e\x80-\xff]*))?")
_FIELD = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*")
# 18 digits: an exabyte, and still no number that overflows anywhere.
_LENGTH = re.compile(rb"\d{1,18}")

# Fields that speak of one connection only (RFC 9110, 7.6.1), beside those that Connection names.
_HOP_BY_HOP = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"upgrade", b"http2-settings"})
# What Connection may not take away, for it says where the message ends or whom it is for.
_NEVER_DROPPED = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect"})
_IDEMPOTENT = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})

Field = tuple[bytes, bytes]


class BadMessage(Exception):
    """The message is not HTTP, or could be read in two ways. ``status`` is what its sender is told."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why


class Framing(enum.Enum):
    """How the end of a body is found."""

    NONE = "none"
    LENGTH = "length"
    CHUNKED = "chunked"
    UNTIL_CLOSE = "until-close"  # responses only


@dataclass(frozen=True, slots=True)
class Body:
    framing: Framing
    length: int = 0


NO_BODY = Body(Framing.NONE)


@dataclass(frozen=True, slots=True)
class Request:
    method: bytes
    target: bytes
    minor: int  # of HTTP/1
    fields: tuple[Field, ...]
    body: Body
    # The client wants its connection kept open.
    keep_alive: bool
    websocket: bool

    @property
    def may_be_resent(self) -> bool:
        """Doing it twice is doing it once, and there is no body that has been passed on already."""
        return self.method in _IDEMPOTENT and self.body == NO_BODY and not self.websocket


@dataclass(frozen=True, slots=True)
class Response:
    minor: int
    status: int
    reason: bytes
    fields: tuple[Field, ...]
    body: Body
    keep_alive: bool

    @property
    def is_interim(self) -> bool:
        return self.status < 200 and self.status != 101

    @property
    def ends_itself(self) -> bool:
        """Its reader finds the end without the connection being closed."""
        return self.body.framing is not Framing.UNTIL_CLOSE


def read_request(head: bytes) -> Request:
    """``head`` ends before its empty line. Raises BadMessage."""
    line, fields = _split(head)
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise BadMessage(400, "the request line is malformed")
    method, target = match[1], match[2]
    if match[3] != b"1" or match[4] not in b"01":
        raise BadMessage(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")
    if method == b"CONNECT":
        raise BadMessage(501, "CONNECT is not spoken here")
    minor = int(match[4])
    hosts = values(fields, b"host")
    if len(hosts) > 1 or (minor == 1 and not hosts):
        raise BadMessage(400, "a request names exactly one host")
    options = _options(fields)
    websocket = minor == 1 and b"upgrade" in options and _lower(fields, b"upgrade") == [b"websocket"]
    keep_alive = minor == 1 and b"close" not in options
    return Request(method, target, minor, fields, _request_body(fields, minor), keep_alive, websocket)


def read_response(head: bytes, request: Request) -> Response:
    """The head of an answer to ``request``. Raises BadMessage, whose status is 502."""
    try:
        line, fields = _split(head)
        match = _STATUS_LINE.fullmatch(line)
        if match is None:
            raise BadMessage(502, "the status line is malformed")
        minor, status = int(match[1]), int(match[2])
        body = _response_body(fields, minor, status, request)
    except BadMessage as error:
        raise BadMessage(502, f"the program's answer: {error.why}") from error
    keep_alive = minor == 1 and b"close" not in _options(fields) and body.framing is not Framing.UNTIL_CLOSE
    return Response(minor, status, match[3] or b"", fields, body, keep_alive)


def to_program(request: Request, client: bytes) -> bytes:
    """The request as the program gets it. ``client`` is the address that goes into X-Forwarded-For."""
    lines = [b"%s %s HTTP/1.%d" % (request.method, request.target, request.minor)]
    kept = _end_to_end(request.fields)
    forwarded = b", ".join([*values(kept, b"x-forwarded-for"), client])
    lines += [b"%s: %s" % field for field in kept if field[0].lower() != b"x-forwarded-for"]
    lines.append(b"X-Forwarded-For: " + forwarded)
    if request.websocket:
        lines += [b"Connection: Upgrade", b"Upgrade: websocket"]
    return b"\r\n".join(lines) + END


def to_client(response: Response, *, close: bool) -> bytes:
    """The answer's head as the client gets it; ``close`` says that nothing follows on its connection."""
    lines = [b"HTTP/1.1 %d %s" % (response.status, response.reason)]
    lines += [b"%s: %s" % field for field in _end_to_end(response.fields)]
    if response.status == 101:
        lines += [b"Connection: Upgrade", b"Upgrade: websocket"]
    elif close:
        lines.append(b"Connection: close")
    return b"\r\n".join(lines) + END


def values(fields: tuple[Field, ...], name: bytes) -> list[bytes]:
    return [value for field, value in fields if field.lower() == name]


def _split(head: bytes) -> tuple[bytes, tuple[Field, ...]]:
    line, *rest = head.split(b"\r\n")
    if len(rest) > FIELDS_MAX:
        raise BadMessage(431, f"more than {FIELDS_MAX} header fields")
    fields = []
    for text in rest:
        # A line that begins with a blank would continue the one before it: obsolete, and read in many ways.
        match = _FIELD.fullmatch(text)
        if match is None:
            raise BadMessage(400, "a header field is malformed")
        fields.append((match[1], match[2]))
    return line, tuple(fields)


def _request_body(fields: tuple[Field, ...], minor: int) -> Body:
    codings, lengths = _lower(fields, b"transfer-encoding"), values(fields, b"content-length")
    if codings:
        if lengths or minor == 0:
            raise BadMessage(400, "Transfer-Encoding beside Content-Length, or in HTTP/1.0")
        if codings != [b"chunked"]:
            raise BadMessage(501, "the only transfer coding spoken here is chunked")
        return Body(Framing.CHUNKED)
    if not lengths:
        return NO_BODY
    length = _length(lengths)
    return Body(Framing.LENGTH, length) if length else NO_BODY


def _response_body(fields: tuple[Field, ...], minor: int, status: int, request: Request) -> Body:
    codings, lengths = _lower(fields, b"transfer-encoding"), values(fields, b"content-length")
    if codings and (lengths or minor == 0 or codings != [b"chunked"]):
        raise BadMessage(502, "its length is stated in two ways, or in one not spoken here")
    length = _length(lengths) if lengths else 0
    if request.method == b"HEAD" or status < 200 or status in (204, 304):
        return NO_BODY
    if codings:
        if request.minor == 0:
            raise BadMessage(502, "it is chunked, and its reader speaks HTTP/1.0")
        return Body(Framing.CHUNKED)
    if not lengths:
        return Body(Framing.UNTIL_CLOSE)
    return Body(Framing.LENGTH, length) if length else NO_BODY


def _length(lengths: list[bytes]) -> int:
    if len(lengths) != 1 or _LENGTH.fullmatch(lengths[0]) is None:
        raise BadMessage(400, "Content-Length is not one number")
    return int(lengths[0])


def _end_to_end(fields: tuple[Field, ...]) -> tuple[Field, ...]:
    dropped = _HOP_BY_HOP | (_options(fields) - _NEVER_DROPPED)
    return tuple(field for field in fields if field[0].lower() not in dropped)


def _options(fields: tuple[Field, ...]) -> set[bytes]:
    """What Connection names."""
    return {option.strip().lower() for value in values(fields, b"connection") for option in value.split(b",")}


def _lower(fields: tuple[Field, ...], name: bytes) -> list[bytes]:
    return [value.lower() for value in values(fields, name)]
