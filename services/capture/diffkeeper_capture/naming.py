"""Records that make, move, remove or describe names, applied to the shadow in the order of the log.

A call whose two sides the shadow knows is logged as it was. What does not fit becomes a doubt and, unless a
comparison that is newer than the record explains it, a gap. Calls that ran at the same time as another naming
call, and calls older than the last comparison, are logged and also put down to be checked, because their
order against others is not certain.
"""

from __future__ import annotations

from collections.abc import Callable

from diffkeeper.domain import errors
from diffkeeper_capture import rereader
from diffkeeper_capture.describing import Describing
from diffkeeper_capture.doubts import Doubts
from diffkeeper_capture.framer import FrameSink
from diffkeeper_capture.making import Making
from diffkeeper_capture.path_resolver import Lost, PathResolver, Place, base_of
from diffkeeper_capture.placing import Placer
from diffkeeper_capture.records import Flag, PathOp, Record
from diffkeeper_capture.shadow import Shadow, readable

AT_SYMLINK_FOLLOW = 0x400
RENAME_EXCHANGE = 2


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
        read_all: Callable[[int, int], None],
    ) -> None:
        self._shadow = shadow
        self._reader = reader
        self._resolver = resolver
        self._doubts = doubts
        self._sink = sink
        self._is_ours = is_ours
        self._placer = Placer(shadow, reader, resolver, doubts, sink, is_ours)
        self.describing = Describing(shadow, reader, self._placer, doubts, sink)
        self.making = Making(shadow, reader, self._placer, self.describing, doubts, sink, read_all)
        self._truncated_ns = 0  # when the last truncation by path ended
        self._by_op: dict[int, Callable[[Record, bytes, bytes], int | None]] = {
            PathOp.UNLINK: self._removed,
            PathOp.RMDIR: self._removed,
            PathOp.RENAME: self._renamed,
            PathOp.LINK: self._linked,
            PathOp.TRUNCATE: self._truncated,
            **self.making.by_op,
            **self.describing.by_op,
        }

    @property
    def is_inside(self) -> bool:
        """Whether the last record by path named something in the volume."""
        return self._placer.is_inside

    def by_path(self, record: Record, payload: bytes) -> int | None:
        """One PATH record; the id of the file when it was truncated, which is the observer's to log."""
        self._placer.is_inside = False
        path, _, rest = payload.partition(b"\0")
        if record.flags & (Flag.PATH_CUT | Flag.UNREADABLE) and record.offset != PathOp.UTIMES:
            self._unreadable(record, path)
            return None
        handle = self._by_op.get(record.offset)
        if handle is None:
            self._sink.gap("unknown-call", f"a call of kind {record.offset} is not known to this agent")
            return None
        return handle(record, path, rest.rstrip(b"\0"))

    def forget_before(self, end_ns: int) -> None:
        """Of calls that ended up to then nothing is remembered: there may have been a truncation by path."""
        self._truncated_ns = end_ns
        self._placer.forget_before(end_ns)

    # ---- names by path

    def _removed(self, record: Record, path: bytes, _: bytes) -> None:
        place = self._placer.entry(record, path)
        if place is None or self._is_root(place):
            return
        if place.file_id is None:
            # It was missed that it came; now it is gone, so the log is right.
            self._doubts.check(place.parent, place.name)
            return
        is_directory = self._shadow.is_directory(place.file_id)
        if is_directory != (record.offset == PathOp.RMDIR):
            self._placer.contradiction(
                record, place.parent, place.name, "what was removed is of another kind"
            )
            return
        try:
            self._shadow.remove(place.parent, place.name, record.end_ns // 1000)
        except errors.Corrupt:
            self._placer.contradiction(
                record, place.parent, place.name, "a directory was removed that is not empty"
            )
            return
        self._placer.check_if_uncertain(record, (place.parent, place.name))

    def _renamed(self, record: Record, path: bytes, path2: bytes) -> None:
        source = self._placer.entry(record, path)
        target = self._placer.entry(record, path2, which=2)
        exchange = bool(record.extra & RENAME_EXCHANGE)
        if self._is_root(source) or self._is_root(target) or (source is None and target is None):
            return
        if source is None:
            assert target is not None
            self._moved_in(record, target)
        elif target is None:
            self._moved_out(source, record, exchange)
        else:
            self._moved(record, source, target, exchange)

    def _is_root(self, place: Place | None) -> bool:
        """Whether the root itself was moved, removed or replaced: a fault unless it is back already."""
        if place is None or place.parent:
            return False
        self._reader.check_root()
        return True

    def _moved(self, record: Record, source: Place, target: Place, exchange: bool) -> None:
        here, there = (source.parent, source.name), (target.parent, target.name)
        if source.file_id is None:
            self._placer.contradiction(record, *here, "what was renamed is not known")
            self._doubts.entry(*there)
            return
        if source.file_id == target.file_id:
            return  # two names of one file: rename(2) does nothing
        try:
            self._shadow.rename(here, there, record.end_ns // 1000, exchange)
        except errors.Corrupt:
            self._placer.contradiction(record, *here, "a rename that cannot be")
            self._doubts.entry(*there)
            return
        if source.file_id in self._shadow.unmapped:
            self.making.find_inode(source.file_id, *there)
        if exchange and target.file_id in self._shadow.unmapped:
            self.making.find_inode(target.file_id, *here)
        self._placer.check_if_uncertain(record, here, there)
        if self._placer.is_uncertain(record):
            self._doubts.suspects.update((source.file_id, target.file_id or source.file_id))
            if self._truncated_ns >= record.start_ns:
                # The truncation may have come after this, and meant what was moved.
                self._doubts.contents.update((source.file_id, target.file_id or source.file_id))

    def _moved_in(self, record: Record, target: Place) -> None:
        """From outside: read where it is now. Not a gap, for nothing of it was the volume's before. What had
        the name is gone, or outside by an exchange.
        """
        if target.file_id is not None:
            self._shadow.remove_tree(target.parent, target.name, record.end_ns // 1000)
        self._doubts.entry(target.parent, target.name)

    def _moved_out(self, source: Place, record: Record, exchange: bool) -> None:
        if source.file_id is not None:
            self._shadow.remove_tree(source.parent, source.name, record.end_ns // 1000)
        if exchange:
            self._doubts.entry(source.parent, source.name)
        else:
            self._doubts.check(source.parent, source.name)

    def _linked(self, record: Record, path: bytes, path2: bytes) -> None:
        target = self._placer.entry(record, path2, which=2)
        if target is None:
            return
        if record.flags & Flag.FOUND and record.device in (0, self._resolver.device):
            self._linked_by_descriptor(record, target)
            return
        follow = bool(record.extra & AT_SYMLINK_FOLLOW)
        source = self._placer.target(record, path) if follow else self._placer.entry(record, path)
        if source is None or source.file_id is None:
            self._doubts.entry(target.parent, target.name)
            return
        self._link(record, source.file_id, target)

    def _linked_by_descriptor(self, record: Record, target: Place) -> None:
        file_id = self._shadow.by_inode.get(record.inode)
        if file_id is not None and not self._shadow.is_generation(file_id, record.generation):
            self._shadow.unbind(file_id)  # its end was not seen; its names are looked at
            self._doubts.place_of(self._shadow.tree, file_id)
            file_id = None
        if file_id is None:
            self.making.name_given(record, target)
        else:
            self._link(record, file_id, target)

    def _link(self, record: Record, file_id: int, target: Place) -> None:
        entry = target.parent, target.name
        try:
            self._shadow.link(file_id, *entry, record.end_ns // 1000)
        except errors.Corrupt:
            self._placer.contradiction(record, *entry, "a link has a name that is taken")
            return
        self._placer.check_if_uncertain(record, entry)

    def _truncated(self, record: Record, path: bytes, _: bytes) -> int | None:
        base = base_of(record)
        resolved = self._resolver.target(base, path)
        file_id = self._placer.must_be_known(record, self._placer.placed(record, base, path, resolved))
        self._truncated_ns = record.end_ns
        if file_id is not None and not self._shadow.is_file(file_id):
            # Only files can be cut: another one has this name by now.
            self._doubts.place_of(self._shadow.tree, file_id)
            file_id = None
        if isinstance(resolved, Place | Lost) and (
            file_id is None or not self._doubts.is_news(record.end_ns)
        ):
            # It may have been another file: what changed since it was read is read again.
            self._doubts.everything = self._doubts.everywhere_content = True
        elif file_id is not None and self._placer.is_uncertain(record):
            self._doubts.contents |= {file_id, *self._doubts.suspects}
        return file_id

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
