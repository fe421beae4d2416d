"""Doubts worked off: what in the shadow may not be what is on disk is compared, in steps, until nothing is left.

A doubt that no earlier comparison explains is also a GAP in the log. From the first serious doubt until all is
settled frames are ``scan`` (the floor). Sole user of the scanner while a capture goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from diffkeeper.domain import frames, trees
from diffkeeper.domain.deltas import ROOT_ID
from diffkeeper_capture import rereader
from diffkeeper_capture.contents import Contents
from diffkeeper_capture.describing import Describing
from diffkeeper_capture.doubts import Doubts
from diffkeeper_capture.framer import FrameSink
from diffkeeper_capture.scanner import Depth, Progress, Scanner
from diffkeeper_capture.shadow import Shadow

# What ``settle`` reads before it lets the agent drain and ship again.
SETTLE_BUDGET_BYTES = 8 * 1024 * 1024
# Rounds of comparing in one call of ``settle``: more of them without draining between find nothing new.
ROUNDS_MAX = 3
# Walks over all directories that may be put off in parts; the one after takes what it finds as it is.
WALKS_MAX = 5


class Settler:
    """Of one volume. ``on_gone`` hears of inodes that were changed and are nowhere, ``on_floor`` that
    no write is plain any more.
    """

    def __init__(
        self,
        shadow: Shadow,
        scanner: Scanner,
        contents: Contents,
        doubts: Doubts,
        describing: Describing,
        sink: FrameSink,
        on_gone: Callable[[int, int], None],
        on_floor: Callable[[], None],
    ) -> None:
        self.is_floored = False
        self._shadow = shadow
        self._scanner = scanner
        self._contents = contents
        self._doubts = doubts
        self._describing = describing
        self._sink = sink
        self._on_gone = on_gone
        self._on_floor = on_floor
        self._work: Iterator[int] | None = None
        self._distrusts_content = False
        self._walks = 0

    @property
    def is_working(self) -> bool:
        """Whether a comparison was begun and is not at its end."""
        return self._work is not None

    # ---- how exact frames are

    def lower_floor(self) -> None:
        if not self.is_floored:
            self.is_floored = True
            self._on_floor()
            self._sink.set_floor(frames.Fidelity.SCAN)

    def _raise_floor(self, drained_ns: int) -> None:
        """Frames may be exact again, once what the last comparison was ahead of has been drained."""
        if self.is_floored and drained_ns > self._doubts.compared_ns and not self._contents.sole_source:
            self.is_floored = False
            self._sink.set_floor(frames.Fidelity.EXACT)

    def doubt_content(self, file_id: int) -> None:
        self._doubts.contents.add(file_id)
        self.lower_floor()

    def lose(self, inodes: Iterable[int], *, everywhere: bool, detail: str) -> None:
        """Records were lost: of these files, or nobody knows of which. The end of the gap is the next full
        ``settle``.
        """
        self._sink.gap("lost-records", detail)
        self.lower_floor()
        if everywhere:
            self._doubts.everything = True
            self._doubts.everywhere_content = True
            return
        for inode in inodes:
            file_id = self._shadow.by_inode.get(inode)
            if file_id is None:
                self._doubts.everything = True
            elif self._shadow.is_directory(file_id):
                self._doubts.directory(file_id)
            else:
                self._doubts.contents.add(file_id)

    # ---- settling

    def settle(self, drained_ns: int, budget: int) -> bool:
        """See ``Observer.settle``."""
        if self._doubts.is_scanning:
            return True  # the first sight goes on, and what it meets it settles
        for entry in self._scanner.sightings.due(drained_ns):
            self._doubts.check(*entry)
        for file_id in self._shadow.unmapped | self._shadow.unverified:
            for entry in self._shadow.tree.nodes[file_id].entries:
                self._doubts.check(*entry)
        if self._is_settled():
            self._raise_floor(drained_ns)
            return True
        self._doubts.is_unsettled |= self._doubts.is_serious
        rounds = 0
        while budget > 0:
            if self._work is None:
                if not self._doubts or self._must_wait() or rounds == ROUNDS_MAX:
                    break
                rounds += 1
                self._work = self._settle_all()
            budget -= next(self._work, 0) or self._end_work()
        return self._is_settled()

    def _is_settled(self) -> bool:
        is_settled = self._work is None and not self._doubts and not self._scanner.sightings.waiting
        if is_settled:
            self._doubts.is_unsettled = False
        return is_settled

    def _must_wait(self) -> bool:
        """Whether what is left can only be told after more has been drained."""
        return not self._doubts.is_urgent and bool(self._scanner.sightings.waiting)

    def _end_work(self) -> int:
        self._work = None
        return 1

    def _settle_all(self) -> Iterator[int]:
        """One round over all doubts as they are now; new ones that come meanwhile make another round."""
        doubts = self._doubts.take()
        before = self._scanner.changes
        unknown = sorted(doubts.unknown - self._shadow.by_inode.keys())
        self._distrusts_content |= doubts.everywhere_content
        waits = doubts.entries or doubts.checks or self._scanner.sightings.waiting
        doubts.everything |= bool(unknown) and not waits
        news = sorted(set(unknown) - doubts.expected)
        if news and doubts.everything:
            self._sink.gap("unknown-file", f"inodes {news[:8]} were changed and had not been seen before")
        depth = Depth.CHANGED if self._distrusts_content or self._contents.sole_source else Depth.NAMES
        if doubts.everything:
            yield from self._compare_everything(doubts, depth)
        elif doubts.entries or doubts.checks:
            yield from self._scanner.compare(doubts.scope(), deep=False, depth=depth)
        self._give_up_or_keep(unknown, doubts)
        self._follow_lost(doubts)
        self._describing.read_again(doubts.attributes, time.monotonic_ns() // 1000)
        yield from self._read_contents(doubts)
        self.doubt_unreached()
        if self._scanner.changes != before or doubts.contents:
            self._doubts.compared_ns = time.monotonic_ns()
            self.lower_floor()
        if not self._scanner.sightings.waiting:
            self._distrusts_content = False
        yield 1

    def _give_up_or_keep(self, unknown: list[int], doubts: Doubts) -> None:
        """Inodes that were not where we looked: gone, when we looked everywhere."""
        for inode in unknown:
            if inode in self._shadow.by_inode:
                continue
            if doubts.everything and not self._scanner.sightings.waiting:
                self._on_gone(inode, time.monotonic_ns())
            else:
                self._doubts.unknown.add(inode)  # a later round looks everywhere
                self._doubts.expected |= {inode} & doubts.expected

    def _follow_lost(self, doubts: Doubts) -> None:
        """Paths that led through what is a link, or gone by now, may have meant any file."""
        tree = self._shadow.tree
        for entry in doubts.lost:
            child = tree.child(*entry)
            if entry in self._scanner.sightings.waiting:
                self._doubts.lost.add(entry)
            elif not doubts.everything and (child is None or tree.nodes[child].kind is trees.Kind.SYMLINK):
                self._doubts.everything = True

    def _read_contents(self, doubts: Doubts) -> Iterator[int]:
        for file_id in sorted(doubts.contents):
            if not self._shadow.is_file(file_id):
                continue
            try:
                yield from self._scanner.read_file(file_id)
            except rereader.Elsewhere:
                self._doubts.place_of(self._shadow.tree, file_id)
                self._doubts.contents.add(file_id)

    def _compare_everything(self, doubts: Doubts, depth: Depth) -> Iterator[int]:
        """A walk over all directories. What it had to put off may have hidden some: then it is walked
        again.
        """
        sightings, is_alone = self._scanner.sightings, self._contents.sole_source
        self._walks += 1
        sightings.is_impatient = self._walks >= WALKS_MAX or is_alone
        yield from self._scanner.compare({ROOT_ID: None}, deep=True, depth=depth)
        sightings.is_impatient = is_alone
        hidden = self._scanner.unreached & self._shadow.tree.nodes.keys()
        if sightings.waiting or (hidden and not is_alone):
            self._doubts.everything = True
            self._doubts.everywhere_content |= self._distrusts_content
        else:
            self._walks = 0

    def doubt_unreached(self) -> None:
        """Directories that moved while they were to be listed: listed once their records have told
        where to.
        """
        for directory in self._scanner.unreached & self._shadow.tree.nodes.keys():
            if not self._contents.sole_source:  # the portable probe looks at everything again anyway
                self._doubts.directory(directory)
        self._scanner.unreached.clear()

    # ---- whole volumes

    def compare_all(self) -> bool:
        """Everything at once, contents by fingerprint; False when records that wait may explain a
        difference.
        """
        self.lower_floor()
        for _ in self._scanner.compare({ROOT_ID: None}, deep=True, depth=Depth.CHANGED):
            pass
        self._doubts.compared_ns = time.monotonic_ns()
        return not self._scanner.sightings.waiting

    def scan_base(self) -> Iterator[Progress]:
        """See ``Observer.scan_base``."""
        self._doubts.is_scanning = True
        self.lower_floor()
        try:
            yield from self._scanner.scan_base()
        finally:
            self._doubts.is_scanning = False
            if self._doubts.unknown - self._shadow.by_inode.keys():
                # Changed while unknown, and not found: removed since, or moved behind the scan's back. Not a
                # gap: look again.
                self._doubts.everything = True
            self._doubts.unknown.clear()
            self.doubt_unreached()
            self._doubts.compared_ns = time.monotonic_ns()
            self.lower_floor()

    def rescan(self, cause: str) -> Iterator[int]:
        """See ``Observer.rescan``."""
        sightings, is_alone = self._scanner.sightings, self._contents.sole_source
        if cause:
            self._sink.gap(cause, "everything is compared with what was known")
        self.lower_floor()
        self._doubts.is_scanning = sightings.is_impatient = True
        try:
            yield from self._scanner.compare({ROOT_ID: None}, deep=True, depth=Depth.CHANGED)
        finally:
            self._doubts.is_scanning = False
            sightings.is_impatient = is_alone
            self._doubts.compared_ns = time.monotonic_ns()
            if self._scanner.unreached and not is_alone:
                self._doubts.everything = self._doubts.everywhere_content = True
            self._scanner.unreached.clear()
