"""Records that make, move, remove or describe names, applied to the shadow in the order of the log.

A call whose two sides the shadow knows is logged as it was. What does not fit becomes a doubt and, unless a
comparison that is newer than the record explains it, a gap. Calls that ran at the same time as another naming
call, and calls older than the last comparison, are logged and also put down to be checked, because their
order against others is not certain.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from diffkeeper.domain import errors, frames, limits, trees
from diffkeeper.domain.deltas import is_name
from diffkeeper_capture import rereader
from diffkeeper_capture.doubts import Doubts
from diffkeeper_capture.framer import FrameSink
from diffkeeper_capture.path_resolver import Base, Lost, PathResolver, Place, Resolved, base_of
from diffkeeper_capture.records import Flag, PathOp, Record
from diffkeeper_capture.shadow import Shadow, readable

AT_SYMLINK_NOFOLLOW = 0x100
AT_SYMLINK_FOLLOW = 0x400
RENAME_EXCHANGE = 2
UNCHANGED_ID = 0xFFFFFFFF

_SET_ID_BITS = stat.S_ISUID | stat.S_ISGID


class Naming:
    """Of one volume. ``is_ours`` tells whether a process is known to write to it."""

    def __init__(
        self,
        shadow: Shadow,
        reader: rereader.Rereader,
        resolver: PathResolver,
        doubts: Doubts,
        sink: FrameSink,
        is_ours: Callable[[int], bool],
    ) -> None:
        self._shadow = shadow
        self._reader = reader
        self._resolver = resolver
        self._doubts = doubts
        self._sink = sink
        self._is_ours = is_ours
        self._truncated_ns = 0  # when the last truncation by path ended
        self._by_op: dict[int, Callable[[Record, bytes, bytes], int | None]] = {
            PathOp.UNLINK: self._removed,
            PathOp.RMDIR: self._removed,
            PathOp.RENAME: self._renamed,
            PathOp.MKDIR: self._made_directory,
            PathOp.LINK: self._linked,
            PathOp.SYMLINK: self._made_symlink,
            PathOp.MKNOD: self._made_node,
            PathOp.CHMOD: self._changed_mode,
            PathOp.CHOWN: self._changed_owner,
            PathOp.UTIMES: self._changed_times,
            PathOp.TRUNCATE: self._truncated,
            PathOp.SETXATTR: self._changed_xattr,
            PathOp.REMOVEXATTR: self._changed_xattr,
        }

    def by_path(self, record: Record, payload: bytes) -> int | None:
        """One PATH record; the id of the file when it was truncated, which is the observer's to log."""
        path, _, rest = payload.partition(b"\0")
        if record.flags & (Flag.PATH_CUT | Flag.UNREADABLE) and record.offset != PathOp.UTIMES:
            self._unreadable(record, path)
            return None
        handle = self._by_op.get(record.offset)
        if handle is None:
            self._sink.gap("unknown-call", f"a call of kind {record.offset} is not known to this agent")
            return None
        return handle(record, path, rest.rstrip(b"\0"))

    # ---- new files

    def created(self, record: Record, name: bytes) -> None:
        """An OPEN that made a file."""
        parent = self._shadow.by_inode.get(record.inode2)
        if parent is None:
            parent = self._deduce_directory(record)
        live = self._shadow.by_inode.get(record.inode)
        if parent is None or not self._shadow.is_directory(parent) or not is_name(name):
            if live is None:
                self._unknown_directory(record)
            return
        existing = self._shadow.tree.child(parent, name)
        if live is not None:
            if self._is_same_file(live, record):
                self._doubts.check(parent, name)
                return
            # The number belonged to a file whose end was missed; what the shadow still has of that one is to
            # be compared.
            self._contradiction(
                record, parent, name, "a new file has the inode number of one that is still there"
            )
            self._doubts.place_of(self._shadow.tree, live)
            self._shadow.unbind(live)
        if existing is not None:
            if live is None:
                self._contradiction(record, parent, name, "a new file has a name that is still taken")
            self._doubts.entry(parent, name)
            return
        file_id = self._shadow.make(
            trees.Kind.FILE, parent, name, record.aux, record.uid, record.gid, record.end_ns // 1000
        )
        self._shadow.bind(file_id, record.inode, record.generation)
        self._check_if_uncertain(record, (parent, name))

    def _is_same_file(self, live: int, record: Record) -> bool:
        """Whether a comparison has seen this very file before its record came."""
        generation = self._shadow.generation_of.get(live, 0)
        if generation and record.generation:
            return generation == record.generation
        return self._doubts.explain(record.end_ns)

    def _deduce_directory(self, record: Record) -> int | None:
        """The one directory of the volume whose inode number is not known yet: made, and moved before it was
        looked at.

        With several of them nothing can be said, and the disk has to be asked once the ring is empty.
        """
        candidates = [file_id for file_id in self._shadow.unmapped if self._shadow.is_directory(file_id)]
        if not self._doubts.is_news(record.end_ns) or len(candidates) != 1:
            return None
        (directory,) = candidates
        self._shadow.bind(directory, record.inode2, record.generation2)
        self._shadow.guessed.add(directory)
        for place in self._shadow.tree.nodes[directory].entries:
            self._doubts.check(*place)
        return directory

    def _unknown_directory(self, record: Record) -> None:
        self._doubt_unmapped()
        self._doubts.missed(record.inode, record.end_ns)
        if self._doubts.explain(record.end_ns):
            self._doubts.everything = True

    def forget_before(self, end_ns: int) -> None:
        """There may have been a truncation by path up to then."""
        self._truncated_ns = end_ns

    # ---- names by path

    def _removed(self, record: Record, path: bytes, _: bytes) -> None:
        place = self._entry(record, path)
        if place is None:
            return
        if place.file_id is None:
            # It was missed that it came; now it is gone, so the log is right.
            self._doubts.check(place.parent, place.name)
            return
        is_directory = self._shadow.is_directory(place.file_id)
        if is_directory != (record.offset == PathOp.RMDIR):
            self._contradiction(record, place.parent, place.name, "what was removed is of another kind")
            return
        try:
            self._shadow.remove(place.parent, place.name, record.end_ns // 1000)
        except errors.Corrupt:
            self._contradiction(record, place.parent, place.name, "a directory was removed that is not empty")
            return
        self._check_if_uncertain(record, (place.parent, place.name))

    def _renamed(self, record: Record, path: bytes, path2: bytes) -> None:
        source = self._entry(record, path)
        target = self._entry(record, path2, which=2)
        exchange = bool(record.extra & RENAME_EXCHANGE)
        if source is None and target is None:
            return
        if source is None:
            assert target is not None
            self._moved_in(target)
        elif target is None:
            self._moved_out(source, record, exchange)
        else:
            self._moved(record, source, target, exchange)

    def _moved(self, record: Record, source: Place, target: Place, exchange: bool) -> None:
        here, there = (source.parent, source.name), (target.parent, target.name)
        if source.file_id is None:
            self._contradiction(record, *here, "what was renamed is not known")
            self._doubts.entry(*there)
            return
        if source.file_id == target.file_id:
            return  # two names of one file: rename(2) does nothing
        try:
            self._shadow.rename(here, there, record.end_ns // 1000, exchange)
        except errors.Corrupt:
            self._contradiction(record, *here, "a rename that cannot be")
            self._doubts.entry(*there)
            return
        if source.file_id in self._shadow.unmapped:
            self._find_inode(source.file_id, *there)
        if exchange and target.file_id in self._shadow.unmapped:
            self._find_inode(target.file_id, *here)
        self._check_if_uncertain(record, here, there)
        if self._is_uncertain(record):
            self._doubts.suspects.update((source.file_id, target.file_id or source.file_id))
            if self._truncated_ns >= record.start_ns:
                # The truncation may have come after this, and meant what was moved.
                self._doubts.contents.update((source.file_id, target.file_id or source.file_id))

    def _moved_in(self, target: Place) -> None:
        """From outside: read where it is now. Not a gap, for nothing of it was the volume's before."""
        self._doubts.entry(target.parent, target.name)

    def _moved_out(self, source: Place, record: Record, exchange: bool) -> None:
        if source.file_id is not None:
            self._shadow.remove_tree(source.parent, source.name, record.end_ns // 1000)
        if exchange:
            self._doubts.entry(source.parent, source.name)
        else:
            self._doubts.check(source.parent, source.name)

    def _linked(self, record: Record, path: bytes, path2: bytes) -> None:
        target = self._entry(record, path2, which=2)
        if target is None:
            return
        follow = bool(record.extra & AT_SYMLINK_FOLLOW)
        source = self._target(record, path) if follow else self._entry(record, path)
        if source is None or source.file_id is None:
            self._moved_in(target)  # such as O_TMPFILE, given a name through /proc/self/fd
            return
        try:
            self._shadow.link(source.file_id, target.parent, target.name, record.end_ns // 1000)
        except errors.Corrupt:
            self._contradiction(record, target.parent, target.name, "a link has a name that is taken")
            return
        self._check_if_uncertain(record, (target.parent, target.name))

    def _made_directory(self, record: Record, path: bytes, _: bytes) -> None:
        self._make(record, self._entry(record, path), trees.Kind.DIR, record.aux)

    def _made_symlink(self, record: Record, path: bytes, path2: bytes) -> None:
        if 0 < len(path) <= limits.SYMLINK_MAX_BYTES:
            self._make(record, self._entry(record, path2, which=2), trees.Kind.SYMLINK, 0o777, path)

    def _made_node(self, record: Record, path: bytes, _: bytes) -> None:
        kind = rereader.kind_of(record.aux if stat.S_IFMT(record.aux) else record.aux | stat.S_IFREG)
        place = self._entry(record, path)
        if place is not None and kind in (trees.Kind.FILE, trees.Kind.FIFO):
            self._make(record, place, kind, record.aux)
        elif place is not None:
            self._sink.gap("special-file", f"{readable(place.name)} is a socket or a device", place.parent)

    def _make(
        self, record: Record, place: Place | None, kind: trees.Kind, asked_mode: int, target: bytes = b""
    ) -> None:
        """A new entry whose inode number and owner only the disk knows."""
        if place is None:
            return
        if place.file_id is not None:
            self._contradiction(record, place.parent, place.name, "a new entry has a name that is taken")
            return
        parent = self._shadow.tree.nodes[place.parent]
        status = self._look(place.parent, place.name, kind)
        if status is not None:
            mode, uid, gid = stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid
        else:
            mode, uid, gid = asked_mode, parent.uid, parent.gid
            self._sink.note_fidelity(frames.Fidelity.PAGE)
        at_us = record.end_ns // 1000
        file_id = self._shadow.make(kind, place.parent, place.name, mode, uid, gid, at_us, target)
        if status is not None:
            self._take_inode(file_id, status.st_ino)
        else:
            self._shadow.unverified.add(file_id)
        self._check_if_uncertain(record, (place.parent, place.name))

    # ---- attributes

    def attributes(self, file_id: int, mode: int, uid: int, gid: int, at_us: int) -> None:
        """Mode and owner as they are after a call."""
        node = self._shadow.tree.nodes[file_id]
        changes: dict[str, int] = {}
        if node.mode != stat.S_IMODE(mode):
            changes["mode"] = stat.S_IMODE(mode)
        if uid not in (node.uid, UNCHANGED_ID):
            changes["uid"] = uid
        if gid not in (node.gid, UNCHANGED_ID):
            changes["gid"] = gid
        self._shadow.change_attributes(file_id, changes, at_us)

    def xattr(self, file_id: int, name: bytes, at_us: int) -> None:
        """An extended attribute changed: its value is read, for no record carries it."""
        if not 0 < len(name) <= limits.XATTR_NAME_MAX_BYTES:
            return
        self._sink.note_fidelity(frames.Fidelity.PAGE)
        try:
            self._shadow.change_xattr(file_id, name, self._reader.xattr(file_id, name), at_us)
        except rereader.Elsewhere:
            # A rename or an unlink of it waits in the ring.
            self._doubts.attributes.add((file_id, name))

    def _changed_mode(self, record: Record, path: bytes, _: bytes) -> None:
        file_id = self._described(record, path)
        if file_id is not None:
            self.attributes(file_id, record.aux, UNCHANGED_ID, UNCHANGED_ID, record.end_ns // 1000)

    def _changed_owner(self, record: Record, path: bytes, _: bytes) -> None:
        file_id = self._described(record, path)
        if file_id is None:
            return
        node = self._shadow.tree.nodes[file_id]
        mode = node.mode
        if mode & _SET_ID_BITS and node.kind is trees.Kind.FILE:
            # chown(2) may clear them; whether it did depends on the caller's rights.
            status = self._status(file_id)
            mode = status.st_mode if status is not None else mode & ~_SET_ID_BITS
        self.attributes(file_id, mode, record.uid, record.gid, record.end_ns // 1000)

    def _changed_times(self, record: Record, path: bytes, _: bytes) -> None:
        file_id = self._described(record, path)
        if file_id is None:
            return
        self.times(file_id, record.end_ns // 1000)

    def times(self, file_id: int, at_us: int) -> None:
        """Times were set: they are read, for no record carries them."""
        self._sink.note_fidelity(frames.Fidelity.PAGE)
        status = self._status(file_id)
        if status is None:
            self._doubts.attributes.add((file_id, b""))
            return
        times = {"atime_ns": max(0, status.st_atime_ns), "mtime_ns": max(0, status.st_mtime_ns)}
        self._shadow.change_attributes(file_id, times, at_us)

    def read_again(self, attributes: set[tuple[int, bytes]], at_us: int) -> None:
        """What could not be read when it changed; what still cannot stays in doubt."""
        for file_id, name in sorted(attributes):
            if file_id not in self._shadow.tree.nodes:
                continue
            if name:
                self.xattr(file_id, name, at_us)
            else:
                self.times(file_id, at_us)
            if (file_id, name) in self._doubts.attributes:
                self._doubts.place_of(self._shadow.tree, file_id)

    def _truncated(self, record: Record, path: bytes, _: bytes) -> int | None:
        base = base_of(record)
        resolved = self._resolver.target(base, path)
        file_id = self._must_be_known(record, self._placed(record, base, path, resolved))
        self._truncated_ns = record.end_ns
        if isinstance(resolved, Place | Lost) and (
            file_id is None or not self._doubts.is_news(record.end_ns)
        ):
            # It may have been another file: what changed since it was read is read again.
            self._doubts.everything = self._doubts.everywhere_content = True
        elif file_id is not None and self._is_uncertain(record):
            self._doubts.contents |= {file_id, *self._doubts.suspects}
        return file_id

    def _changed_xattr(self, record: Record, path: bytes, name: bytes) -> None:
        place = self._entry(record, path) if record.extra == 1 else self._target(record, path)
        file_id = self._must_be_known(record, place)
        if file_id is None:
            return
        self.xattr(file_id, name, record.end_ns // 1000)
        if not self._doubts.is_news(record.end_ns):
            self._doubts.everything = self._doubts.everywhere_content = True
        elif self._is_uncertain(record):
            self._doubts.attributes.update((suspect, name) for suspect in self._doubts.suspects)

    def _described(self, record: Record, path: bytes) -> int | None:
        nofollow = record.extra & AT_SYMLINK_NOFOLLOW
        return self._must_be_known(
            record, self._entry(record, path) if nofollow else self._target(record, path)
        )

    def _must_be_known(self, record: Record, place: Place | None) -> int | None:
        if place is None:
            return None
        if place.file_id is None:
            self._contradiction(record, place.parent, place.name, "what was changed is not known")
        elif place.parent:
            self._check_if_uncertain(record, (place.parent, place.name))
        # By a name that may have been another's: then all have to be looked at.
        self._doubts.everything |= not self._doubts.is_news(record.end_ns)
        return place.file_id

    # ---- resolving, looking

    def _entry(self, record: Record, path: bytes, which: int = 1) -> Place | None:
        base = base_of(record, which)
        return self._placed(record, base, path, self._resolver.entry(base, path))

    def _target(self, record: Record, path: bytes) -> Place | None:
        base = base_of(record)
        return self._placed(record, base, path, self._resolver.target(base, path))

    def _placed(self, record: Record, base: Base, path: bytes, resolved: Resolved) -> Place | None:
        """None for what is outside; what leads to nothing known is doubted."""
        if isinstance(resolved, Place):
            return resolved
        if isinstance(resolved, Lost):
            self._contradiction(
                record, resolved.directory, resolved.name, "a path leads to what is not known"
            )
        elif self._may_be_ours(base, path):
            self._doubt_unmapped()
        return None

    def _may_be_ours(self, base: Base, path: bytes) -> bool:
        """Whether a path is relative to what may be one of our directories whose number is not known yet."""
        is_here = base.device in (0, self._resolver.device) and base.inode not in self._shadow.by_inode
        return is_here and not path.startswith(b"/")

    def _doubt_unmapped(self) -> None:
        for file_id in self._shadow.unmapped:
            if self._shadow.is_directory(file_id):
                self._doubts.place_of(self._shadow.tree, file_id)

    def _unreadable(self, record: Record, path: bytes) -> None:
        """A path that the record does not hold whole. Whoever is not known to write here is believed to be
        elsewhere.
        """
        inside = record.inode in self._shadow.by_inode or record.inode2 in self._shadow.by_inode
        if (
            inside
            or self._is_ours(record.tgid)
            or isinstance(self._resolver.entry(base_of(record), path), Place)
        ):
            self._sink.gap(
                "path-not-recorded", f"{PathOp(record.offset).name.lower()} {readable(path[:200])}"
            )
            self._doubts.everything = True

    def _look(self, parent: int, name: bytes, kind: trees.Kind) -> os.stat_result | None:
        try:
            status = self._reader.look(parent, name)
        except rereader.Elsewhere:
            return None
        return status if status is not None and rereader.kind_of(status.st_mode) is kind else None

    def _status(self, file_id: int) -> os.stat_result | None:
        try:
            return self._reader.status_of(file_id)
        except rereader.Elsewhere:
            return None

    def _take_inode(self, file_id: int, inode: int) -> None:
        """Bind a new id to the number found under its name, unless names moved between the call and the
        look.
        """
        before = self._shadow.by_inode.get(inode)
        if before is not None and before not in self._shadow.guessed:
            return  # what stands there now is something else; this id is found when its own record comes
        self._shadow.bind(file_id, inode)
        self._shadow.guessed.add(file_id)
        if before is not None:
            for place in sorted(self._shadow.tree.nodes[before].entries):
                self._find_inode(before, *place)
                self._doubts.entry(*place)

    def _find_inode(self, file_id: int, parent: int, name: bytes) -> None:
        """Learn the number of an id that was not there when it was first looked for."""
        node = self._shadow.tree.nodes[file_id]
        status = self._look(parent, name, node.kind)
        if status is not None and status.st_ino not in self._shadow.by_inode:
            self._shadow.bind(file_id, status.st_ino)
            self._shadow.guessed.add(file_id)
            self._shadow.unverified.discard(file_id)
            self.attributes(file_id, status.st_mode, status.st_uid, status.st_gid, 0)

    # ---- doubts

    def _contradiction(self, record: Record, parent: int, name: bytes, why: str) -> None:
        if self._doubts.is_news(record.end_ns) and not record.flags & Flag.OVERLAPPED_NAMES:
            self._sink.gap(
                "contradiction", f"{why}: {readable(name)} in {self._shadow.readable_path(parent)}", parent
            )
        self._doubts.entry(parent, name)

    def _check_if_uncertain(self, record: Record, *places: tuple[int, bytes]) -> None:
        if self._is_uncertain(record):
            for place in places:
                self._doubts.check(*place)

    def _is_uncertain(self, record: Record) -> bool:
        """Whether names may have been others when the call was made than the shadow has them now."""
        return bool(record.flags & Flag.OVERLAPPED_NAMES) or not self._doubts.is_news(record.end_ns)
