"""From records to deltas: what one program did to one volume, in the order in which its calls returned.

The observer is fed every record of the ring and keeps the shadow: the volume as the log has it so far. It
never looks at the disk to learn what happened, only to learn what a record could not carry (bytes of
``sendfile``, an inode number of a new directory), and then what it reads may be later than the record: such
frames are ``page`` instead of ``exact``, and the later records, which write the same bytes again, make the
end result right.

What contradicts the shadow, or names what the shadow does not have, is not guessed at. It becomes a *doubt*:
the call is not logged, frames are ``scan`` from here on, and ``settle`` compares the doubtful entries with
the disk once the ring is empty. A doubt that no earlier comparison explains is also a GAP in the log. Until
everything is settled ``before_barrier`` does not say yes.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from pathlib import Path

from diffkeeper.domain import deltas, frames, limits, positions, trees
from diffkeeper.domain.deltas import ROOT_ID, Delta, Op
from diffkeeper_capture import allocations, rereader, write_lanes
from diffkeeper_capture.contents import RACY_NS, Contents, Fingerprint, Known, fingerprint
from diffkeeper_capture.doubts import Doubts
from diffkeeper_capture.framer import FrameSink
from diffkeeper_capture.mapped_files import MappedFiles
from diffkeeper_capture.naming import Naming
from diffkeeper_capture.overlaps import Overlaps
from diffkeeper_capture.page_digests import Digests
from diffkeeper_capture.path_resolver import PathResolver
from diffkeeper_capture.records import NO_VOLUME, Flag, Kind, Mapping, Record
from diffkeeper_capture.scanner import Depth, Progress, Scanner
from diffkeeper_capture.settling import SETTLE_BUDGET_BYTES, Settler
from diffkeeper_capture.shadow import Shadow
from diffkeeper_capture.system_calls import PLAIN_WRITES, call_name, sets_times
from diffkeeper_capture.unseen import Unseen
from diffkeeper_capture.working_tree import WorkingTree

# Of a WRITE: nothing to think about without these. Plain integers: an enum's ``&`` costs as much as all the
# rest.
_CAREFUL = int(Flag.UNREADABLE | Flag.OVERLAPPED | Flag.UNLINKED)
# Inodes that lost their last name lately: a write that was in flight then is no surprise.
GONE_REMEMBERED = 4096
_WRITE = int(Kind.WRITE)
_ALL = (1 << 63) - 1


class Observer:
    """One volume. Not safe for threads; one owner, who drains the probe into ``observe`` and calls ``settle``
    after it.
    """

    def __init__(
        self,
        root: Path,
        sink: FrameSink,
        *,
        state: trees.TreeState | None = None,
        tree: WorkingTree | None = None,
        sole_source: bool = False,
    ) -> None:
        """``state``, or the ``tree`` of somebody who keeps it in a file, is believed as it is; without either, or with
        an empty one, ``scan_base`` must follow. ``sole_source``: no records will come.
        """
        self.shadow = Shadow(sink, state.tree if state is not None else tree)
        self.reader = rereader.Rereader(root, self.shadow)
        self.contents = Contents(self.shadow, sole_source=sole_source)
        self.scanner = Scanner(self.shadow, self.reader, self.contents)
        self.doubts = Doubts()
        self.unseen = Unseen(self.shadow, self.doubts, sink, self._compare_always)
        # Called with a process that was stopped until its synchronous write has a receipt.
        self.on_held: Callable[[int], None] | None = None
        self._sink = sink
        self._overlaps = Overlaps()
        self._resolver = PathResolver(self.shadow, root, self.reader.status_of(ROOT_ID))
        self._naming = Naming(
            self.shadow,
            self.reader,
            self._resolver,
            self.doubts,
            sink,
            self.unseen.writers.__contains__,
            self._reread_all,
        )
        self._settler = Settler(
            self.shadow,
            self.scanner,
            self.contents,
            self.doubts,
            self._naming.describing,
            sink,
            self.remember_gone,
            self._think_again,
        )
        self._gone: OrderedDict[int, int] = OrderedDict()
        # Takes the writes that need no thought; None where everything goes the long way.
        self._lane: write_lanes.Lane | None = None
        self.shadow.on_forget.append(self._note_gone)
        self.now_end_ns = 0
        self.shadow.bind(ROOT_ID, self.reader.inode)
        with self.reader.directory(ROOT_ID) as fd:
            self.mapped = MappedFiles(self.shadow, self.reader, fd, self._think_again)
        if sole_source:
            self._settler.lower_floor()
        else:
            self.scanner.on_arrival = self._arrived
        if state is not None:
            self._adopt(state)
        if tree is not None:
            tree.device = self.reader.device
            self._adopt_prints(tree.fingerprints)
        # The hot path's own names for things.
        self._by_inode = self.shadow.by_inode
        self._add_write = sink.add_write
        self._touched = self.contents.touched
        self._generations = self.shadow.generation_of
        self._writers = self.unseen.writers
        self._dirty_ids = self.mapped.dirty.pages
        self._compared_ids = self.mapped.compared.known
        self._slow: dict[int, Callable[[Record, memoryview], None]] = {
            Kind.WRITE: self._on_write,
            Kind.REREAD: self._on_reread,
            Kind.OPEN: self._on_open,
            Kind.SIZE: self._on_size,
            Kind.PATH: self._on_path,
            Kind.ATTR: self._on_attr,
            Kind.XATTR: self._on_xattr,
            Kind.MAPPED: self._on_mapped,
            Kind.UNSEEN: self._on_unseen,
            Kind.SYNC: self._on_sync,
            Kind.DIRTIED: self._on_dirtied,
            Kind.ALLOCATED: self._on_allocated,
            Kind.HELD: self._on_held,
        }

    @property
    def writers(self) -> set[int]:
        return self.unseen.writers

    @property
    def unseen_writers(self) -> set[int]:
        return self.unseen.unseen_writers

    @property
    def unseen_elsewhere(self) -> set[int]:
        return self.unseen.elsewhere

    @property
    def is_floored(self) -> bool:
        """Whether frames are ``scan`` at best for the time being."""
        return self._settler.is_floored

    # ---- the records

    def observe(self, record: Record, payload: memoryview) -> None:
        """Take one record. The view is not kept. Fields are taken by index: names cost a third more on this
        path.
        """
        if record[0] == _WRITE and not record[1] & _CAREFUL:
            file_id = self._by_inode.get(record[7])
            if (
                file_id is not None
                and record[5] in self._writers
                and (not record[8] or self._generations.get(file_id) == record[8])
                and file_id not in self._dirty_ids
                and file_id not in self._compared_ids
                and not self._settler.is_floored
                and record[11] <= limits.DELTA_MAX_DATA_BYTES
            ):
                self._add_write(file_id, record[10], payload, record[3] // 1000)
                self._touched.add(file_id)
                self._overlaps.note(record)
                if self._lane is not None:
                    self._lane.learn(record[7], record[8], record[5], file_id)
                return
        self.now_end_ns = record.end_ns
        self._slow[record.kind](record, payload)

    def use_lane(self, lane: write_lanes.Lane) -> None:
        """Plain writes may go through ``lane`` from now on."""
        self._lane = lane
        self._overlaps.use_lane(lane)
        self.shadow.on_unbind.append(lane.forget)

    def _think_again(self) -> None:
        """What was a plain write may be none now."""
        if self._lane is not None:
            self._lane.forget()

    def _on_write(self, record: Record, payload: memoryview) -> None:
        self.unseen.note_writer(record.tgid)
        if record.flags & Flag.UNLINKED:
            return
        file_id = self._file_of(record)
        if file_id is None:
            return
        self.contents.touch(file_id)
        at_us = record.end_ns // 1000
        if record.flags & Flag.UNREADABLE:
            self._reread(file_id, record.offset, record.length, at_us)
        else:
            self._write(file_id, record.offset, payload, at_us)
            self.mapped.forget_range(file_id, record.offset, record.length)
        self._check_overlap(file_id, record)

    def _write(self, file_id: int, offset: int, payload: memoryview, at_us: int) -> None:
        most = limits.DELTA_MAX_DATA_BYTES
        for start in range(0, len(payload), most):
            self._sink.add_write(file_id, offset + start, payload[start : start + most], at_us)

    def _check_overlap(self, file_id: int, record: Record) -> None:
        if record.flags & Flag.OVERLAPPED:
            confused = self._overlaps.confused_with(record)
            if confused is not None:
                low, high = confused
                self._reread(file_id, low, high - low, record.end_ns // 1000)
        self._overlaps.note(record)

    def _on_reread(self, record: Record, payload: memoryview) -> None:
        if record.flags & Flag.UNLINKED or not self._is_here(record):
            return
        if record.volume == NO_VOLUME and record.inode not in self.shadow.by_inode:
            return  # written through a name outside; ours has nothing of it
        call = call_name(record.extra)
        if call != "AIO":  # whose end is told by a worker of the kernel
            self.unseen.note_writer(record.tgid)
        file_id = self._file_of(record)
        if file_id is None:
            return
        if call not in PLAIN_WRITES:
            self.unseen.say_once(
                file_id, call, "what it changes is read again at once", record.offset, record.length
            )
        self.contents.touch(file_id)
        self._reread(file_id, record.offset, record.length, record.end_ns // 1000)
        self._overlaps.note(record)

    def _on_open(self, record: Record, payload: memoryview) -> None:
        if record.flags & Flag.UNLINKED:
            return
        self.unseen.note_writer(record.tgid)
        self._resolver.device = record.device or self._resolver.device
        if record.flags & Flag.CREATED:
            self._naming.making.created(record, bytes(payload))
        if record.flags & Flag.TRUNCATED:
            file_id = self._file_of(record)
            if file_id is not None:
                self._truncate(file_id, 0, record)
        self._after_naming(record)

    def _on_size(self, record: Record, payload: memoryview) -> None:
        if record.flags & Flag.UNLINKED:
            return
        self.unseen.note_writer(record.tgid)
        file_id = self._file_of(record)
        if file_id is not None:
            self._truncate(file_id, record.aux, record)

    def _truncate(self, file_id: int, size: int, record: Record) -> None:
        self.contents.touch(file_id)
        self.shadow.truncate(file_id, size, record.end_ns // 1000)
        self.mapped.forget_range(file_id, size, deltas.FILE_ID_MAX - size)
        self._check_overlap(file_id, record)

    def _on_allocated(self, record: Record, payload: memoryview) -> None:
        if record.flags & Flag.UNLINKED:
            return
        self.unseen.note_writer(record.tgid)
        file_id = self._file_of(record)
        if file_id is None:
            return
        self.contents.touch(file_id)
        at_us = record.end_ns // 1000
        effect = allocations.effect_of(record.extra, record.offset, record.length, record.aux)
        if effect.moves:
            self.unseen.say_once(
                file_id, "fallocate", "moves what is behind, which is read again", record.offset, _ALL
            )
            self._reread(file_id, record.offset, _ALL - record.offset, at_us)
        if effect.zeroed:
            self.shadow.punch(file_id, record.offset, effect.zeroed, at_us)
        if effect.size is not None:
            self.shadow.truncate(file_id, effect.size, at_us)
        self.mapped.forget_range(file_id, record.offset, _ALL - record.offset)
        self._check_overlap(file_id, record)

    def _on_path(self, record: Record, payload: memoryview) -> None:
        file_id = self._naming.by_path(record, bytes(payload))
        if self._naming.is_inside:
            self.unseen.note_writer(record.tgid)
        if file_id is not None:
            self._truncate(file_id, record.aux, record._replace(inode=self.shadow.inode_of.get(file_id, 0)))
        self._after_naming(record)

    def _on_attr(self, record: Record, payload: memoryview) -> None:
        file_id = self._described_id(record)
        if file_id is not None:
            at_us = record.end_ns // 1000
            self._naming.describing.attributes(file_id, record.aux, record.uid, record.gid, at_us)
            if sets_times(record.extra):
                self._naming.describing.set_times(file_id, record.offset, record.length, at_us)

    def _on_xattr(self, record: Record, payload: memoryview) -> None:
        file_id = self._described_id(record)
        if file_id is not None:
            self._naming.describing.xattr(file_id, bytes(payload).rstrip(b"\0"), record.end_ns // 1000)
            self._after_naming(record)

    def _on_mapped(self, record: Record, payload: memoryview) -> None:
        if record.volume == NO_VOLUME and not self._is_known_here(record):
            return
        self.unseen.note_writer(record.tgid)
        file_id = self._known_id(record)
        if file_id is not None:
            self.mapped.follow(file_id, record.inode2)
        elif not record.flags & Flag.UNLINKED:
            self.mapped.expect(record.inode, record.inode2)

    def _on_dirtied(self, record: Record, payload: memoryview) -> None:
        if record.volume == NO_VOLUME and not self._is_known_here(record):
            return
        file_id = self._known_id(record)
        if file_id is None:
            if not record.flags & Flag.UNLINKED:
                self.mapped.expect(record.inode, Mapping.FOLLOWED | Mapping.DIRTY)
        elif self.shadow.is_file(file_id):
            self.mapped.dirtied(file_id, record.offset, record.length)

    def _on_unseen(self, record: Record, payload: memoryview) -> None:
        if self.unseen.take(record):
            file_id = self._known_id(record)
            if file_id is not None:
                self._settler.doubt_content(file_id)
        self._after_naming(record)

    def _compare_always(self, file_id: int) -> None:
        self.mapped.go_on(file_id, is_compared=True)

    def _on_sync(self, record: Record, payload: memoryview) -> None:
        self.unseen.note_writer(record.tgid)
        file_id = self.shadow.by_inode.get(record.inode, 0)
        args = (call_name(record.extra), record.tgid)
        self._sink.add(Delta(Op.BARRIER, file_id, args=args, at_us=record.end_ns // 1000))

    def _on_held(self, record: Record, payload: memoryview) -> None:
        if self.on_held is not None:
            self.on_held(record.tgid)

    # ---- who, and which file

    def expect(self, tgids: Iterable[int]) -> None:
        """See ``Unseen.expect``."""
        self.unseen.expect(tgids)

    def _is_here(self, record: Record) -> bool:
        return record.volume != NO_VOLUME or record.device in (0, self._resolver.device)

    def _is_known_here(self, record: Record) -> bool:
        return self._is_here(record) and record.inode in self.shadow.by_inode

    def _known_id(self, record: Record) -> int | None:
        """The id of the file a record is about; None, and a doubt, when the shadow does not have it."""
        if record.flags & Flag.UNLINKED:
            return None
        file_id = self.shadow.by_inode.get(record.inode)
        if file_id is None:
            self._missed(record)
            return None
        if not self.shadow.is_generation(file_id, record.generation):
            # The number was given to another file, and we did not see it: what we have under it is gone.
            self.shadow.unbind(file_id)
            self._missed(record)
            return None
        return file_id

    def _file_of(self, record: Record) -> int | None:
        """The same for a change of content, which only a regular file has."""
        file_id = self._known_id(record)
        if file_id is None or self.shadow.is_file(file_id):
            return file_id
        self.shadow.unbind(file_id)  # its number was given to a file
        self._missed(record)
        return None

    def _described_id(self, record: Record) -> int | None:
        if record.volume == NO_VOLUME and not self._is_known_here(record):
            return None  # by a name outside, of a file that has none here
        return self._known_id(record)

    def _missed(self, record: Record) -> None:
        gone_ns = self._gone.get(record.inode)
        if gone_ns is not None and record.start_ns <= gone_ns:
            return  # it was in flight when the file lost its last name
        self.doubts.missed(record.inode, record.end_ns)
        self._settler.lower_floor()

    def _note_gone(self, file_id: int) -> None:
        inode = self.shadow.inode_of.get(file_id)
        if inode is not None:
            self.remember_gone(inode, self.now_end_ns)

    def remember_gone(self, inode: int, when_ns: int) -> None:
        self._gone[inode] = when_ns
        self._gone.move_to_end(inode)
        if len(self._gone) > GONE_REMEMBERED:
            self._gone.popitem(last=False)

    # ---- re-reading

    def _reread(self, file_id: int, offset: int, length: int, at_us: int) -> None:
        """Log what the file has in a range now, and its size; a large one is left to ``settle``, which does
        it in steps.
        """
        self._sink.note_fidelity(frames.Fidelity.PAGE)
        self.mapped.forget_range(file_id, offset, length)
        try:
            with self.reader.file(file_id) as fd:
                end = min(offset + length, os.fstat(fd).st_size)
                if end - offset > SETTLE_BUDGET_BYTES:
                    self._settler.doubt_content(file_id)
                    return
                for _ in self.contents.read_span(file_id, fd, offset, end, at_us):
                    pass
        except rereader.Elsewhere:
            # A rename or an unlink of it waits in the ring.
            self._settler.doubt_content(file_id)

    def _arrived(self, file_id: int, fd: int) -> None:
        """A file is found and about to be read. It may be mapped already: stores to pages that are dirty now come
        untold. (At a first sight nearly every page may be dirty, so it looks at what is mapped instead.)
        """
        if not self.doubts.is_scanning:
            self.mapped.arrived(file_id, fd)

    def _reread_all(self, file_id: int, at_us: int) -> None:
        with contextlib.suppress(rereader.Elsewhere), self.reader.file(file_id) as fd:
            self.mapped.arrived(file_id, fd)
        self._reread(file_id, 0, _ALL, at_us)

    # ---- doubts

    def _after_naming(self, record: Record) -> None:
        if self.doubts.is_serious:
            self._settler.lower_floor()

    def lose(self, inodes: Iterable[int], *, everywhere: bool, detail: str) -> None:
        """Records were lost: of these files, or nobody knows of which. The end of the gap is the next full
        ``settle``.
        """
        self._settler.lose(inodes, everywhere=everywhere, detail=detail)

    def settle(self, drained_ns: int, budget: int = SETTLE_BUDGET_BYTES) -> bool:
        """Compare what is doubtful with the disk; call it when the ring has been emptied up to
        ``drained_ns``.

        True when nothing is left to do. False when the budget was used up, or when what differs may be
        explained by records that were not drained yet: ship frames, drain, and call again.
        """
        return self._settler.settle(drained_ns, budget)

    def before_barrier(self, drained_ns: int, budget: int = SETTLE_BUDGET_BYTES) -> bool:
        """Everything drained so far is about to be promised: make the log equal to the disk where it may not
        be.

        False when more has to be read than the budget: ship frames, drain, and call again before cutting the
        barrier.
        """
        if not self.settle(drained_ns, budget):
            return False
        if self.unseen_writers and not self.doubts.is_scanning and not self._settler.compare_all():
            return False
        self.mapped.follow_arrivals(self.scanner.arrivals)
        return self.log_stores(budget)

    def log_stores(self, budget: int = SETTLE_BUDGET_BYTES) -> bool:
        """Log what was changed by stores through mappings; False when the budget was used up."""
        return not self.mapped or self.mapped.log_changes(time.monotonic_ns() // 1000, budget)

    # ---- whole volumes

    def scan_base(self) -> Iterator[Progress]:
        """The first sight, in steps. Records may be observed between steps.

        After the last step drain the ring up to its end, ``settle`` until it says True, and only then cut
        BASE_END.
        """
        yield from self._settler.scan_base()
        self.mapped.follow_arrivals(self.scanner.arrivals)

    def compare(
        self, scope: dict[int, frozenset[bytes] | None], *, deep: bool, depth: Depth
    ) -> Iterator[int]:
        """Compare directories with the disk, in steps: for the portable probe, which knows where to look."""
        yield from self.scanner.compare(scope, deep=deep, depth=depth)

    def rescan(self, cause: str = "") -> Iterator[int]:
        """Compare everything, contents by fingerprint: after a time in which nobody watched. ``cause`` is for
        the log.
        """
        yield from self._settler.rescan(cause)
        self.scanner.arrivals.everything()
        self.mapped.follow_arrivals(self.scanner.arrivals)

    @property
    def is_doubtful(self) -> bool:
        """Whether the shadow is not known to be what the records so far make of the volume."""
        return (
            self._settler.is_working
            or bool(self.doubts)
            or self.doubts.is_unsettled
            or self.doubts.is_scanning
            or bool(self.scanner.sightings.waiting)
        )

    @property
    def is_plain(self) -> bool:
        return not (self.is_doubtful or self.is_floored)

    def go_on_from(
        self, made_ns: int, compared_ns: int, mapped: dict[int, bool], is_doubtful: bool, is_floored: bool
    ) -> None:
        """Of a predecessor: records whose calls ended before ``made_ns`` (CLOCK_MONOTONIC) were observed by it."""
        self.doubts.compared_ns = compared_ns
        for file_id, is_compared in mapped.items():
            self.mapped.go_on(file_id, is_compared=is_compared)
        self._overlaps.forget_before(made_ns)
        self._naming.forget_before(made_ns)
        if is_floored or is_doubtful:
            self._settler.lower_floor()
        if is_doubtful:
            self.doubts.everything = self.doubts.everywhere_content = self.doubts.is_unsettled = True

    def _adopt(self, state: trees.TreeState) -> None:
        for file_id, identity in state.identities.items():
            if file_id in self.shadow.tree.nodes and file_id != ROOT_ID:
                self.shadow.bind(file_id, identity.inode, identity.generation)
        self._adopt_prints({**state.fingerprints})

    def _adopt_prints(self, prints: MutableMapping[int, Fingerprint]) -> None:
        if not self.contents.sole_source:
            self.contents.kept = prints
            return
        for file_id, print_ in prints.items():
            if file_id in self.shadow.tree.nodes:
                self.contents.known[file_id] = Known(print_, Digests(print_[0], is_complete=False))

    def state(
        self, volume: str, position: positions.Position, frame_hash: bytes, stamp: int
    ) -> trees.TreeState:
        """The volume at the end of the log, for whoever goes on. Fingerprints only of files nobody may still
        be writing.
        """
        nodes, now_ns = self.shadow.tree.nodes, time.time_ns()
        found = {
            file_id: self._print_of(file_id, now_ns)
            for file_id, node in nodes.items()
            if node.kind is trees.Kind.FILE
        }
        prints = {file_id: print_ for file_id, print_ in found.items() if print_ is not None}
        identities = {
            file_id: trees.Identity(self.reader.device, inode, self.shadow.generation_of.get(file_id, 0))
            for file_id, inode in self.shadow.inode_of.items()
        }
        return trees.TreeState(volume, position, frame_hash, stamp, self.shadow.tree, identities, prints)

    def take_prints(self) -> dict[int, Fingerprint | None]:
        """Fingerprints of files that changed since the last time; None for one that may still be changing, which is
        asked for again the next time.
        """
        now_ns = time.time_ns()
        contents, found = self.contents, dict[int, Fingerprint | None]()
        for file_id in contents.touched:
            if file_id == self.scanner.reading:
                found[file_id] = None
            elif contents.is_fresh(file_id) and file_id not in self.doubts.contents:
                found[file_id] = contents.known[file_id].fingerprint
            elif self.shadow.is_file(file_id):
                found[file_id] = self._print_of(file_id, now_ns)
        contents.forget_touched()
        contents.touched.update(file_id for file_id, print_ in found.items() if print_ is None)
        # A write that takes the short way says nothing of its file; the next one takes the long way.
        self._think_again()
        return found

    def _print_of(self, file_id: int, now_ns: int) -> Fingerprint | None:
        """What the file is on disk, when nobody may still be writing it and the log has all of it."""
        if file_id in self.doubts.contents:
            return None
        try:
            status = self.reader.status_of(file_id)
        except rereader.Elsewhere:
            return None
        known = self.contents.known.get(file_id)
        is_current = not self.contents.sole_source or (
            known is not None and known.fingerprint == fingerprint(status)
        )
        if not stat.S_ISREG(status.st_mode) or not is_current or now_ns - status.st_ctime_ns < RACY_NS:
            return None
        return fingerprint(status)

    def close(self) -> None:
        self.reader.close()
