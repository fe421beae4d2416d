"""Files that a merged one has taken the place of, for as long as a program may still write to them.

Who held such a file open goes on with it and knows of nothing; what it writes there is said as an edit of what
the file was made from, so that it is neither lost nor doubled. A file is let go once nobody has it open for
writing, which the kernel tells by granting a read lease.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from dataclasses import dataclass
from typing import Any, BinaryIO

from blake3 import blake3

from diffkeeper.domain import shared_ops, trees
from diffkeeper_replicator.merging import blocks
from diffkeeper_replicator.merging_service import disk_model, documents, kinds, large_files
from diffkeeper_replicator.merging_service.disk_model import Directory, Standing
from diffkeeper_replicator.merging_service.large_files import FILE_MAX_BYTES
from diffkeeper_replicator.merging_service.shared_state import SharedState
from diffkeeper_replicator.merging_service.store import Document

_KEY = "displaced"


@dataclass(slots=True)
class _File:
    object: bytes
    aside: bytes
    digest: bytes
    # The document's state that the file holds.
    base: bytes
    # The entry that was removed with it, if it was not replaced.
    removed: bytes
    # In whose name it is edited; empty: not yet.
    writer: str = ""
    # As what it was merged when it was displaced; empty: not known.
    kind: str = ""
    looked_at: tuple[int, int] = (-1, -1)


class Displaced:
    def __init__(self, state: SharedState, directory: Directory) -> None:
        self._state = state
        self._aside_fd = directory.aside_fd
        self._files: list[_File] = []

    def __len__(self) -> int:
        return len(self._files)

    def add(self, object_id: bytes, aside: bytes, standing: Standing, base: bytes, *, removed: bytes) -> None:
        kept = self._state.store.document(object_id) if object_id else None
        kind = "" if kept is None else kept.merger
        self._files.append(_File(object_id, aside, standing.digest, base, removed, kind=kind))
        self.look()

    def recover(self, directory: Directory) -> None:
        """What an earlier run has left in the directory aside: files that were displaced, by their notes; the rest was
        never shown.
        """
        kept = {fields[1]: _File(*fields) for fields in self._state.store.fact(_KEY) or []}
        self._files = list(kept.values())
        for name in os.listdir(directory.aside_fd):
            if os.fsencode(name) not in kept:
                with contextlib.suppress(IsADirectoryError):
                    os.unlink(name, dir_fd=directory.aside_fd)
        self.look()

    def look(self) -> bool:
        """Say what was written to them since; let go of those nobody has open. Whether anything was said."""
        said = False
        kept: list[_File] = []
        before = len(self._files)
        for file in self._files:
            fd = self._open(file)
            if fd is None:
                continue
            with open(fd, "rb") as opened:
                # Before the reading: who opens it after that finds no name of it.
                is_free = _has_no_writer(fd)
                status = os.fstat(fd)
                at = (status.st_size, status.st_mtime_ns)
                if at != file.looked_at:
                    file.looked_at = at
                    said |= self._compare(file, self._content(file, opened, status.st_size))
            if is_free:
                os.unlink(file.aside, dir_fd=self._aside_fd)
            else:
                kept.append(file)
        self._files = kept
        if kept or before != len(kept):
            self._keep()
        return said

    def _content(self, file: _File, opened: BinaryIO, size: int) -> bytes:
        if size <= FILE_MAX_BYTES:
            return opened.read(FILE_MAX_BYTES)
        return large_files.taken(self._state, opened, file.object, says=True)

    def _open(self, file: _File) -> int | None:
        try:
            return os.open(file.aside, disk_model.READ_FLAGS, dir_fd=self._aside_fd)
        except FileNotFoundError:
            return None

    def _compare(self, file: _File, content: bytes) -> bool:
        digest = blake3(content).digest()
        if digest == file.digest:
            return False
        file.digest = digest
        kept = self._state.store.document(file.object) if file.object else None
        if kept is None:
            return False
        is_large = isinstance(content, blocks.Manifest)
        same_kind = is_large == (kinds.parse(kept.merger).strategy == blocks.NAME)
        if (file.kind or kept.merger) != kept.merger or not file.base or not same_kind:
            # The file is of another kind since: this is no edit in the words of that.
            document = self._state.document(file.object)
            if document is not None and document.content() != content:
                self._state.keep_copy(file.object, content, self._state.tick())
            return True
        merger = documents.named(kept.merger)
        stamp = self._state.tick()
        # A writer of its own: it knows nothing of what the site has written since.
        file.writer = file.writer or f"{self._state.site}{documents.BRANCH}{stamp:x}"
        seen = merger.load(file.base, file.writer) if file.base else merger.new(file.writer)
        update = seen.edit(content, stamp, file.writer)
        file.base = seen.state()
        if not update:
            return False
        document = self._state.document(file.object)
        assert document is not None, "it is in the store"
        before = kept.state if kept.base is None else kept.base
        content_before = document.content()
        for conflict in document.merge(update):
            self._state.note_conflict(file.object, conflict)
            if not conflict.automatic:
                loser = content if document.content() != content else content_before
                self._state.keep_copy(file.object, loser, stamp)
        self._state.store.put_document(
            file.object, Document(kept.merger, document.state(), before, kept.unseen)
        )
        self._state.say(shared_ops.Edit(file.object, kept.merger, update))
        self._state.pending.objects.add(file.object)
        if file.removed in self._state.tree.entries:
            self._bring_back(file)
        return True

    def _bring_back(self, file: _File) -> None:
        """It was removed while a program wrote to it: the edit keeps it."""
        entry = self._state.tree.entries[file.removed]
        if entry.at is not None and not self._state.tree.is_shown(file.removed):
            place = shared_ops.Place(
                file.removed, file.object, trees.Kind.FILE, b"", entry.at.parent, entry.at.name
            )
            self._state.show(self._state.say(place))
        file.removed = b""

    def _keep(self) -> None:
        fields: list[list[Any]] = [
            [file.object, file.aside, file.digest, file.base, file.removed, file.writer, file.kind]
            for file in self._files
        ]
        self._state.store.set_fact(_KEY, fields)


def _has_no_writer(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError:
        return False
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True
