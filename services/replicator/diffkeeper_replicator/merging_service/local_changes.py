"""Finds what programs of the site did to its directory, and says it as records of the shared volume.

What was touched is told from outside (the captured log), or everything is looked at; what is true is read from
the directory itself and compared with what the merger left there (``DiskModel``). A file that still moves is
left for a little later, so that nobody elsewhere sees the half of a save.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field

from blake3 import blake3

from diffkeeper.domain import deltas, shared_ops, trees
from diffkeeper.domain.shared_ops import ROOT
from diffkeeper_replicator.merging import blocks
from diffkeeper_replicator.merging_service import disk_model, large_files
from diffkeeper_replicator.merging_service.disk_model import Directory, DiskModel, Standing
from diffkeeper_replicator.merging_service.large_files import FILE_MAX_BYTES
from diffkeeper_replicator.merging_service.shared_state import SharedState
from diffkeeper_replicator.merging_service.written import Written

# A file that changed this short a time ago may be in the middle of being saved.
QUIET_NS = 15_000_000
# One that has just become empty is probably about to be written.
EMPTIED_QUIET_NS = 150_000_000
# The clock of a file system ticks this coarsely: a change in the same tick shows no other time.
TICK_NS = 20_000_000
# A file that was made this short a time before it was moved over another is how editors save.
SAVE_NS = 10_000_000_000
# Large ones are read only when they have been still for longer.
LARGE_QUIET_NS = 1_000_000_000

Spot = tuple[bytes, bytes]  # directory entry, name


@dataclass(slots=True)
class Found:
    spot: Spot
    status: os.stat_result
    identity: trees.Identity
    kind: trees.Kind


@dataclass(slots=True)
class Outcome:
    said: int = 0
    # Paths to be looked at again soon.
    later: set[bytes] = field(default_factory=set)
    # Path → why it is not shared.
    left_out: dict[bytes, str] = field(default_factory=dict)


class LocalChanges:
    def __init__(self, state: SharedState, disk: DiskModel, directory: Directory) -> None:
        self._state = state
        self._disk = disk
        self._directory = directory
        self._now_ns = 0
        self._made_ns: dict[bytes, int] = {}
        # Where programs wrote since a file was last looked at, as far as that is known.
        self.written = Written()

    def scan(self, now_ns: int) -> Outcome:
        """Look at everything."""
        touched: list[Spot] = []
        waiting = [(b"", ROOT)]
        while waiting:
            path, directory = waiting.pop()
            try:
                fd = self._directory.open_directory(path)
            except OSError:
                continue
            try:
                names = {os.fsencode(name) for name in os.listdir(fd)}
            finally:
                os.close(fd)
            known = self._disk.children(directory)
            for name in names | known.keys():
                touched.append((directory, name))
                below = known.get(name)
                if below is not None and self._disk.standing[below].kind == trees.Kind.DIR:
                    waiting.append((path + b"/" + name if path else name, below))
        return self._examine(touched, now_ns)

    def look(self, paths: Iterable[bytes], now_ns: int) -> Outcome:
        """Look at these paths, below the root of the directory."""
        spots = {spot for path in paths if (spot := self._disk.walk(path)) is not None}
        return self._examine(sorted(spots), now_ns)

    def _examine(self, spots: Iterable[Spot], now_ns: int) -> Outcome:
        self._directory.check_there()
        self._now_ns = now_ns
        outcome = Outcome()
        left: dict[bytes, Spot] = {}
        came: list[Found] = []
        same: list[tuple[bytes, Found]] = []
        for spot in spots:
            found = self._look_at(spot)
            known = self._disk.children(spot[0]).get(spot[1])
            if known is not None and found is not None and self._is_same(known, found):
                same.append((known, found))
                continue
            if known is not None:
                left[known] = spot
            if found is not None:
                came.append(found)
        for entry_id, found in same:
            self._compare(entry_id, found, outcome)
        self._arrive(came, left, outcome)
        for entry_id in left:
            self._leave(entry_id, outcome)
        for path in list(self._made_ns):
            if now_ns - self._made_ns[path] > SAVE_NS:
                del self._made_ns[path]
        return outcome

    def _look_at(self, spot: Spot) -> Found | None:
        path = self._disk.path(spot[0])
        if path is None or (spot[0] == ROOT and spot[1] == disk_model.ASIDE_INSIDE):
            return None
        if not deltas.is_name(spot[1]):
            return None
        try:
            fd = self._directory.open_directory(path)
        except OSError:
            return None
        try:
            seen = disk_model.look(fd, spot[1])
        finally:
            os.close(fd)
        return None if seen is None else Found(spot, *seen)

    def _is_same(self, entry_id: bytes, found: Found) -> bool:
        standing = self._disk.standing[entry_id]
        return standing.is_node(found.identity) and standing.kind == found.kind

    def _path(self, spot: Spot) -> bytes:
        above = self._disk.path(spot[0])
        return above + b"/" + spot[1] if above else spot[1]

    # -- what stands where it stood --------------------------------------------------------------------------

    def _compare(self, entry_id: bytes, found: Found, outcome: Outcome) -> None:
        """Content and mode of an entry against what is known of it."""
        standing = self._disk.standing[entry_id]
        entry = self._state.tree.entries[entry_id]
        if found.kind is trees.Kind.FILE and not standing.looks_like(found.status):
            self._compare_content(entry_id, found, outcome)
        mode = disk_model.permissions(found.status.st_mode)
        if found.kind is not trees.Kind.SYMLINK and mode != self._disk.standing[entry_id].mode:
            self._disk.change(entry_id, mode=mode)
            self._say_attributes(entry.object, found)
            outcome.said += 1

    def _compare_content(self, entry_id: bytes, found: Found, outcome: Outcome) -> None:
        standing = self._disk.standing[entry_id]
        path = self._path(found.spot)
        quiet = EMPTIED_QUIET_NS if found.status.st_size == 0 and standing.size else QUIET_NS
        if 0 <= self._now_ns - found.status.st_mtime_ns < quiet:
            outcome.later.add(path)
            return
        object_id = self._state.tree.entries[entry_id].object
        content = self._read(path, found, outcome, object_id)
        if content is None:
            return
        digest = blake3(content).digest()
        changed = self.written.take(path)
        if digest != standing.digest and self._state.edit(object_id, content, changed) is not None:
            outcome.said += 1
            self._say_attributes(object_id, found)
            self._state.pending.objects.add(object_id)
        self._note(entry_id, found, digest)

    def _read(
        self, path: bytes, found: Found, outcome: Outcome, object_id: bytes | None, *, says: bool = True
    ) -> bytes | None:
        """The content, if it did not change meanwhile; of a large file its manifest, with the blocks said that its
        document does not have.
        """
        is_large = found.status.st_size > FILE_MAX_BYTES
        if is_large and 0 <= self._now_ns - found.status.st_mtime_ns < LARGE_QUIET_NS:
            outcome.later.add(path)
            return None
        if found.status.st_size > blocks.FILE_MAX_BYTES:
            outcome.left_out[path] = f"it is larger than {blocks.FILE_MAX_BYTES >> 30} GiB"
            return None
        above = self._disk.path(found.spot[0])
        if above is None:
            return None
        try:
            dir_fd = self._directory.open_directory(above)
            try:
                fd = os.open(found.spot[1], disk_model.READ_FLAGS, dir_fd=dir_fd)
            finally:
                os.close(dir_fd)
            with open(fd, "rb") as file:
                if is_large:
                    content: bytes = large_files.taken(self._state, file, object_id, says=says)
                    size = content.size if isinstance(content, blocks.Manifest) else 0
                else:
                    content = file.read(FILE_MAX_BYTES + 1)
                    size = len(content)
                after = os.fstat(file.fileno())
        except OSError:
            outcome.later.add(path)
            return None
        was = found.status
        if (after.st_ino, after.st_size, after.st_mtime_ns) != (was.st_ino, size, was.st_mtime_ns):
            outcome.later.add(path)
            return None
        return content

    def _note(self, entry_id: bytes, found: Found, digest: bytes = b"") -> None:
        status, (parent, name) = found.status, found.spot
        settled = not 0 <= self._now_ns - status.st_mtime_ns <= TICK_NS
        self._disk.put(
            entry_id,
            Standing(
                parent,
                name,
                int(found.kind),
                found.identity.device,
                found.identity.inode,
                found.identity.generation,
                disk_model.permissions(status.st_mode),
                status.st_size,
                status.st_mtime_ns,
                status.st_ctime_ns if settled else 0,
                digest,
            ),
        )

    def _say_attributes(self, object_id: bytes, found: Found) -> None:
        mode = disk_model.permissions(found.status.st_mode)
        mtime_ns = max(found.status.st_mtime_ns, 0)
        self._state.say(shared_ops.Attributes(object_id, mode, mtime_ns))

    # -- what came -------------------------------------------------------------------------------------------

    def _arrive(self, came: list[Found], left: dict[bytes, Spot], outcome: Outcome) -> None:
        # What moved first: the file that took the name of one that went elsewhere is a new one, not a new content.
        waiting = sorted(came, key=lambda found: self._moved(found, left) is None)
        while waiting:
            found = waiting.pop(0)
            moved = self._moved(found, left)
            over = next((entry for entry, spot in left.items() if spot == found.spot), None)
            if moved is not None:
                if over is not None and self._is_save(moved, over):
                    left[moved] = left.get(moved, found.spot)
                    self._replace(over, found, left, outcome)
                else:
                    left.pop(moved, None)
                    self._move(moved, found, outcome)
            elif over is not None and self._can_replace(over, found):
                self._replace(over, found, left, outcome)
            elif over is None and self._adopt(found, outcome):
                if found.kind is trees.Kind.DIR:
                    waiting += self._inside(found, left)
            elif not self._make(found, outcome):
                if over is not None and found.kind is trees.Kind.FILE:
                    left.pop(over, None)  # it is being saved: look again before anything is said
            elif found.kind is trees.Kind.DIR:
                waiting += self._inside(found, left)

    def _inside(self, found: Found, left: dict[bytes, Spot]) -> list[Found]:
        """What stands in a directory that has just become known."""
        entry_id = self._disk.children(found.spot[0])[found.spot[1]]
        try:
            fd = self._directory.open_directory(self._path(found.spot))
        except OSError:
            return []
        try:
            names = [os.fsencode(name) for name in os.listdir(fd)]
        finally:
            os.close(fd)
        return [inside for name in sorted(names) if (inside := self._look_at((entry_id, name))) is not None]

    def _moved(self, found: Found, left: dict[bytes, Spot]) -> bytes | None:
        """The entry that stood elsewhere and stands here now."""
        for entry_id in self._disk.of_inode(found.identity):
            if self._disk.standing[entry_id].kind != found.kind:
                continue
            if entry_id in left:
                return entry_id
            at = self._disk.standing[entry_id]
            there = self._look_at((at.parent, at.name))
            if there is None or there.identity != found.identity:
                return entry_id
        return None

    def _is_save(self, moved: bytes, over: bytes) -> bool:
        both = (self._disk.standing[moved].kind, self._disk.standing[over].kind)
        return both == (trees.Kind.FILE, trees.Kind.FILE) and moved in self._made_ns

    def _can_replace(self, over: bytes, found: Found) -> bool:
        return self._disk.standing[over].kind == found.kind == trees.Kind.FILE and found.status.st_nlink == 1

    def _replace(self, over: bytes, found: Found, left: dict[bytes, Spot], outcome: Outcome) -> None:
        """Another file took the name: new content of the one that had it."""
        del left[over]
        path = self._path(found.spot)
        if 0 <= self._now_ns - found.status.st_mtime_ns < QUIET_NS:
            outcome.later.add(path)
            left.pop(next(iter(self._disk.of_inode(found.identity)), b""), None)
            return
        self._disk.change(
            over,
            device=found.identity.device,
            inode=found.identity.inode,
            generation=found.identity.generation,
            ctime_ns=0,
        )
        self._compare(over, found, outcome)

    def _move(self, entry_id: bytes, found: Found, outcome: Outcome) -> None:
        entry = self._state.tree.entries[entry_id]
        standing = self._disk.standing[entry_id]
        self._disk.change(entry_id, parent=found.spot[0], name=found.spot[1])
        place = shared_ops.Place(entry_id, entry.object, entry.kind, entry.target, *found.spot)
        self._state.show(self._state.say(place))
        outcome.said += 1
        if standing.kind == trees.Kind.FILE:
            self._compare(entry_id, found, outcome)

    def _adopt(self, found: Found, outcome: Outcome) -> bool:
        """Whether this is just what the volume has under this name anyway: after the directory was copied to another
        disk, or the site's state was lost, or when two sites made the same.
        """
        parent, name = found.spot
        tree = self._state.tree
        if parent != ROOT and parent not in tree.entries:
            return False
        entry_id = tree.children(parent).get(name)
        if (
            entry_id is None
            or entry_id in self._disk.standing
            or tree.entries[entry_id].kind is not found.kind
        ):
            return False
        entry, digest = tree.entries[entry_id], b""
        if found.kind is trees.Kind.SYMLINK and self._target(found) != entry.target:
            return False
        if found.kind is trees.Kind.FILE:
            content = self._read(self._path(found.spot), found, outcome, entry.object, says=False)
            if content is None or self._state.document(entry.object) is None:
                return False
            if content != self._state.content(entry.object):
                return False
            digest = blake3(content).digest()
            self._state.store.written(entry.object)
        self._note(entry_id, found, digest)
        return True

    def _make(self, found: Found, outcome: Outcome) -> bool:
        """A new entry. False: not yet, or not at all."""
        path, (parent, name) = self._path(found.spot), found.spot
        target, update, merger, digest, content = b"", b"", "", b"", None
        others = self._disk.of_inode(found.identity) if found.status.st_nlink > 1 else []
        if found.kind is trees.Kind.FILE and not others:
            if 0 <= self._now_ns - found.status.st_mtime_ns < QUIET_NS:
                outcome.later.add(path)
                return False
            content = self._read(path, found, outcome, None)
            if content is None:
                return False
            digest = blake3(content).digest()
            merger, update = self._state.first(path, content)
        elif found.kind is trees.Kind.SYMLINK:
            target = self._target(found)
            if not target:
                return False
        self.written.take(path)
        entry_id = self._new_id(found, target, merger, update)
        object_id = entry_id
        if others and found.kind is trees.Kind.FILE:
            object_id = self._state.tree.entries[others[0]].object
            digest = self._disk.standing[others[0]].digest
        self._state.show(
            self._state.say(shared_ops.Place(entry_id, object_id, found.kind, target, parent, name))
        )
        if merger:
            self._state.begin(object_id, merger, update, on_disk=True)
            self._state.note_why(object_id, path, content or b"")
        if found.kind is not trees.Kind.SYMLINK and not others:
            self._say_attributes(object_id, found)
        self._note(entry_id, found, digest)
        self._made_ns[entry_id] = self._now_ns
        outcome.said += 1
        return True

    def _new_id(self, found: Found, target: bytes, merger: str, update: bytes) -> bytes:
        """The same at two sites that come upon the same thing under the same name; unless it was known before."""
        kind = str(int(found.kind)).encode()
        parts = (*found.spot, kind, target, merger.encode(), update)
        entry_id = shared_ops.derived_id(b"first", *parts)
        if entry_id in self._state.tree.entries or (
            found.status.st_nlink > 1 and found.kind is trees.Kind.FILE
        ):
            mine = f"{self._state.site}:{self._state.number}".encode()
            entry_id = shared_ops.derived_id(b"own", mine, *found.spot)
        return entry_id

    def _target(self, found: Found) -> bytes:
        above = self._disk.path(found.spot[0])
        try:
            fd = self._directory.open_directory(above or b"")
            try:
                return os.readlink(found.spot[1], dir_fd=fd)
            finally:
                os.close(fd)
        except OSError:
            return b""

    # -- what left -------------------------------------------------------------------------------------------

    def _leave(self, entry_id: bytes, outcome: Outcome) -> None:
        """An entry that is nowhere any more, with all below it."""
        if entry_id not in self._disk.standing:
            return
        for gone in [*self._disk.below(entry_id), entry_id]:
            self._disk.drop(gone)
            self._state.show(self._state.say(shared_ops.Remove(gone, self._state.seen_of(gone))))
            outcome.said += 1
