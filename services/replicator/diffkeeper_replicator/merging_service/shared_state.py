"""One site's share in a shared volume, in memory and in its store: takes in records of other sites, says its own.

Knows no directory: what should stand there is asked of ``tree`` and ``document``, what a program changed there
is told by ``say`` and ``edit``. Every public call that changes something leaves it in one transaction of the
store, which the caller commits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import Any

from blake3 import blake3

from diffkeeper.domain import clocks, errors, shared_ops, shared_trees, trees
from diffkeeper.domain.shared_ops import ROOT, Dot, Vector
from diffkeeper_replicator.merging import blocks, rules_file
from diffkeeper_replicator.merging import merger as mergers
from diffkeeper_replicator.merging.rules import Choice
from diffkeeper_replicator.merging_service import documents, kind_changes, kinds, large_files, volume_rules
from diffkeeper_replicator.merging_service.store import Document, Peer, Store

# Documents kept loaded: those that are edited now.
LOADED_MAX = 64
WHOLE = "opaque"
# Of files merged like this all edits are in the file: no version can lose.
ALL_AUTOMATIC = frozenset({"text"})
# Files whose rule could not be followed, of which is told.
NOTED_MAX = 100


@dataclass(slots=True)
class Pending:
    """What the site's directory has not been brought up to yet."""

    directories: set[bytes] = field(default_factory=set)
    objects: set[bytes] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.directories or self.objects)


