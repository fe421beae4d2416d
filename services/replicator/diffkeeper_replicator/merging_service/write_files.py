"""The files of a site's directory: made aside, and put in their place in one step."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from blake3 import blake3

from diffkeeper.domain import trees
from diffkeeper_replicator import safe_paths
from diffkeeper_replicator.merging import blocks
from diffkeeper_replicator.merging_service import disk_model
from diffkeeper_replicator.merging_service.disk_model import Standing
from diffkeeper_replicator.merging_service.workplace import (
    MODE_UNKNOWN,
    Round,
    Wanted,
    Workplace,
    fields,
    join,
)

# Files whose replacement is made ready before one commit covers them all.
BATCH_FILES = 128


@dataclass(slots=True)
class Ready:
    """A file made aside, that is to take its place."""

    entry: bytes
    aside: bytes
    standing: Standing
    over: Standing | None


class FileWriter:
    def __init__(self, place: Workplace) -> None:
        self._place = place

    def files(self, arriving: list[Wanted], objects: set[bytes], outcome: Round) -> list[Wanted]:
        """(entry, directory, name) of every file to be written: new ones, and those of changed documents."""
        files = {entry_id: (entry_id, directory, name) for entry_id, directory, name in arriving}
        for object_id in objects:
            found = self._place.state.tree.objects.get(object_id)
            kept = self._place.state.store.document(object_id)
            if found is None or kept is None or kept.base is None:
                continue
            for entry_id in sorted(found.entries & self._place.disk.standing.keys()):
                at = self._place.disk.standing[entry_id]
                files[entry_id] = (entry_id, at.parent, at.name)
        return list(files.values())

    def batch(self, files: list[Wanted]) -> tuple[list[Wanted], list[Wanted]]:
        """Those to be written at once, and the rest: a second name of a file waits for the first, to be its link."""
        batch: list[Wanted] = []
        rest: list[Wanted] = []
        objects: set[bytes] = set()
        for wanted in files:
            object_id = self._place.state.tree.entries[wanted[0]].object
            if len(batch) < BATCH_FILES and object_id not in objects:
                batch.append(wanted)
                objects.add(object_id)
            else:
                rest.append(wanted)
        return batch, rest

    def write_batch(self, batch: list[Wanted], outcome: Round) -> None:
        ready: list[Ready] = []
        for entry_id, directory, name in batch:
            made = self._prepare(entry_id, directory, name, outcome)
            if made is not None:
                ready.append(made)
                self._place.state.store.put_intent(entry_id, [made.aside, *fields(made.standing)])
        self._place.state.store.commit()
        for made in ready:
            if self._take_place(made, outcome):
                self.took_place(made)
                outcome.written += 1
            self._place.state.store.drop_intent(made.entry)
        self._place.state.store.commit()

    def _prepare(self, entry_id: bytes, directory: bytes, name: bytes, outcome: Round) -> Ready | None:
        entry = self._place.state.tree.entries[entry_id]
        over = self._place.disk.standing.get(entry_id)
        if over is not None and not self._place.is_as_left(entry_id, outcome):
            self._place.state.pending.objects.add(entry.object)
            return None
        document = self._place.state.document(entry.object)
        if document is None:
            return None  # its content has not come yet
        content = document.content()
        digest = blake3(content).digest()
        if over is not None and digest == over.digest:
            self._place.state.store.written(entry.object)
            return None
        same = self._same_file(entry_id, digest)
        aside = self._place.new_aside()
        found = self._place.state.tree.objects[entry.object]
        mode = found.mode or (over.mode if over is not None else MODE_UNKNOWN)
        if same is not None:
            fd = self._place.open(same.parent)
            try:
                os.link(
                    same.name,
                    aside,
                    src_dir_fd=fd,
                    dst_dir_fd=self._place.directory.aside_fd,
                    follow_symlinks=False,
                )
            finally:
                os.close(fd)
            file_fd = os.open(aside, disk_model.READ_FLAGS, dir_fd=self._place.directory.aside_fd)
        else:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            file_fd = os.open(aside, flags, 0o600, dir_fd=self._place.directory.aside_fd)
        try:
            if same is None:
                self._write(file_fd, content)
                self._finish(file_fd, mode, found.mtime_ns, over)
            status = os.fstat(file_fd)
            identity = safe_paths.identity(file_fd)
        finally:
            os.close(file_fd)
        standing = Standing(
            directory,
            name,
            int(trees.Kind.FILE),
            identity.device,
            identity.inode,
            identity.generation,
            disk_model.permissions(status.st_mode),
            status.st_size,
            status.st_mtime_ns,
            0,
            digest,
        )
        return Ready(entry_id, aside, standing, over)

    def _same_file(self, entry_id: bytes, digest: bytes) -> Standing | None:
        """Another name of the same object, whose file this one has to be."""
        found = self._place.state.tree.objects[self._place.state.tree.entries[entry_id].object]
        for other in sorted(found.entries - {entry_id}):
            at = self._place.disk.standing.get(other)
            if at is not None and at.digest == digest:
                live = self._place.live(at)
                if live is not None and at.is_node(live[1]):
                    return at
        return None

    def _write(self, fd: int, content: bytes) -> None:
        if isinstance(content, blocks.Manifest):
            for digest in content.digests:
                self._write(fd, self._place.state.store.blocks.get(digest))
            return
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]

    def _finish(self, fd: int, mode: int, mtime_ns: int, over: Standing | None) -> None:
        owner = self._place.owner
        if over is not None:
            live = self._place.live(over)
            owner = (live[0].st_uid, live[0].st_gid) if live is not None else owner
        if self._place.owners:
            os.fchown(fd, *owner)
        os.fchmod(fd, mode & 0o1777)
        if mtime_ns:
            os.utime(fd, ns=(mtime_ns, mtime_ns))
        os.fdatasync(fd)

    def _take_place(self, made: Ready, outcome: Round) -> bool:
        """One step: the name leads to the new file. False: something else came to stand there."""
        standing = made.standing
        path = join(self._place.path(standing.parent), standing.name)
        fd = self._place.open(standing.parent)
        try:
            if made.over is None:
                disk_model.rename_to_free(self._place.directory.aside_fd, made.aside, fd, standing.name)
            else:
                safe_paths.exchange(self._place.directory.aside_fd, made.aside, fd, standing.name)
        except (FileExistsError, FileNotFoundError):
            os.unlink(made.aside, dir_fd=self._place.directory.aside_fd)
            outcome.look.add(path)
            self._place.state.pending.directories.add(standing.parent)
            self._place.state.pending.objects.add(self._place.state.tree.entries[made.entry].object)
            return False
        finally:
            os.close(fd)
        return True

    def took_place(self, made: Ready) -> None:
        """The model after the step, and the file that was displaced."""
        live = self._place.live(made.standing)
        standing = made.standing
        if live is not None:
            found = live[0]
            untouched = (found.st_size, found.st_mtime_ns) == (standing.size, standing.mtime_ns)
            if untouched:
                standing = replace(standing, ctime_ns=found.st_ctime_ns)
        object_id = self._place.state.tree.entries[made.entry].object
        base = self._place.base_of(object_id)
        self._place.disk.put(made.entry, standing)
        if all(
            self._place.disk.standing[other].digest == standing.digest
            for other in self._place.state.tree.objects[object_id].entries
            if other in self._place.disk.standing
        ):
            self._place.state.store.written(object_id)
        if made.over is not None:
            self._place.displaced.add(object_id, made.aside, made.over, base, removed=b"")
