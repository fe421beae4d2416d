"""A file that is merged as something else from now on: since a rule says so, or since its content cannot be held.

The new document begins with what the file was, by nobody, so that sites which change a file alike at one moment go
on with one document. The old one is kept apart until every site has seen the change: an edit of it that comes late
is no edit of the new one, and stands as a conflict copy beside the file, at every site the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blake3 import blake3

from diffkeeper.domain import errors, shared_ops, shared_trees
from diffkeeper_replicator.merging import blocks
from diffkeeper_replicator.merging import merger as mergers
from diffkeeper_replicator.merging_service import documents, kinds
from diffkeeper_replicator.merging_service.store import Document, Peer

if TYPE_CHECKING:
    from diffkeeper_replicator.merging_service.shared_state import SharedState


def apart(object_id: bytes, kind: str) -> bytes:
    """Under which the document of a kind that counts no more is kept."""
    return object_id + b"/" + kind.encode()


def change(
    state: SharedState, object_id: bytes, kept: Document, content: bytes, strategy: str
) -> shared_trees.Change | None:
    """A program made ``content`` of the file, which is merged as ``strategy`` from here on. None, with nothing
    changed, where that cannot be; Refused where the strategy does not hold the content.
    """
    old = state.document(object_id)
    assert old is not None, "it is in the store"
    now = old.content()
    is_behind = kept.base is not None
    # Nothing of a large file can be told in the words of another kind.
    is_large = isinstance(now, blocks.Manifest) or isinstance(content, blocks.Manifest)
    before = content if is_behind or is_large else now
    try:
        first = documents.begun(strategy, before)
    except errors.Refused:
        before, first = content, documents.begun(strategy, content)
    kind = kinds.parse(kept.merger).changed(strategy, before)
    if kind is None:
        return None
    document = documents.named(str(kind)).new(state.site)
    if first:
        document.merge(first)
    update = document.edit(content, state.tick(), state.site)
    if is_behind and now != content:
        state.keep_copy(object_id, now, state.clock)
    state.store.put_document(apart(object_id, kept.merger), Document(kept.merger, kept.state, None))
    state.store.put_document(object_id, Document(str(kind), document.state(), None))
    state.hold(object_id, document)
    # What was in the file at that moment, said before it: the others know by that whether theirs was.
    state.say(shared_ops.Seen({site: number for site, number in state.vector.items() if site != state.site}))
    said = state.say(shared_ops.Edit(object_id, str(kind), first))
    return state.say(shared_ops.Edit(object_id, str(kind), update)) if update else said


def take_other(state: SharedState, op: shared_ops.Edit, record: shared_ops.Record, kept: Document) -> None:
    """An edit of another kind than the file has here: the kind that beats the other counts, at every site."""
    beside = apart(op.object, op.merger)
    other = state.store.document(beside)
    merger = documents.named(op.merger)
    document = merger.new(state.site) if other is None else merger.load(other.state, state.site)
    before = document.content()
    state.take_update(document, op, record)
    if not kinds.parse(op.merger).beats(kinds.parse(kept.merger)):
        state.store.put_document(beside, Document(op.merger, document.state(), None))
        if document.content() != before:
            _keep_loser(state, op.object, state.content(op.object), document.content(), record)
        return
    mine = state.content(op.object)
    if mine != document.content() and _has_unseen(state, op, record, kept):
        _keep_loser(state, op.object, document.content(), mine, record)
    _become(state, op, document, kept, mine, record)


def _has_unseen(state: SharedState, op: shared_ops.Edit, record: shared_ops.Record, kept: Document) -> bool:
    """Whether the document of the old kind has edits that the site which changed it may not have had."""
    if kinds.parse(op.merger).mark == blake3(state.content(op.object)).hexdigest()[: kinds.MARK_DIGITS]:
        return False
    peer = state.peers.get(record.dot.site) or Peer()
    found = state.tree.objects.get(op.object)
    edited = {} if found is None else found.edited
    had = (peer.seen or {}) | {record.dot.site: record.dot.number}
    return not shared_ops.covers(had, edited)


def _become(
    state: SharedState,
    op: shared_ops.Edit,
    document: mergers.Document,
    kept: Document,
    mine: bytes,
    record: shared_ops.Record,
) -> None:
    state.store.put_document(apart(op.object, kept.merger), Document(kept.merger, kept.state, None))
    # Where the file on disk is what the new document begins with, there is nothing to write; otherwise what is on
    # disk says nothing in the words of the new kind.
    same = kept.base is None and mine == document.content()
    base = None if same else b""
    state.store.put_document(
        op.object, Document(op.merger, document.state(), base, state.and_unseen(kept, record.dot))
    )
    state.hold(op.object, document)


def _keep_loser(
    state: SharedState, object_id: bytes, winner: bytes, loser: bytes, record: shared_ops.Record
) -> None:
    """Beside the file, and told."""
    if not loser or loser == winner:
        return
    shown = mergers.CONFLICT_SHOWN_BYTES
    state.keep_copy(object_id, loser, record.stamp)
    state.note_conflict(
        object_id,
        mergers.Conflict(
            "kind-changed", winner[:shown], loser[:shown], record.dot.site, record.stamp, automatic=False
        ),
    )
