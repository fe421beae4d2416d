"""Records that describe files (mode, owner, times, extended attributes), applied to the shadow."""

from __future__ import annotations

import stat
from collections.abc import Callable

from diffkeeper.domain import frames, limits, trees
from diffkeeper_capture import rereader
from diffkeeper_capture.doubts import Doubts
from diffkeeper_capture.framer import FrameSink
from diffkeeper_capture.placing import Placer
from diffkeeper_capture.records import TIME_KEPT, TIME_NOW, PathOp, Record
from diffkeeper_capture.shadow import Shadow

AT_SYMLINK_NOFOLLOW = 0x100
UNCHANGED_ID = 0xFFFFFFFF
_SET_ID_BITS = stat.S_ISUID | stat.S_ISGID
# Setting this one sets the mode too, and changing the mode changes it.
_ACCESS_LIST = b"system.posix_acl_access"


class Describing:
    """Of one volume."""

    def __init__(
        self, shadow: Shadow, reader: rereader.Rereader, placer: Placer, doubts: Doubts, sink: FrameSink
    ) -> None:
        self._shadow = shadow
        self._reader = reader
        self._placer = placer
        self._doubts = doubts
        self._sink = sink
        self.by_op: dict[int, Callable[[Record, bytes, bytes], None]] = {
            PathOp.CHMOD: self._changed_mode,
            PathOp.CHOWN: self._changed_owner,
            PathOp.UTIMES: self._changed_times,
            PathOp.SETXATTR: self._changed_xattr,
            PathOp.REMOVEXATTR: self._changed_xattr,
        }

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
            if name == _ACCESS_LIST:
                status = self._reader.status_of(file_id)
                self.attributes(file_id, status.st_mode, UNCHANGED_ID, UNCHANGED_ID, at_us)
        except rereader.Elsewhere:
            # A rename or an unlink of it waits in the ring.
            self._doubts.attributes.add((file_id, name))

    def _changed_mode(self, record: Record, path: bytes, _: bytes) -> None:
        file_id = self._described(record, path, None)
        if file_id is not None:
            self.attributes(file_id, record.aux, UNCHANGED_ID, UNCHANGED_ID, record.end_ns // 1000)

    def _changed_owner(self, record: Record, path: bytes, _: bytes) -> None:
        file_id = self._described(record, path, None)
        if file_id is None:
            return
        node = self._shadow.tree.nodes[file_id]
        mode = node.mode
        if mode & _SET_ID_BITS and node.kind is trees.Kind.FILE:
            # chown(2) may clear them; whether it did depends on the caller's rights.
            status = self._placer.status(file_id)
            mode = status.st_mode if status is not None else mode & ~_SET_ID_BITS
        self.attributes(file_id, mode, record.uid, record.gid, record.end_ns // 1000)

    def _changed_times(self, record: Record, path: bytes, _: bytes) -> None:
        file_id = self._described(record, path, b"")
        if file_id is None:
            return
        if TIME_NOW in (record.aux, record.inode2):
            self.times(file_id, record.end_ns // 1000)
        else:
            self.set_times(file_id, record.aux, record.inode2, record.end_ns // 1000)

    def set_times(self, file_id: int, atime_ns: int, mtime_ns: int, at_us: int) -> None:
        """Times as a record has them: unsigned, so before 1970 they are negative."""
        given = {"atime_ns": atime_ns, "mtime_ns": mtime_ns}
        times = {key: _not_before_1970(value) for key, value in given.items() if value != TIME_KEPT}
        self._shadow.change_attributes(file_id, times, at_us)

    def times(self, file_id: int, at_us: int) -> None:
        """Times were set to the present, which no record carries: they are read."""
        self._sink.note_fidelity(frames.Fidelity.PAGE)
        status = self._placer.status(file_id)
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

    def _changed_xattr(self, record: Record, path: bytes, name: bytes) -> None:
        place = self._placer.entry(record, path) if record.extra == 1 else self._placer.target(record, path)
        file_id = self._placer.must_be_known(record, place)
        if file_id is None:
            if place is not None or self._placer.was_lost:
                # Some file that is not known by this name: what changed since it was read is looked at.
                self._doubts.everything = self._doubts.everywhere_content = True
            return
        self._placer.note_described(record, file_id, name)
        self.xattr(file_id, name, record.end_ns // 1000)
        if not self._doubts.is_news(record.end_ns):
            self._doubts.everything = self._doubts.everywhere_content = True
        elif self._placer.is_uncertain(record):
            self._doubts.attributes.update((suspect, name) for suspect in self._doubts.suspects)

    def _described(self, record: Record, path: bytes, name: bytes | None) -> int | None:
        nofollow = record.extra & AT_SYMLINK_NOFOLLOW
        file_id = self._placer.must_be_known(
            record, self._placer.entry(record, path) if nofollow else self._placer.target(record, path)
        )
        if file_id is not None:
            self._placer.note_described(record, file_id, name)
            if name is not None and self._placer.is_uncertain(record):
                self._doubts.attributes.add((file_id, name))
        return file_id


def _not_before_1970(value: int) -> int:
    return value if value < 1 << 63 else 0
