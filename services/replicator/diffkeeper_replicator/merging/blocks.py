"""A large file by reference: its document holds the digests of its blocks, and the blocks travel and are kept beside.

Merged as a whole like ``opaque``: the last version counts, the one that lost is kept. Never chosen by a rule; a file
is taken by reference when it is too large for any other strategy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack

from diffkeeper_replicator.merging import wire
from diffkeeper_replicator.merging.causal import Origin
from diffkeeper_replicator.merging.opaque import OpaqueDocument

NAME = "blocks"
BLOCK_BYTES = 4 * 1024 * 1024
DIGEST_BYTES = 32
# 128 GiB in blocks of 4 MiB.
BLOCKS_MAX = 32 * 1024
FILE_MAX_BYTES = BLOCKS_MAX * BLOCK_BYTES
_MANIFEST_MAX_BYTES = BLOCKS_MAX * (DIGEST_BYTES + 2) + 64


class Manifest(bytes):
    """What stands for the content of a large file: its size and the digests of its blocks, in order."""

    @property
    def size(self) -> int:
        return int(msgpack.unpackb(self)[0])

    @property
    def digests(self) -> list[bytes]:
        return list(msgpack.unpackb(self)[1])

    def shown(self) -> str:
        return f"{self.size} bytes in {len(self.digests)} blocks"


def manifest(size: int, digests: Sequence[bytes]) -> Manifest:
    return Manifest(msgpack.packb([size, list(digests)], use_bin_type=True))


def read(content: bytes) -> Manifest:
    """Corrupt for what ``manifest`` does not make."""
    wire.expect(isinstance(content, bytes) and len(content) <= _MANIFEST_MAX_BYTES, "manifest")
    try:
        fields = msgpack.unpackb(content, max_array_len=BLOCKS_MAX, max_map_len=0, max_ext_len=0)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise wire.damaged("the list of a large file's blocks cannot be read") from error
    wire.expect(isinstance(fields, list) and len(fields) == 2 and isinstance(fields[1], list), "manifest")
    size, digests = fields
    wire.expect(type(size) is int and 0 < size <= FILE_MAX_BYTES, "size")
    wire.expect(len(digests) == -(-size // BLOCK_BYTES), "number of blocks")
    wire.expect(all(isinstance(one, bytes) and len(one) == DIGEST_BYTES for one in digests), "digests")
    return Manifest(content)


class BlocksDocument(OpaqueDocument):
    strategy = NAME
    content_max_bytes = _MANIFEST_MAX_BYTES

    def content(self) -> bytes:
        content = super().content()
        return Manifest(content) if content else content

    def take(self, content: bytes, origin: Origin, changed: Sequence[tuple[int, int]] | None) -> Any:
        read(bytes(content))
        return super().take(bytes(content), origin, changed)

    def check(self, payload: Any) -> None:
        super().check(payload)
        read(payload)


class BlocksMerger:
    name = NAME

    def accepts(self, path: str, content: bytes) -> bool:
        return False

    def new(self, site: str) -> BlocksDocument:
        return BlocksDocument(site)

    def load(self, state: bytes, site: str) -> BlocksDocument:
        document = BlocksDocument(site)
        document.resume(state)
        return document
