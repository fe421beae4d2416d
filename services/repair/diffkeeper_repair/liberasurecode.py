"""The same code through pyeclib alone: the twin of ``isal``, and what is used where that library is not found.

liberasurecode puts a header of its own, 80 bytes, before each fragment and believes what it reads there. Ours never
leave this module: they are cut off after encoding and made anew, from numbers that were checked, before decoding, so
that no byte of a stored shard is ever parsed by C code. Its own checks are not relied on: pyeclib 1.8.0 returned
wrong data for a flipped bit with them on.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence

from pyeclib.ec_iface import ECDriver, ECDriverError

from diffkeeper.domain import errors, stripes

EC_TYPE = "isa_l_rs_cauchy"
# Fragment header of liberasurecode (erasurecode.h): index, size, metadata size, original size, …, CRC of the first 59.
HEAD = 80
_META = 59
_SIZES = struct.Struct("<IIIQ")
_CRC_AT = 67


class Liberasurecode:
    """The code of one geometry that has parity."""

    def __init__(self, geometry: stripes.Geometry) -> None:
        self._geometry = geometry
        self._driver = ECDriver(k=geometry.data, m=geometry.parity, ec_type=EC_TYPE)
        self._heads = [fragment[:HEAD] for fragment in self._driver.encode(b"\0")]

    def encode(self, data: bytes | memoryview) -> Sequence[memoryview]:
        size = self._geometry.payload_bytes(len(data))
        payloads = [memoryview(fragment)[HEAD:] for fragment in self._driver.encode(bytes(data))]
        assert all(len(payload) == size for payload in payloads), "liberasurecode cuts as payload_bytes says"
        return payloads

    def decode(self, payloads: Mapping[int, bytes | memoryview], size: int) -> memoryview:
        length = self._geometry.payload_bytes(size)
        fragments = [
            b"".join((self.head(index, length, size), part)) for index, part in sorted(payloads.items())
        ]
        try:
            return memoryview(bytes(self._driver.decode(fragments)))
        except ECDriverError as error:
            raise errors.Corrupt(
                f"{len(payloads)} shards could not be decoded ({error}); nothing of them was used",
                reason="undecodable",
                hint="other shards of the stripe are tried",
            ) from error

    def head(self, index: int, length: int, size: int) -> bytes:
        head = bytearray(self._heads[index])
        _SIZES.pack_into(head, 0, index, length, 0, size)
        struct.pack_into("<I", head, _CRC_AT, zlib.crc32(head[:_META]))
        return bytes(head)
