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

import os
import stat
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from diffkeeper.domain import deltas, frames, limits, positions, trees
from diffkeeper.domain.deltas import ROOT_ID, Delta, Op
from diffkeeper_capture import rereader, write_lanes
from diffkeeper_capture.contents import RACY_NS, Contents, Fingerprint, Known, fingerprint
from diffkeeper_capture.doubts import Doubts
from diffkeeper_capture.framer import FrameSink
from diffkeeper_capture.mapped_files import MappedFiles
from diffkeeper_capture.naming import Naming
from diffkeeper_capture.overlaps import Overlaps
from diffkeeper_capture.path_resolver import PathResolver
from diffkeeper_capture.records import NO_VOLUME, Flag, Kind, Record
from diffkeeper_capture.scanner import Depth, Progress, Scanner
from diffkeeper_capture.shadow import Shadow
from diffkeeper_capture.system_calls import call_name

# Of a WRITE: nothing to think about without these. Plain integers: an enum's ``&`` costs as much as all the
# rest.
_CAREFUL = int(Flag.UNREADABLE | Flag.OVERLAPPED | Flag.UNLINKED)
# What ``settle`` reads before it lets the agent drain and ship again.
SETTLE_BUDGET_BYTES = 8 * 1024 * 1024
# Rounds of comparing in one call of ``settle``: more of them without draining between find nothing new.
ROUNDS_MAX = 3
# Walks over all directories that may be put off in parts; the one after takes what it finds as it is.
WALKS_MAX = 5
# Inodes that lost their last name lately: a write that was in flight then is no surprise.
GONE_REMEMBERED = 4096
_WRITE = int(Kind.WRITE)


