"""Large files: read block by block, said as blocks and the list of their digests, and let go of when no version has them.

A block that the document of the file has already is not said again: every site has it, or will have it before the
edit. Others are said, even if they were once before: a site may have let go of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

from blake3 import blake3

from diffkeeper.domain import shared_ops
from diffkeeper_replicator.merging import blocks
from diffkeeper_replicator.merging_service import volume_rules

if TYPE_CHECKING:
    from diffkeeper_replicator.merging_service.shared_state import SharedState

# Larger files are shared by reference.
FILE_MAX_BYTES = 32 * 1024 * 1024
# Digests of blocks taken from a site since its last record of another kind: the edit they belong to is still to come.
_COMING = "blocks of "


def taken(state: SharedState, file: BinaryIO, object_id: bytes | None, *, says: bool) -> blocks.Manifest:
    """The manifest of an open file, its new blocks said if ``says``."""
    known: set[bytes] = set()
    content = state.content(object_id) if object_id is not None else b""
    if isinstance(content, blocks.Manifest):
        known = set(content.digests)
    digests: list[bytes] = []
    size = 0
    while len(digests) < blocks.BLOCKS_MAX and (data := file.read(blocks.BLOCK_BYTES)):
        digest = blake3(data).digest()
        if says and digest not in known:
            state.say_block(digest, data)
            known.add(digest)
        digests.append(digest)
        size += len(data)
    return blocks.manifest(size, digests)


def take(state: SharedState, record: shared_ops.Record) -> None:
    """A record of another site: a block, or the end of a row of them."""
    fact = _COMING + record.dot.site
    coming = state.store.fact(fact) or []
    if isinstance(record.op, shared_ops.Block):
        state.store.blocks.put(record.op.digest, record.op.data)
        state.store.set_fact(fact, [*coming, record.op.digest])
    elif coming:
        state.store.set_fact(fact, [])


def wanted(is_large: bool, content: bytes) -> str | None:
    """The strategy for a file that became large, or is it no more; None where nothing changes."""
    if is_large == isinstance(content, blocks.Manifest):
        return None
    if is_large:
        return volume_rules.choose(volume_rules.InForce().rules, b"", content).strategy
    return blocks.NAME


def shown(kind: str, side: bytes) -> bytes:
    """A side of a conflict for people."""
    if kind != blocks.NAME or len(side) < blocks.DIGEST_BYTES:
        return side
    return f"a large file, version {blake3(side).hexdigest()[:12]}".encode()


def sweep(state: SharedState) -> int:
    """Let go of blocks that no version has any more, once all sites have seen all versions; how many."""
    found = state.store.documents_of(blocks.NAME)
    if not found and state.store.blocks.is_empty():
        return 0
    seen = state.seen_by_all()
    needed = state.store.outbox_blocks()
    for site in state.sites:
        needed.update(state.store.fact(_COMING + site) or [])
    for document_id in found:
        object_id = document_id[: shared_ops.ID_BYTES]
        edited = state.tree.objects[object_id].edited if object_id in state.tree.objects else {}
        content = state.content(document_id) if document_id == object_id else b""
        if not shared_ops.covers(seen, edited) or not isinstance(content, blocks.Manifest):
            return 0
        needed.update(content.digests)
    return state.store.blocks.sweep(needed)