class SharedState:
    def __init__(self, site: str, store: Store, now_us: Callable[[], int]) -> None:
        self.site = site
        self.store = store
        self._now_us = now_us
        self.tree = store.tree()
        self.peers = store.peers()
        self.clock: clocks.Stamp = store.fact("clock") or 0
        self.number: int = store.fact("number") or 0
        # Sites of the volume: nothing is forgotten before all of them have seen it.
        self.sites: tuple[str, ...] = tuple(store.fact("sites") or (site,))
        self.pending = Pending()
        # Whether more was taken in than that others had seen something. True at first: it may have been before.
        self.has_news = True
        # Objects whose documents may have something to forget.
        self._edited: set[bytes] = set()
        self._loaded: OrderedDict[bytes, mergers.Document] = OrderedDict()
        # What the rules say as far as it was read, and the file they stand in.
        self._rules: volume_rules.InForce | None = None
        self._rules_object: bytes | None = None
        # Object → why it is not merged as its rule wants it.
        self.not_as_ruled: dict[bytes, str] = store.fact("not as ruled") or {}

    # -- saying ----------------------------------------------------------------------------------------------

    @property
    def vector(self) -> Vector:
        found = {site: peer.number for site, peer in self.peers.items() if peer.number}
        return found | ({self.site: self.number} if self.number else {})

    def seen_of(self, entry_id: bytes) -> Vector:
        """What a program of this site can have seen of an entry: edits that are not in the directory yet it cannot."""
        kept = self.store.document(self.tree.entries[entry_id].object)
        unseen = kept.unseen if kept is not None else {}
        return {site: min(number, unseen.get(site, number)) for site, number in self.vector.items()}

    def tick(self) -> clocks.Stamp:
        self.clock = clocks.tick(self.clock, self._now_us())
        return self.clock

    def say(self, op: shared_ops.Op) -> shared_trees.Change:
        """A record of this site: into the tree, the store and the outbox."""
        stamp = self.tick()
        self.number += 1
        record = shared_ops.Record(Dot(self.site, self.number), stamp, op)
        packed = shared_ops.encode(record)
        assert len(packed) <= shared_ops.RECORD_MAX_BYTES, "callers keep updates below the limit"
        self.store.put_outbox(self.number, packed)
        self.store.set_fact("number", self.number)
        self.store.set_fact("clock", self.clock)
        return self._keep(record)

    def say_block(self, digest: bytes, data: bytes) -> None:
        """A piece of a large file, before the edit that refers to it."""
        self.store.blocks.put(digest, data)
        self.number += 1
        self.store.put_outbox_block(self.site, self.number, self.tick(), digest)
        self.store.set_fact("number", self.number)
        self.store.set_fact("clock", self.clock)

    def set_sites(self, sites: Sequence[str]) -> None:
        self.sites = tuple(sorted({*sites, self.site}))
        self.store.set_fact("sites", list(self.sites))

    # -- taking in -------------------------------------------------------------------------------------------

    def take(self, record: shared_ops.Record) -> None:
        """The next record of another site. Raises Corrupt, with nothing changed, for one that cannot be; Refused for
        one from a clock that is too far ahead.
        """
        site = record.dot.site
        peer = self.peers.get(site) or Peer()
        if record.dot.number <= peer.number:
            return
        if record.dot.number != peer.number + 1 or record.stamp <= peer.stamp:
            raise errors.Corrupt(
                f"record {record.dot.number} of {site} does not follow record {peer.number}; nothing after "
                "that was taken",
                reason="record-out-of-order",
                hint=f"look at the replicator of {site}",
                site=site,
            )
        self.clock = clocks.receive(self.clock, record.stamp, self._now_us())
        if isinstance(record.op, shared_ops.Edit):
            self._merge(record.op, record)
        elif isinstance(record.op, shared_ops.Seen):
            peer.seen = shared_ops.merged(peer.seen or {}, record.op.vector)
        elif isinstance(record.op, shared_ops.Resolve):
            self.store.resolve(record.op.conflict, record.op.choice)
        large_files.take(self, record)
        change = self._keep(record)
        if not isinstance(record.op, shared_ops.Seen):
            self.has_news = True
            self.pending.directories |= change.directories
            self.pending.objects |= change.objects
        for entry in change.revived:
            self._note_revived(entry, record)
        peer.number, peer.stamp = record.dot.number, record.stamp
        self.peers[site] = peer
        self.store.put_peer(site, peer)
        self.store.set_fact("clock", self.clock)

    def reached(self, site: str, sequence: int) -> None:
        """Where to go on in the log of another site."""
        peer = self.peers.setdefault(site, Peer())
        peer.sequence = sequence
        self.store.put_peer(site, peer)

    def check_published(self, number: int) -> None:
        """Raises Corrupt when the log of this site ends elsewhere than it can."""
        waiting = self.store.outbox(1)
        first = waiting[0][0] if waiting else self.number + 1
        if first - 1 <= number <= self.number:
            return
        raise errors.Corrupt(
            f"the merge log of {self.site} ends with record {number}, and this site said {first - 1} to "
            f"{self.number}; nothing was published",
            reason="merge-log-rolled-back",
            hint="the broker lost acknowledged records, or this site's state is older than its log",
            published=number,
        )

    def _keep(self, record: shared_ops.Record) -> shared_trees.Change:
        change = self.tree.apply(record)
        op = record.op
        if self._rules_object in change.objects or any(map(self._may_hold_rules, change.entries)):
            self._rules = None
        for entry_id in change.entries:
            self.store.put_entry(entry_id, self.tree.entries[entry_id])
        if isinstance(op, shared_ops.Place):
            claim = shared_trees.Claim(
                record.stamp, record.dot.site, record.dot.number, op.entry, op.parent, op.name
            )
            self.store.put_claim(claim)
            self.store.put_object(op.object, self.tree.objects[op.object])
        elif isinstance(op, shared_ops.Edit | shared_ops.Attributes):
            if isinstance(op, shared_ops.Edit):
                self._edited.add(op.object)
            self.store.put_object(op.object, self.tree.objects[op.object])
        return change

    # -- content ---------------------------------------------------------------------------------------------

    def document(self, object_id: bytes) -> mergers.Document | None:
        loaded = self._loaded.get(object_id)
        if loaded is not None:
            self._loaded.move_to_end(object_id)
            return loaded
        kept = self.store.document(object_id)
        if kept is None:
            return None
        return self.hold(object_id, documents.named(kept.merger).load(kept.state, self.site))

    def hold(self, object_id: bytes, document: mergers.Document) -> mergers.Document:
        self._loaded[object_id] = document
        while len(self._loaded) > LOADED_MAX:
            self._loaded.popitem(last=False)
        return document

    def content(self, object_id: bytes) -> bytes:
        document = self.document(object_id)
        return b"" if document is None else document.content()

    def _merge(self, op: shared_ops.Edit, record: shared_ops.Record) -> None:
        kept = self.store.document(op.object)
        if kept is not None and kept.merger != op.merger:
            kind_changes.take_other(self, op, record, kept)
            return
        known = self.document(op.object)
        document = documents.named(op.merger).new(self.site) if known is None else known
        before = b"" if kinds.parse(op.merger).strategy in ALL_AUTOMATIC else document.content()
        base = b"" if kept is None else (kept.state if kept.base is None else kept.base)
        if kept is None or kept.is_made:
            was, taken = b"" if kept is None else kept.state, []
        else:
            was, taken = kept.before, kept.taken
        try:
            found = self.take_update(document, op, record)
        except errors.DiffKeeperError:
            self._loaded.pop(op.object, None)  # nobody vouches for a document that failed
            if kept is not None and not kept.is_made:
                kept.made = self._made_again(op.merger, was, taken)
            raise
        taken.append(op.update)
        unseen = self.and_unseen(kept, record.dot)
        self.store.put_document(op.object, Document(op.merger, document.state, base, unseen, was, taken))
        self.hold(op.object, document)
        for conflict in found:
            self.note_conflict(op.object, conflict)
            if not conflict.automatic and document.content() != before:
                self.keep_copy(op.object, before, record.stamp)

    def _made_again(self, kind: str, before: bytes, taken: Sequence[bytes]) -> bytes:
        """The state of a document as it was before it failed."""
        merger = documents.named(kind)
        document = merger.load(before, self.site) if before else merger.new(self.site)
        for update in taken:
            if update:
                document.merge(update)
        return document.state()

    @staticmethod
    def and_unseen(kept: Document | None, dot: Dot) -> dict[str, int]:
        """With one more edit that the directory does not show."""
        return {dot.site: dot.number - 1} | (kept.unseen if kept is not None else {})

    def take_update(
        self, document: mergers.Document, op: shared_ops.Edit, record: shared_ops.Record
    ) -> Sequence[mergers.Conflict]:
        if not op.update:
            return ()  # an empty file begins with nothing
        documents.check_writer(document, op.update, record.dot.site, record.stamp)
        return document.merge(op.update)

    def edit(
        self, object_id: bytes, content: bytes, changed: Sequence[tuple[int, int]] | None = None
    ) -> shared_trees.Change | None:
        """What a program left in a file this site's directory has; None when that is nothing new."""
        kept = self.store.document(object_id)
        if kept is None:
            return None
        if kept.base == b"":
            return self._edit_unrelated(object_id, content)
        strategy = self._wanted(object_id, kept, content)
        if strategy is not None:
            said = kind_changes.change(self, object_id, kept, content, strategy)
            if said is not None:
                return said
        try:
            return self._edit(object_id, kept, content, changed)
        except errors.Refused:
            # Its merger cannot hold the content any more: a whole one holds everything there is.
            if kinds.parse(kept.merger).strategy == WHOLE:
                raise
            return kind_changes.change(self, object_id, kept, content, WHOLE)

    def _wanted(self, object_id: bytes, kept: Document, content: bytes) -> str | None:
        """The strategy a rule wants for a file that has another one, once the directory shows all of it."""
        is_large = kinds.parse(kept.merger).strategy == blocks.NAME
        if is_large or isinstance(content, blocks.Manifest):
            return large_files.wanted(is_large, content)
        in_force = self.rules.rules
        path = self.path_of(object_id)
        if kept.base is not None or in_force.wanted(path.decode("utf-8", "surrogateescape")) is None:
            return None
        choice = self._choose(object_id, path, content)
        return None if choice.strategy == kinds.parse(kept.merger).strategy else choice.strategy

    def _edit_unrelated(self, object_id: bytes, content: bytes) -> shared_trees.Change | None:
        """The file is of another kind since, and has not been written out as that: what a program made of the old one
        stands beside it.
        """
        self.pending.objects.add(object_id)
        if content == self.content(object_id):
            return None
        self.keep_copy(object_id, content, self.tick())
        return shared_trees.Change()

    # -- rules -----------------------------------------------------------------------------------------------

    @property
    def rules(self) -> volume_rules.InForce:
        """Those of the merged ``diffkeeper.yaml``."""
        if self._rules is None:
            self._rules_object = volume_rules.file_of(self.tree)
            content = b"" if self._rules_object is None else self.content(self._rules_object)
            self._rules = volume_rules.read(content)
        return self._rules

    def _may_hold_rules(self, entry_id: bytes) -> bool:
        """Not for every file at the top: finding the rules takes a look at all names there."""
        entry = self.tree.entries[entry_id]
        is_named = entry.at is not None and entry.at.name == rules_file.NAME
        return is_named or entry.object == self._rules_object

    def _choose(self, object_id: bytes, path: bytes, content: bytes) -> Choice:
        if isinstance(content, blocks.Manifest):
            choice = self.rules.rules.choose(path.decode("utf-8", "surrogateescape"), content.size, bytes)
        else:
            choice = volume_rules.choose(self.rules.rules, path, content)
        if choice.why is None:
            if self.not_as_ruled.pop(object_id, None) is not None:
                self.store.set_fact("not as ruled", self.not_as_ruled)
        elif self.not_as_ruled.get(object_id) != choice.why and len(self.not_as_ruled) < NOTED_MAX:
            self.not_as_ruled[object_id] = choice.why
            self.store.set_fact("not as ruled", self.not_as_ruled)
        return choice

    def _edit(
        self, object_id: bytes, kept: Document, content: bytes, changed: Sequence[tuple[int, int]] | None
    ) -> shared_trees.Change | None:
        merger = documents.named(kept.merger)
        stamp = self.tick()
        document = self.document(object_id)
        assert document is not None, "it is in the store"
        base = None
        if kept.base is None:
            update = document.edit(content, stamp, self.site, changed)
        else:
            # The directory is behind: the program changed what it saw, not what the document has by now.
            seen = merger.load(kept.base, self.site) if kept.base else merger.new(self.site)
            update = seen.edit(content, stamp, self.site, changed)
            base = seen.state()
            for conflict in document.merge(update) if update else ():
                self.note_conflict(object_id, conflict)
                if not conflict.automatic and document.content() != content:
                    self.keep_copy(object_id, content, stamp)
        if not update:
            return None
        self.store.put_document(object_id, Document(kept.merger, document.state(), base, kept.unseen))
        return self.say(shared_ops.Edit(object_id, kept.merger, update))

    def overwrite(self, object_id: bytes, content: bytes) -> None:
        """What a person decided: written out like what another site did."""
        kept, document = self.store.document(object_id), self.document(object_id)
        assert kept is not None and document is not None, "the caller looked"
        update = document.edit(content, self.tick(), self.site)
        self.store.put_document(object_id, Document(kept.merger, document.state(), kept.base, kept.unseen))
        if update:
            self.show(self.say(shared_ops.Edit(object_id, kept.merger, update)))
        self.pending.objects.add(object_id)

    def first(self, path: bytes, content: bytes) -> tuple[str, bytes]:
        """The merger for a new file, and the update that makes its content of nothing: the same wherever the same
        content is seen first, if the merger is able to.
        """
        if isinstance(content, blocks.Manifest):
            return blocks.NAME, documents.begun(blocks.NAME, content)
        choice = volume_rules.choose(self.rules.rules, path, content)
        return choice.strategy, documents.begun(choice.strategy, content)

    def note_why(self, object_id: bytes, path: bytes, content: bytes) -> None:
        """Keep in mind where the rule for a new file could not be followed."""
        if self.rules.rules.rules:
            self._choose(object_id, path, content)

    def begin(self, object_id: bytes, merger_name: str, update: bytes, *, on_disk: bool) -> None:
        """The document of a new file."""
        merger = documents.named(merger_name)
        document = merger.new(self.site)
        if update:
            document.merge(update)
        base = None if on_disk else b""
        self.store.put_document(object_id, Document(merger_name, document.state(), base))
        self.hold(object_id, document)
        self.say(shared_ops.Edit(object_id, merger_name, update))

    # -- conflicts -------------------------------------------------------------------------------------------

    def path_of(self, object_id: bytes) -> bytes:
        """One path of an object as shown; empty when it has none."""
        found = self.tree.objects.get(object_id)
        for entry_id in sorted(found.entries) if found is not None else ():
            parts: list[bytes] = []
            at: bytes = entry_id
            while at != ROOT:
                claim = self.tree.entries[at].at if at in self.tree.entries else None
                if claim is None:
                    break
                parts.append(claim.name)
                at = claim.parent
            else:
                return b"/".join(reversed(parts))
        return b""

    def note_conflict(self, object_id: bytes, conflict: mergers.Conflict) -> None:
        sides = sorted((conflict.ours, conflict.theirs))
        key = shared_ops.derived_id(object_id, conflict.kind.encode(), *sides)
        self.store.put_conflict(
            key,
            {
                "object": object_id,
                "path": self.path_of(object_id),
                "kind": conflict.kind,
                "ours": conflict.ours[: mergers.CONFLICT_SHOWN_BYTES],
                "theirs": conflict.theirs[: mergers.CONFLICT_SHOWN_BYTES],
                "site": conflict.site,
                "at_us": clocks.to_micros(conflict.stamp),
                "automatic": conflict.automatic,
            },
        )

    def _note_revived(self, entry_id: bytes, record: shared_ops.Record) -> None:
        entry = self.tree.entries[entry_id]
        if entry.kind is trees.Kind.DIR or entry.object == shared_trees.UNKNOWN:
            return
        removed = isinstance(record.op, shared_ops.Remove)
        self.note_conflict(
            entry.object,
            mergers.Conflict(
                "removed-and-edited",
                b"" if not removed else b"edited",
                b"edited" if not removed else b"",
                record.dot.site,
                record.stamp,
                True,
            ),
        )

    def keep_copy(self, object_id: bytes, content: bytes, stamp: clocks.Stamp) -> None:
        """A version that lost, as a file beside the winner. Its ids follow from what it is, so that the sites that
        had it make the same one.
        """
        digest = blake3(content).digest()
        entry_id = _copy_id(object_id, content)
        found = self.tree.objects.get(object_id)
        beside = next((self.tree.entries[key].at for key in sorted(found.entries)), None) if found else None
        if entry_id in self.tree.entries or beside is None:
            return
        place = shared_ops.Place(
            entry_id, entry_id, trees.Kind.FILE, b"", beside.parent, copy_name(beside.name, digest)
        )
        self.show(self.say(place))
        merger, update = self.first(b"", content)
        self.begin(entry_id, merger, update, on_disk=False)
        mode = found.mode if found is not None else 0
        self.show(self.say(shared_ops.Attributes(entry_id, mode or 0o644, stamp // 4096 * 1000)))
        self.pending.objects.add(entry_id)

    def drop_copy(self, object_id: bytes, content: bytes) -> None:
        """Remove the copy of a version, if there is one that nobody has changed."""
        entry_id = _copy_id(object_id, content)
        entry = self.tree.entries.get(entry_id)
        if entry is not None and self.tree.is_shown(entry_id) and self.content(entry.object) == content:
            self.show(self.say(shared_ops.Remove(entry_id, self.seen_of(entry_id))))

    def show(self, change: shared_trees.Change) -> None:
        """What this site said, and has not done to its directory itself."""
        self.pending.directories |= change.directories
        self.pending.objects |= change.objects

    # -- bounds ----------------------------------------------------------------------------------------------

    def seen_by_all(self) -> Vector:
        """The records every site of the volume is known to have."""
        vectors = [self.vector]
        for site in self.sites:
            if site != self.site:
                peer = self.peers.get(site)
                own = {site: peer.number} if peer is not None else {}
                vectors.append(own | ((peer.seen if peer is not None else None) or {}))
        return {name: min(vector.get(name, 0) for vector in vectors) for name in self.vector}

    def compact(self) -> None:
        """Let the documents forget how they came about, where every site has all of it."""
        seen = self.seen_by_all()
        for object_id in list(self._edited):
            found, kept = self.tree.objects.get(object_id), self.store.document(object_id)
            if found is None or kept is None:
                self._edited.discard(object_id)
            elif kept.base is None and shared_ops.covers(seen, found.edited):
                document = self.document(object_id)
                assert document is not None, "it is in the store"
                document.compact()
                self.store.put_document(object_id, Document(kept.merger, document.state(), None))
                self.store.drop_apart(object_id)
                self._edited.discard(object_id)

    def fold(self, standing: Container[bytes] = ()) -> None:
        """Let go of what all sites have seen, but for entries that are still in the directory."""
        heard = [
            peer.stamp
            for site in self.sites
            if site != self.site
            for peer in [self.peers.get(site) or Peer()]
        ]
        if heard:
            folded = self.tree.fold(min(heard))
            self.store.drop_claims(folded)
            for entry_id in {claim.entry for claim in folded}:
                self.store.put_entry(entry_id, self.tree.entries[entry_id])
        objects = {entry.object for entry in self.tree.entries.values() if entry.removed_by}
        for entry_id in self.tree.forget(self.seen_by_all(), standing):
            self.store.drop_entry(entry_id)
        for object_id in objects - self.tree.objects.keys():
            self.store.drop_object(object_id)
            self._loaded.pop(object_id, None)


def _copy_id(object_id: bytes, content: bytes) -> bytes:
    return shared_ops.derived_id(b"copy", object_id, blake3(content).digest())


def copy_name(name: bytes, digest: bytes) -> bytes:
    """``report.pdf`` → ``report.conflict-3f2a91c0.pdf``."""
    stem, dot, ending = name.rpartition(b".")
    if not stem or len(ending) > 16:
        stem, dot, ending = name, b"", b""
    mark = b".conflict-" + digest.hex()[:8].encode()
    return stem[: 255 - len(mark) - len(dot) - len(ending)] + mark + dot + ending


def summary(state: SharedState) -> dict[str, Any]:
    """What a status says of it."""
    return {
        "site": state.site,
        "sites": list(state.sites),
        "records": state.number,
        "taken": {site: peer.number for site, peer in sorted(state.peers.items())},
        "entries": len(state.tree.entries),
        "moves_kept": len(state.tree.log),
        "document_bytes": state.store.document_bytes(),
        "unpublished": state.store.outbox_size(),
        "by_reference": len(state.store.documents_of(blocks.NAME)),
        "rules": state.rules.shown(),
        "not_as_ruled": [
            {"path": state.path_of(key).decode("utf-8", "backslashreplace"), "why": why}
            for key, why in sorted(state.not_as_ruled.items())
            if key in state.tree.objects
        ],
    }