class Observer:
    """One volume. Not safe for threads; one owner, who drains the probe into ``observe`` and calls ``settle``
    after it.
    """

    def __init__(
        self, root: Path, sink: FrameSink, *, state: trees.TreeState | None = None, sole_source: bool = False
    ) -> None:
        """``state`` is believed as it is; without it, ``scan_base`` must follow. ``sole_source``: no records
        will come.
        """
        self.shadow = Shadow(sink, state.tree if state is not None else None)
        self.reader = rereader.Rereader(root, self.shadow)
        self.contents = Contents(self.shadow, sole_source=sole_source)
        self.scanner = Scanner(self.shadow, self.reader, self.contents)
        self.doubts = Doubts()
        self.mapped = MappedFiles(self.shadow, self.reader)
        # Processes seen to write here, and those among them that also write in ways that cannot be seen.
        self.writers: set[int] = set()
        self.unseen_writers: set[int] = set()
        self.unseen_elsewhere: set[int] = set()
        # Called with a process that was stopped until its synchronous write has a receipt.
        self.on_held: Callable[[int], None] | None = None
        self._sink = sink
        self._overlaps = Overlaps()
        self._resolver = PathResolver(self.shadow, root, self.reader.status_of(ROOT_ID))
        self._naming = Naming(
            self.shadow, self.reader, self._resolver, self.doubts, sink, self.writers.__contains__
        )
        self._gone: OrderedDict[int, int] = OrderedDict()
        # Takes the writes that need no thought; None where everything goes the long way.
        self._lane: write_lanes.Lane | None = None
        self._work: Iterator[int] | None = None
        # Frames are ``scan`` at best for the time being.
        self.is_floored = False
        self._distrusts_content = False
        self._walks = 0
        self.shadow.on_forget.append(self._note_gone)
        self.now_end_ns = 0
        self.shadow.bind(ROOT_ID, self.reader.inode)
        if sole_source:
            self._lower_floor()
        if state is not None:
            self._adopt(state)
            # Whoever keeps the tree has these.
            self.shadow.unsaved_ids = {ROOT_ID}
        # The hot path's own names for things.
        self._by_inode = self.shadow.by_inode
        self._add_write = sink.add_write
        self._touched = self.contents.touched
        self._generations = self.shadow.generation_of
        self._mapped_ids = self.mapped.known
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
            Kind.HELD: self._on_held,
        }

    # ---- the records

    def observe(self, record: Record, payload: memoryview) -> None:
        """Take one record. The view is not kept. Fields are taken by index: names cost a third more on this
        path.
        """
        if record[0] == _WRITE and not record[1] & _CAREFUL:
            file_id = self._by_inode.get(record[7])
            if (
                file_id is not None
                and record[5] in self.writers
                and (not record[8] or self._generations.get(file_id) == record[8])
                and file_id not in self._mapped_ids
                and not self.is_floored
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
        if record.flags & Flag.UNLINKED:
            return
        self._note_writer(record.tgid)
        file_id = self._file_of(record)
        if file_id is None:
            return
        self.contents.touch(file_id)
        at_us = record.end_ns // 1000
        if record.flags & Flag.UNREADABLE:
            self._reread(file_id, record.offset, record.length, at_us)
        else:
            self._write(file_id, record.offset, payload, at_us)
        if file_id in self.mapped.known:
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
        self._note_writer(record.tgid)
        file_id = self._file_of(record)
        if file_id is None:
            return
        self._reread(file_id, record.offset, record.length, record.end_ns // 1000)
        self._overlaps.note(record)

    def _on_open(self, record: Record, payload: memoryview) -> None:
        if record.flags & Flag.UNLINKED:
            return
        self._note_writer(record.tgid)
        self._resolver.device = record.device or self._resolver.device
        if record.flags & Flag.CREATED:
            self._naming.created(record, bytes(payload))
        if record.flags & Flag.TRUNCATED:
            file_id = self._file_of(record)
            if file_id is not None:
                self._truncate(file_id, 0, record)
        self._after_naming(record)

    def _on_size(self, record: Record, payload: memoryview) -> None:
        if record.flags & Flag.UNLINKED:
            return
        self._note_writer(record.tgid)
        file_id = self._file_of(record)
        if file_id is not None:
            self._truncate(file_id, record.aux, record)

    def _truncate(self, file_id: int, size: int, record: Record) -> None:
        self.contents.touch(file_id)
        self.shadow.truncate(file_id, size, record.end_ns // 1000)
        self.mapped.forget_range(file_id, size, deltas.FILE_ID_MAX - size)
        self._check_overlap(file_id, record)

    def _on_path(self, record: Record, payload: memoryview) -> None:
        file_id = self._naming.by_path(record, bytes(payload))
        if file_id is not None:
            self._truncate(file_id, record.aux, record._replace(inode=self.shadow.inode_of.get(file_id, 0)))
        self._after_naming(record)

    def _on_attr(self, record: Record, payload: memoryview) -> None:
        file_id = self._known_id(record)
        if file_id is not None:
            self._naming.attributes(file_id, record.aux, record.uid, record.gid, record.end_ns // 1000)

    def _on_xattr(self, record: Record, payload: memoryview) -> None:
        file_id = self._known_id(record)
        if file_id is not None:
            self._naming.xattr(file_id, bytes(payload).rstrip(b"\0"), record.end_ns // 1000)
            self._after_naming(record)

    def _on_mapped(self, record: Record, payload: memoryview) -> None:
        self._note_writer(record.tgid)
        file_id = self._known_id(record)
        if file_id is not None:
            self.mapped.follow(file_id)
            self._think_again()

    def _on_unseen(self, record: Record, payload: memoryview) -> None:
        tgid = record.tgid
        if record.volume != NO_VOLUME or tgid in self.writers:
            self._mark_unseen(tgid, call_name(record.extra))
        else:
            self.unseen_elsewhere.add(tgid)

    def _on_sync(self, record: Record, payload: memoryview) -> None:
        self._note_writer(record.tgid)
        file_id = self.shadow.by_inode.get(record.inode, 0)
        args = (call_name(record.extra), record.tgid)
        self._sink.add(Delta(Op.BARRIER, file_id, args=args, at_us=record.end_ns // 1000))

    def _on_held(self, record: Record, payload: memoryview) -> None:
        if self.on_held is not None:
            self.on_held(record.tgid)

    # ---- who, and which file

    def expect(self, tgids: Iterable[int]) -> None:
        """These processes belong to the volume's program: what they do unseen concerns it even before they
        write.
        """
        for tgid in tgids:
            self._note_writer(tgid)

    def _note_writer(self, tgid: int) -> None:
        if tgid not in self.writers:
            self.writers.add(tgid)
            if tgid in self.unseen_elsewhere:
                self._mark_unseen(tgid, "io_uring or AIO")

    def _mark_unseen(self, tgid: int, call: str) -> None:
        if tgid not in self.unseen_writers:
            self.unseen_writers.add(tgid)
            self._sink.gap("unseen-writer", f"process {tgid} uses {call}, which is not followed")

    def _is_here(self, record: Record) -> bool:
        return record.volume != NO_VOLUME or record.device in (0, self._resolver.device)

    def _known_id(self, record: Record) -> int | None:
        if record.flags & Flag.UNLINKED:
            return None
        file_id = self.shadow.by_inode.get(record.inode)
        if file_id is None:
            self._missed(record)
        return file_id

    def _file_of(self, record: Record) -> int | None:
        """The id of a changed file; None, and a doubt, when the shadow does not have it."""
        file_id = self._known_id(record)
        if file_id is None or not record.generation:
            return file_id
        known = self.shadow.generation_of.get(file_id)
        if known is None:
            self.shadow.generation_of[file_id] = record.generation
        elif known != record.generation:
            # The number was given to another file, and we did not see it: what we have under it is gone.
            self.shadow.unbind(file_id)
            self._missed(record)
            return None
        return file_id

    def _missed(self, record: Record) -> None:
        gone_ns = self._gone.get(record.inode)
        if gone_ns is not None and record.start_ns <= gone_ns:
            return  # it was in flight when the file lost its last name
        self.doubts.missed(record.inode, record.end_ns)
        self._lower_floor()

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
                    self._doubt_content(file_id)
                    return
                for _ in self.contents.read_span(file_id, fd, offset, end, at_us):
                    pass
        except rereader.Elsewhere:
            # A rename or an unlink of it waits in the ring.
            self._doubt_content(file_id)

    def _doubt_content(self, file_id: int) -> None:
        self.doubts.contents.add(file_id)
        self._lower_floor()

    # ---- doubts

    def _after_naming(self, record: Record) -> None:
        if self.doubts.is_serious:
            self._lower_floor()

    def _lower_floor(self) -> None:
        if not self.is_floored:
            self.is_floored = True
            self._think_again()
            self._sink.set_floor(frames.Fidelity.SCAN)

    def lose(self, inodes: Iterable[int], *, everywhere: bool, detail: str) -> None:
        """Records were lost: of these files, or nobody knows of which. The end of the gap is the next full
        ``settle``.
        """
        self._sink.gap("lost-records", detail)
        self._lower_floor()
        if everywhere:
            self.doubts.everything = True
            self.doubts.everywhere_content = True
            return
        for inode in inodes:
            file_id = self.shadow.by_inode.get(inode)
            if file_id is None:
                self.doubts.everything = True
            elif self.shadow.is_directory(file_id):
                self.doubts.directory(file_id)
            else:
                self.doubts.contents.add(file_id)

    def settle(self, drained_ns: int, budget: int = SETTLE_BUDGET_BYTES) -> bool:
        """Compare what is doubtful with the disk; call it when the ring has been emptied up to
        ``drained_ns``.

        True when nothing is left to do. False when the budget was used up, or when what differs may be
        explained by records that were not drained yet: ship frames, drain, and call again.
        """
        if self.doubts.is_scanning:
            return True  # the first sight goes on, and what it meets it settles
        for entry in self.scanner.sightings.due(drained_ns):
            self.doubts.check(*entry)
        for file_id in self.shadow.unmapped | self.shadow.unverified:
            for entry in self.shadow.tree.nodes[file_id].entries:
                self.doubts.check(*entry)
        if self._is_settled():
            self._raise_floor(drained_ns)
            return True
        self.doubts.is_unsettled |= self.doubts.is_serious
        rounds = 0
        while budget > 0:
            if self._work is None:
                if not self.doubts or self._must_wait() or rounds == ROUNDS_MAX:
                    break
                rounds += 1
                self._work = self._settle_all()
            budget -= next(self._work, 0) or self._end_work()
        return self._is_settled()

    def _is_settled(self) -> bool:
        is_settled = self._work is None and not self.doubts and not self.scanner.sightings.waiting
        if is_settled:
            self.doubts.is_unsettled = False
        return is_settled

    def _raise_floor(self, drained_ns: int) -> None:
        """Frames may be exact again, once what the last comparison was ahead of has been drained."""
        if self.is_floored and drained_ns > self.doubts.compared_ns and not self.contents.sole_source:
            self.is_floored = False
            self._sink.set_floor(frames.Fidelity.EXACT)

    def _must_wait(self) -> bool:
        """Whether what is left can only be told after more has been drained."""
        return not self.doubts.is_urgent and bool(self.scanner.sightings.waiting)

    def _end_work(self) -> int:
        self._work = None
        return 1

    def _settle_all(self) -> Iterator[int]:
        """One round over all doubts as they are now; new ones that come meanwhile make another round."""
        doubts = self.doubts.take()
        before = self.scanner.changes
        unknown = sorted(doubts.unknown - self.shadow.by_inode.keys())
        self._distrusts_content |= doubts.everywhere_content
        waits = doubts.entries or doubts.checks or self.scanner.sightings.waiting
        doubts.everything |= bool(unknown) and not waits
        news = sorted(set(unknown) - doubts.expected)
        if news and doubts.everything:
            self._sink.gap("unknown-file", f"inodes {news[:8]} were changed and had not been seen before")
        depth = Depth.CHANGED if self._distrusts_content or self.contents.sole_source else Depth.NAMES
        if doubts.everything:
            yield from self._compare_everything(doubts, depth)
        elif doubts.entries or doubts.checks:
            yield from self.scanner.compare(doubts.scope(), deep=False, depth=depth)
        for inode in unknown:
            if inode in self.shadow.by_inode:
                continue
            if doubts.everything and not self.scanner.sightings.waiting:
                self.remember_gone(inode, time.monotonic_ns())
            else:
                self.doubts.unknown.add(inode)  # not where we looked: a later round looks everywhere
                self.doubts.expected |= {inode} & doubts.expected
        self._naming.read_again(doubts.attributes, time.monotonic_ns() // 1000)
        for file_id in sorted(doubts.contents):
            if not self.shadow.is_file(file_id):
                continue
            try:
                yield from self.scanner.read_file(file_id)
            except rereader.Elsewhere:
                self.doubts.place_of(self.shadow.tree, file_id)
                self.doubts.contents.add(file_id)
        self._doubt_unreached()
        if self.scanner.changes != before or doubts.contents:
            self.doubts.compared_ns = time.monotonic_ns()
            self._lower_floor()
        if not self.scanner.sightings.waiting:
            self._distrusts_content = False
        yield 1

    def _compare_everything(self, doubts: Doubts, depth: Depth) -> Iterator[int]:
        """A walk over all directories. What it had to put off may have hidden some: then it is walked
        again.
        """
        self._walks += 1
        self.scanner.sightings.is_impatient = self._walks >= WALKS_MAX or self.contents.sole_source
        yield from self.scanner.compare({ROOT_ID: None}, deep=True, depth=depth)
        self.scanner.sightings.is_impatient = self.contents.sole_source
        hidden = self.scanner.unreached & self.shadow.tree.nodes.keys()
        if self.scanner.sightings.waiting or (hidden and not self.contents.sole_source):
            self.doubts.everything = True
            self.doubts.everywhere_content |= self._distrusts_content
        else:
            self._walks = 0

    def _doubt_unreached(self) -> None:
        """Directories that moved while they were to be listed: listed once their records have told
        where to.
        """
        for directory in self.scanner.unreached & self.shadow.tree.nodes.keys():
            if not self.contents.sole_source:  # the portable probe looks at everything again anyway
                self.doubts.directory(directory)
        self.scanner.unreached.clear()

    def before_barrier(self, drained_ns: int, budget: int = SETTLE_BUDGET_BYTES) -> bool:
        """Everything drained so far is about to be promised: make the log equal to the disk where it may not
        be.

        False when more has to be read than the budget: ship frames, drain, and call again before cutting the
        barrier.
        """
        if not self.settle(drained_ns, budget):
            return False
        if self.unseen_writers and not self.doubts.is_scanning:
            self._lower_floor()
            for _ in self.scanner.compare({ROOT_ID: None}, deep=True, depth=Depth.CHANGED):
                pass
            self.doubts.compared_ns = time.monotonic_ns()
            if self.scanner.sightings.waiting:
                return False
        if self.mapped.known:
            for _ in self.mapped.log_changes(time.monotonic_ns() // 1000):
                pass
        return True

    # ---- whole volumes

    def scan_base(self) -> Iterator[Progress]:
        """The first sight, in steps. Records may be observed between steps.

        After the last step drain the ring up to its end, ``settle`` until it says True, and only then cut
        BASE_END.
        """
        self.doubts.is_scanning = True
        self._lower_floor()
        try:
            yield from self.scanner.scan_base()
        finally:
            self.doubts.is_scanning = False
            if self.doubts.unknown - self.shadow.by_inode.keys():
                # Changed while unknown, and not found: removed since, or moved behind the scan's back. Not a
                # gap: look again.
                self.doubts.everything = True
            self.doubts.unknown.clear()
            self._doubt_unreached()
            self.doubts.compared_ns = time.monotonic_ns()
            self._lower_floor()

    def compare(
        self, scope: dict[int, frozenset[bytes] | None], *, deep: bool, depth: Depth
    ) -> Iterator[int]:
        """Compare directories with the disk, in steps: for the portable probe, which knows where to look."""
        yield from self.scanner.compare(scope, deep=deep, depth=depth)

    def rescan(self, cause: str = "") -> Iterator[int]:
        """Compare everything, contents by fingerprint: after a time in which nobody watched. ``cause`` is for
        the log.
        """
        if cause:
            self._sink.gap(cause, "everything is compared with what was known")
        self._lower_floor()
        self.doubts.is_scanning = self.scanner.sightings.is_impatient = True
        try:
            yield from self.scanner.compare({ROOT_ID: None}, deep=True, depth=Depth.CHANGED)
        finally:
            self.doubts.is_scanning = False
            self.scanner.sightings.is_impatient = self.contents.sole_source
            self.doubts.compared_ns = time.monotonic_ns()
            if self.scanner.unreached and not self.contents.sole_source:
                self.doubts.everything = self.doubts.everywhere_content = True
            self.scanner.unreached.clear()

    @property
    def is_doubtful(self) -> bool:
        """Whether the shadow is not known to be what the records so far make of the volume."""
        return (
            self._work is not None
            or bool(self.doubts)
            or self.doubts.is_unsettled
            or self.doubts.is_scanning
            or bool(self.scanner.sightings.waiting)
        )

    @property
    def is_plain(self) -> bool:
        return not (self.is_doubtful or self.is_floored)

    def go_on_from(
        self, made_ns: int, compared_ns: int, mapped: set[int], is_doubtful: bool, is_floored: bool
    ) -> None:
        """Of a predecessor: records whose calls ended before ``made_ns`` (CLOCK_MONOTONIC) were observed by it."""
        self.doubts.compared_ns = compared_ns
        for file_id in mapped:
            self.mapped.known[file_id] = {}  # all of its data is logged at the next barrier
        self._overlaps.forget_before(made_ns)
        self._naming.forget_before(made_ns)
        if is_floored or is_doubtful:
            self._lower_floor()
        if is_doubtful:
            self.doubts.everything = self.doubts.everywhere_content = self.doubts.is_unsettled = True

    def _adopt(self, state: trees.TreeState) -> None:
        for file_id, identity in state.identities.items():
            if file_id in self.shadow.tree.nodes and file_id != ROOT_ID:
                self.shadow.bind(file_id, identity.inode, identity.generation)
        for file_id, print_ in state.fingerprints.items():
            if file_id in self.shadow.tree.nodes:
                self.contents.known[file_id] = Known(print_, size=print_[0])

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
        living = [file_id for file_id in self.contents.touched if self.shadow.is_file(file_id)]
        found = {file_id: self._print_of(file_id, now_ns) for file_id in living}
        self.contents.touched.clear()
        self.contents.touched.update(file_id for file_id, print_ in found.items() if print_ is None)
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
