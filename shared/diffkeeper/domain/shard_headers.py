"""The header of a shard: 510 bytes that say all one needs to know to use it, and repair themselves.

The header is two interleaved Reed-Solomon blocks RS(255, 191) as ``reedsolo`` makes them: up to 32 flipped bytes in
each are found and put right wherever they are. A digest inside decides whether the result is believed. The
payload behind the header has its own digest there; both are checked before anything of a shard is used.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from functools import cache, reduce
from operator import xor

import reedsolo
from blake3 import blake3

from diffkeeper.domain import errors, positions, segments, stripes, volumes

MAGIC = b"DKH1"
_BLOCKS = 2
_MESSAGE, _CHECK = 191, 64
HEADER_BYTES = _BLOCKS * (_MESSAGE + _CHECK)
# magic; data, parity, index, kind; epoch; segment bytes, payload bytes; first sequence, count; positions; times; digests
_FIELDS = struct.Struct("<4s4BIIIQIQQQQQQ32s32s41p41p")
_DIGEST = 16
_PADDING = bytes(_BLOCKS * _MESSAGE - _FIELDS.size - _DIGEST)
KIND_FRAMES = 0
MAX_BYTES = HEADER_BYTES + segments.MAX_BYTES
EPOCH_MAX = (1 << 31) - 1
_KEY = re.compile(
    r"([a-z0-9-]{1,40})\.([0-9a-f]{32})\.([0-9]{1,2})-([0-9]{1,2})\.([0-9]{1,10})\.([0-9]{1,2}|m)"
)


@dataclass(frozen=True, slots=True, order=True)
class Stripe:
    """What a stripe is called: a segment in one geometry."""

    volume: str
    segment: str  # segments.name_of
    geometry: stripes.Geometry


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """What a shard or a manifest is called where it stands. Written anew, even to the same place, it has another
    epoch.
    """

    stripe: Stripe
    epoch: int
    index: int  # MANIFEST for the manifest

    def __str__(self) -> str:
        stripe, index = self.stripe, "m" if self.index == MANIFEST else str(self.index)
        geometry = f"{stripe.geometry.data}-{stripe.geometry.parity}"
        return f"{stripe.volume}.{stripe.segment}.{geometry}.{self.epoch}.{index}"


MANIFEST = -1


def parse_key(text: str) -> Key | None:
    """A key from what a store calls it; None for what no service wrote, which is not ours to judge."""
    match = _KEY.fullmatch(text)
    if match is None:
        return None
    volume, segment, data, parity, epoch, index = match.groups()
    try:
        volumes.check_name("volume", volume)
        geometry = stripes.Geometry(int(data), int(parity))
    except errors.Refused:
        return None
    number = MANIFEST if index == "m" else int(index)
    if int(epoch) > EPOCH_MAX or number >= geometry.shards:
        return None
    key = Key(Stripe(volume, segment, geometry), int(epoch), number)
    return key if str(key) == text else None


@dataclass(frozen=True, slots=True)
class Header:
    geometry: stripes.Geometry
    index: int
    # Counts the placements of the stripe: a copy of an older one may be out of date in where it stands, never in what it is.
    epoch: int
    segment_hash: bytes
    segment_bytes: int
    payload_digest: bytes
    span: segments.Span

    @property
    def payload_bytes(self) -> int:
        return self.geometry.payload_bytes(self.segment_bytes)

    @property
    def key(self) -> Key:
        name = segments.name_of(self.segment_hash)
        return Key(Stripe(self.span.volume, name, self.geometry), self.epoch, self.index)


def encode(header: Header) -> bytes:
    span = header.span
    fields = _FIELDS.pack(
        MAGIC,
        header.geometry.data,
        header.geometry.parity,
        header.index,
        KIND_FRAMES,
        header.epoch,
        header.segment_bytes,
        header.payload_bytes,
        span.first_sequence,
        span.count,
        span.first.epoch,
        span.first.sequence,
        span.last.epoch,
        span.last.sequence,
        span.first_us,
        span.last_us,
        header.segment_hash,
        header.payload_digest,
        span.volume.encode(),
        span.origin.encode(),
    )
    return _protect(fields + blake3(fields).digest(_DIGEST) + _PADDING)


def decode(data: bytes) -> tuple[Header, bool]:
    """The header at the beginning of a shard, and whether it had to be repaired; raises Corrupt when it cannot be.

    Nothing in it is larger than the limits allow, so a caller may take memory for what it announces.
    """
    raw = bytes(data[:HEADER_BYTES])
    if len(raw) < HEADER_BYTES:
        raise _bad("it is shorter than its header")
    message = b"".join(raw[block::_BLOCKS][:_MESSAGE] for block in range(_BLOCKS))
    if _is_whole(message) and _protect(message) == raw:
        return _read(message), False
    message = _repair(raw)
    if not _is_whole(message):
        raise _bad("its header has more flipped bytes than can be put right")
    return _read(message), True


def check_payload(header: Header, payload: bytes | memoryview) -> None:
    """Raise Corrupt unless these are the bytes that the header speaks of."""
    check_length(header, payload)
    if blake3(payload).digest() != header.payload_digest:
        raise _bad("its bytes are not those of its digest")


def check_length(header: Header, payload: bytes | memoryview) -> None:
    if len(payload) != header.payload_bytes:
        raise _bad(f"it has {len(payload)} bytes behind its header and must have {header.payload_bytes}")


def _is_whole(message: bytes) -> bool:
    fields = message[: _FIELDS.size]
    return message[_FIELDS.size :] == blake3(fields).digest(_DIGEST) + _PADDING


def _read(message: bytes) -> Header:
    """From a message whose digest holds, which says nothing about who made it."""
    (
        magic,
        data,
        parity,
        index,
        kind,
        epoch,
        segment_bytes,
        payload_bytes,
        sequence,
        count,
        *numbers,
        segment_hash,
        payload_digest,
        volume,
        origin,
    ) = _FIELDS.unpack_from(message)
    if magic != MAGIC or kind != KIND_FRAMES:
        raise errors.Corrupt(
            f"a shard has the format {magic!r}, kind {kind}, and this version reads {MAGIC!r}, kind {KIND_FRAMES}; "
            "it was left where it is",
            reason="unknown-format",
            hint="upgrade this service: a newer one wrote it",
        )
    try:
        geometry = stripes.Geometry(data, parity)
        span = segments.Span(
            volumes.check_name("volume", volume.decode("ascii")),
            volumes.check_name("site", origin.decode("ascii")),
            sequence,
            count,
            positions.Position(numbers[0], numbers[1]),
            positions.Position(numbers[2], numbers[3]),
            numbers[4],
            numbers[5],
        )
    except (errors.Refused, UnicodeDecodeError) as error:
        raise _bad(f"its header makes no sense ({error})") from error
    if (
        index >= geometry.shards
        or epoch > EPOCH_MAX
        or not 0 < segment_bytes <= segments.MAX_BYTES
        or payload_bytes != geometry.payload_bytes(segment_bytes)
        or not 0 < count <= segments.MAX_FRAMES
        or sequence < 1
    ):
        raise _bad("its header announces what no service makes")
    return Header(geometry, index, epoch, segment_hash, segment_bytes, payload_digest, span)


def next_epoch(epoch: int) -> int:
    if epoch >= EPOCH_MAX:
        raise _bad("its placements cannot be counted any further, which only a forger brings about")
    return epoch + 1


# -- Reed-Solomon ------------------------------------------------------------------------------------------------


@cache
def _codec() -> reedsolo.RSCodec:
    return reedsolo.RSCodec(_CHECK)


@cache
def _products() -> list[bytes]:
    """For each factor the table of its products in GF(256), as ``bytes.translate`` takes it."""
    _codec()  # fills reedsolo's tables
    return [bytes(reedsolo.gf_mul(factor, value) for value in range(256)) for factor in range(256)]


@cache
def _rows() -> list[bytes]:
    """The check bytes of a message that is 1 in one place and 0 elsewhere, for each place.

    The code is linear, so the check bytes of any message are a sum of these; ``reedsolo`` divides polynomials byte by
    byte, which takes 3 ms a header and more than the coding of the segment it stands before.
    """
    products, generator = _products(), bytes(_codec().gen[_CHECK][1:])
    row, rows = generator, [generator]
    for _ in range(_MESSAGE - 1):
        shifted = int.from_bytes(row[1:] + b"\0", "big")
        row = (shifted ^ int.from_bytes(generator.translate(products[row[0]]), "big")).to_bytes(_CHECK, "big")
        rows.append(row)
    return rows[::-1]


def _check_bytes(message: bytes) -> bytes:
    products = _products()
    parts = (
        int.from_bytes(row.translate(products[value]), "big")
        for row, value in zip(_rows(), message, strict=True)
        if value
    )
    return reduce(xor, parts, 0).to_bytes(_CHECK, "big")


def _protect(message: bytes) -> bytes:
    """Both blocks with their check bytes, byte by byte in turn, so that a burst hits both halves alike."""
    protected = bytearray(HEADER_BYTES)
    for block in range(_BLOCKS):
        part = message[block * _MESSAGE : (block + 1) * _MESSAGE]
        protected[block::_BLOCKS] = part + _check_bytes(part)
    return bytes(protected)


def _repair(raw: bytes) -> bytes:
    try:
        return b"".join(bytes(_codec().decode(raw[block::_BLOCKS])[0]) for block in range(_BLOCKS))
    except reedsolo.ReedSolomonError as error:
        raise _bad(f"its header cannot be put right ({error})") from error


def _bad(why: str) -> errors.Corrupt:
    return errors.Corrupt(
        f"a shard is damaged: {why}; nothing of it was used",
        reason="damaged-shard",
        hint="it is made anew from the others of its stripe",
    )
