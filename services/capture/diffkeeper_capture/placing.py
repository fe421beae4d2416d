"""Where the paths of a record lead in the shadow, and what becomes doubtful when they lead to nothing known."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable

from diffkeeper.domain import trees
from diffkeeper_capture import rereader
from diffkeeper_capture.doubts import Doubts
from diffkeeper_capture.framer import FrameSink
from diffkeeper_capture.path_resolver import Base, Lost, PathResolver, Place, Resolved, Unsure, base_of
from diffkeeper_capture.records import Flag, Record
from diffkeeper_capture.shadow import Shadow, readable

# How many changes of attributes are remembered: more than any machine has calls in flight.
REMEMBERED = 256


class Placer:
    """Of one volume."""

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
        # Whether the path resolved last leads to where nothing is known.
        self.was_lost = False
        self._forgot_ns = 0
        # Whether any path of the record at hand leads into the volume.
        self.is_inside = False
        # By-path changes of what files are, lately: when the call ended, the id it was taken to mean, and the
        # name of the attribute (b"" for times, None for mode and owner).
        self._described: deque[tuple[int, int, bytes | None]] = deque(maxlen=REMEMBERED)

    def forget_before(self, end_ns: int) -> None:
        """See ``Naming.forget_before``."""
        self._forgot_ns = end_ns

    def note_described(self, record: Record, file_id: int, name: bytes | None) -> None:
        self._described.append((record.end_ns, file_id, name))

    def must_be_known(self, record: Record, place: Place | None) -> int | None:
        if place is None:
            return None
        if place.file_id is None:
            self.contradiction(record, place.parent, place.name, "what was changed is not known")
            self._doubts.everything = True  # it may stand elsewhere by the time that somebody looks
        elif place.parent:
            self.check_if_uncertain(record, (place.parent, place.name))
        # By a name that may have been another's: then all have to be looked at.
        self._doubts.everything |= not self._doubts.is_news(record.end_ns)
        return place.file_id

    # ---- resolving, looking

    def entry(self, record: Record, path: bytes, which: int = 1) -> Place | None:
        base = base_of(record, which)
        return self.placed(record, base, path, self._resolver.entry(base, path))

    def target(self, record: Record, path: bytes) -> Place | None:
        base = base_of(record)
        return self.placed(record, base, path, self._resolver.target(base, path))

    def placed(self, record: Record, base: Base, path: bytes, resolved: Resolved) -> Place | None:
        """None for what is outside; what leads to nothing known is doubted."""
        self.was_lost = isinstance(resolved, Lost)
        self.is_inside |= isinstance(resolved, Place | Lost)
        if isinstance(resolved, Place):
            return resolved
        if isinstance(resolved, Lost):
            entry = resolved.directory, resolved.name
            self.contradiction(record, *entry, "a path leads to what is not known")
            self._doubts.lost.add(entry)
        elif isinstance(resolved, Unsure):
            if self._is_ours(record.tgid):
                detail = f"process {record.tgid} is gone with its mounts: {readable(path[:200])}"
                self._sink.gap("path-not-known", detail)
                self._doubts.everything = self._doubts.everywhere_content = True
        elif self._may_be_ours(base, path):
            self.doubt_unmapped()
        return None

    def _may_be_ours(self, base: Base, path: bytes) -> bool:
        """Whether a path is relative to what may be one of our directories whose number is not known yet."""
        is_here = base.device in (0, self._resolver.device) and base.inode not in self._shadow.by_inode
        return is_here and not path.startswith(b"/")

    def doubt_unmapped(self) -> None:
        for file_id in self._shadow.unmapped:
            if self._shadow.is_directory(file_id):
                self._doubts.place_of(self._shadow.tree, file_id)

    def look(self, parent: int, name: bytes, kind: trees.Kind) -> os.stat_result | None:
        try:
            status = self._reader.look(parent, name)
        except rereader.Elsewhere:
            return None
        return status if status is not None and rereader.kind_of(status.st_mode) is kind else None

    def status(self, file_id: int) -> os.stat_result | None:
        try:
            return self._reader.status_of(file_id)
        except rereader.Elsewhere:
            return None

    # ---- doubts

    def contradiction(self, record: Record, parent: int, name: bytes, why: str) -> None:
        if self._doubts.is_news(record.end_ns) and not record.flags & Flag.OVERLAPPED_NAMES:
            self._sink.gap(
                "contradiction", f"{why}: {readable(name)} in {self._shadow.readable_path(parent)}", parent
            )
        self._doubts.entry(parent, name)

    def check_if_uncertain(self, record: Record, *places: tuple[int, bytes]) -> None:
        if self.is_uncertain(record):
            for place in places:
                self._doubts.check(*place)
            self._doubt_described(record, places)

    def _doubt_described(self, record: Record, places: tuple[tuple[int, bytes], ...]) -> None:
        """What was described while this call ran may have been what it put under the name, or took away."""
        tree = self._shadow.tree
        meant = {child for place in places if (child := tree.child(*place)) is not None}
        if record.start_ns <= self._forgot_ns:
            self._doubts.everything = self._doubts.everywhere_content = True
        for end_ns, file_id, name in self._described:
            if end_ns < record.start_ns:
                continue
            for one in (file_id, *meant):
                if name is not None:
                    self._doubts.attributes.add((one, name))
                elif one in tree.nodes:
                    for entry in tree.nodes[one].entries:
                        self._doubts.check(*entry)

    def is_uncertain(self, record: Record) -> bool:
        """Whether names may have been others when the call was made than the shadow has them now."""
        return bool(record.flags & Flag.OVERLAPPED_NAMES) or not self._doubts.is_news(record.end_ns)
