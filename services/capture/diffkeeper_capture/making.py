"""Records that make files, directories and links without content, applied to the shadow.

The kernel side says which inode a call has made, nearly always; where it could not tell, the name is looked up
on disk, where something else may stand by then, so what was found is checked.
"""

from __future__ import annotations

import stat
from collections.abc import Callable

from diffkeeper.domain import frames, limits, trees
from diffkeeper.domain.deltas import is_name
from diffkeeper_capture import rereader
from diffkeeper_capture.describing import Describing
from diffkeeper_capture.doubts import Doubts
from diffkeeper_capture.framer import FrameSink
from diffkeeper_capture.path_resolver import Place
from diffkeeper_capture.placing import Placer
from diffkeeper_capture.records import Flag, PathOp, Record
from diffkeeper_capture.shadow import Shadow, readable


class Making:
    """Of one volume. ``read_all`` logs the content of a file that is new to the log."""

    def __init__(
        self,
        shadow: Shadow,
        reader: rereader.Rereader,
        placer: Placer,
        describing: Describing,
        doubts: Doubts,
        sink: FrameSink,
        read_all: Callable[[int, int], None],
    ) -> None:
        self._shadow = shadow
        self._reader = reader
        self._placer = placer
        self._describing = describing
        self._doubts = doubts
        self._sink = sink
        self._read_all = read_all
        self.by_op: dict[int, Callable[[Record, bytes, bytes], None]] = {
            PathOp.MKDIR: self._made_directory,
            PathOp.SYMLINK: self._made_symlink,
            PathOp.MKNOD: self._made_node,
        }

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
        if live is not None and self._is_seen_already(live, record, record.generation, (parent, name)):
            return
        if existing is not None:
            if live is None:
                self._placer.contradiction(record, parent, name, "a new file has a name that is still taken")
            self._doubts.entry(parent, name)
            return
        file_id = self._shadow.make(
            trees.Kind.FILE, parent, name, record.aux, record.uid, record.gid, record.end_ns // 1000
        )
        self._shadow.bind(file_id, record.inode, record.generation)
        self._placer.check_if_uncertain(record, (parent, name))

    def _is_seen_already(self, live: int, record: Record, generation: int, place: tuple[int, bytes]) -> bool:
        """Whether a comparison has seen this very inode before its record came. If not, its number belonged to
        a file whose end was missed; what the shadow still has of that one is to be compared.
        """
        known = self._shadow.generation_of.get(live, 0)
        if known == generation if known and generation else self._doubts.explain(record.end_ns):
            self._doubts.check(*place)
            return True
        self._placer.contradiction(
            record, *place, "a new file has the inode number of one that is still there"
        )
        self._doubts.place_of(self._shadow.tree, live)
        self._shadow.unbind(live)
        return False

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
        self._placer.doubt_unmapped()
        self._doubts.missed(record.inode, record.end_ns)
        if self._doubts.explain(record.end_ns):
            self._doubts.everything = True

    # ---- by path

    def _made_directory(self, record: Record, path: bytes, _: bytes) -> None:
        self._make(record, self._placer.entry(record, path), trees.Kind.DIR, record.aux)

    def _made_symlink(self, record: Record, path: bytes, path2: bytes) -> None:
        if 0 < len(path) <= limits.SYMLINK_MAX_BYTES:
            self._make(record, self._placer.entry(record, path2, which=2), trees.Kind.SYMLINK, 0o777, path)

    def _made_node(self, record: Record, path: bytes, _: bytes) -> None:
        kind = rereader.kind_of(record.aux if stat.S_IFMT(record.aux) else record.aux | stat.S_IFREG)
        place = self._placer.entry(record, path)
        if place is not None and kind in (trees.Kind.FILE, trees.Kind.FIFO):
            self._make(record, place, kind, record.aux)
        elif place is not None:
            self._sink.gap("special-file", f"{readable(place.name)} is a socket or a device", place.parent)

    def _make(
        self, record: Record, place: Place | None, kind: trees.Kind, asked_mode: int, target: bytes = b""
    ) -> None:
        if place is None:
            return
        if record.flags & Flag.FOUND:
            self._make_found(record, place, kind, target)
            return
        if place.file_id is not None:
            self._placer.contradiction(
                record, place.parent, place.name, "a new entry has a name that is taken"
            )
            return
        parent = self._shadow.tree.nodes[place.parent]
        status = self._placer.look(place.parent, place.name, kind)
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
        self._placer.check_if_uncertain(record, (place.parent, place.name))

    def _make_found(self, record: Record, place: Place, kind: trees.Kind, target: bytes) -> None:
        """A new entry of which the kernel side said everything."""
        if kind is trees.Kind.SYMLINK:
            inode, generation = record.inode, record.generation
        else:
            inode, generation = record.inode2, record.generation2
        entry = place.parent, place.name
        live = self._shadow.by_inode.get(inode)
        if live is not None and self._is_seen_already(live, record, generation, entry):
            return
        if place.file_id is not None:
            self._placer.contradiction(record, *entry, "a new entry has a name that is taken")
            return
        at_us, mode = record.end_ns // 1000, stat.S_IMODE(record.aux)
        file_id = self._shadow.make(kind, *entry, mode, record.uid, record.gid, at_us, target)
        self._shadow.bind(file_id, inode, generation)
        self._placer.check_if_uncertain(record, entry)

    # ---- files that had no name

    def name_given(self, record: Record, place: Place) -> None:
        """A file made without a name (O_TMPFILE) got one: nothing of it is in the log yet, so it is read."""
        status = self._placer.look(place.parent, place.name, trees.Kind.FILE)
        if place.file_id is not None or status is None or status.st_ino != record.inode:
            self._doubts.entry(place.parent, place.name)
            return
        at_us, mode = record.end_ns // 1000, stat.S_IMODE(status.st_mode)
        entry = place.parent, place.name
        file_id = self._shadow.make(trees.Kind.FILE, *entry, mode, status.st_uid, status.st_gid, at_us)
        self._shadow.bind(file_id, record.inode, record.generation)
        self._sink.gap("nameless-file", f"{readable(place.name)} is read now that it has a name", file_id)
        self._read_all(file_id, at_us)
        self._read_xattrs(file_id, place, at_us)
        self._placer.check_if_uncertain(record, entry)

    def _read_xattrs(self, file_id: int, place: Place, at_us: int) -> None:
        try:
            with self._reader.directory(place.parent) as directory:
                there = rereader.list_xattrs(directory, place.name)
        except rereader.Elsewhere:
            self._doubts.entry(place.parent, place.name)
            return
        for name, value in sorted(there.items()):
            self._shadow.change_xattr(file_id, name, value, at_us)

    # ---- inodes learnt from the disk

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
                self.find_inode(before, *place)
                self._doubts.entry(*place)

    def find_inode(self, file_id: int, parent: int, name: bytes) -> None:
        """Learn the number of an id that was not there when it was first looked for."""
        node = self._shadow.tree.nodes[file_id]
        status = self._placer.look(parent, name, node.kind)
        if status is not None and status.st_ino not in self._shadow.by_inode:
            self._shadow.bind(file_id, status.st_ino)
            self._shadow.guessed.add(file_id)
            self._shadow.unverified.discard(file_id)
            self._describing.attributes(file_id, status.st_mode, status.st_uid, status.st_gid, 0)
