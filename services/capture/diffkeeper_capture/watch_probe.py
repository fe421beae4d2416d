"""The portable probe: without rights for BPF, learn that something changed, and compare.

``watchfiles`` names paths that may have changed; their entries are compared with what is known, contents by
digests of pages. What was overwritten between two looks is never seen, so fidelity is ``scan``. A barrier does
not trust notifications, which may be late: it looks at every entry of the volume, and reads each file whose
size or times differ from what is known. Stores through a mapping may change no time stamp, so files that some
process has mapped are read at each barrier; and from time to time everything is read, whatever it looks like.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from diffkeeper.domain import errors
from diffkeeper.domain.deltas import ROOT_ID, is_name
from diffkeeper_capture.mapped_files import mapped_inodes
from diffkeeper_capture.observer import Observer
from diffkeeper_capture.scanner import Depth, Progress
from diffkeeper_capture.shadow import Shadow

if TYPE_CHECKING:
    import watchfiles

# A burst of changes is looked at once, at the latest this long after its first.
DEBOUNCE_MS = 100
STEP_MS = 10
# How long a wait for changes may keep a stop waiting.
WAIT_MS = 200
FULL_LOOK_INTERVAL_NS = 30_000_000_000
# Everything is read again, so that whatever was missed is found. Costs the reading, and logs only what differs.
DEEP_LOOK_INTERVAL_NS = 3600 * 1_000_000_000
# More paths at once than this: looking at everything is cheaper and surely right.
PATHS_MAX = 10_000

Scope = dict[int, frozenset[bytes] | None]


class WatchProbe:
    """Watches one volume for an observer made with ``sole_source``.

    One task awaits ``changed_paths`` and then runs ``collect``; a barrier runs ``barrier``. Both are steps
    that yield the bytes read, so that frames are shipped between them. Use as a context manager; watching
    begins on entry.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._real = os.fsencode(os.path.realpath(root))
        self._stop = threading.Event()
        self._changed: set[bytes] = set()
        self._looked_ns = self._read_ns = time.monotonic_ns()
        # Inodes that were mapped at the last barrier: the last stores may have come after it.
        self._mapped: set[int] = set()
        self._changes: Iterator[set[tuple[watchfiles.Change, str]]] | None = None

    def __enter__(self) -> WatchProbe:
        import watchfiles  # only here: it brings megabytes that an agent with the exact probe does not need

        self._changes = watchfiles.watch(
            os.fsdecode(self._real),
            watch_filter=None,
            debounce=DEBOUNCE_MS,
            step=STEP_MS,
            stop_event=self._stop,
            rust_timeout=WAIT_MS,
            yield_on_timeout=True,
            raise_interrupt=False,
            ignore_permission_denied=True,
        )
        self._wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the watching; a waiting ``changed_paths`` returns within ``WAIT_MS``."""
        self._stop.set()

    def scan_base(self, observer: Observer) -> Iterator[Progress]:
        """The first sight, with everything that changed while it went on."""
        yield from observer.scan_base()
        for _ in self.barrier(observer):
            pass

    async def changed_paths(self) -> frozenset[bytes]:
        """Waits until something changed or everything is due to be looked at; paths relative to the root."""
        while not self._stop.is_set() and not self._changed and not self._is_full_look_due():
            await asyncio.to_thread(self._wait)
        return frozenset(self._changed)

    def _wait(self) -> None:
        assert self._changes is not None, "watching begins on entry"
        try:
            changes = next(self._changes, None)
        except (FileNotFoundError, RuntimeError) as error:
            raise errors.Misconfigured(
                f"the directory {self._root} of a volume cannot be watched ({error}); "
                "nothing was deleted anywhere",
                reason="root-missing",
                hint="mount it again or put it back, then attach the volume again",
                path=str(self._root),
            ) from error
        for _, path in changes or ():
            self._changed.add(os.fsencode(path)[len(self._real) + 1 :])

    def _is_full_look_due(self) -> bool:
        return time.monotonic_ns() - self._looked_ns >= FULL_LOOK_INTERVAL_NS

    def collect(self, observer: Observer) -> Iterator[int]:
        """Compare what changed since the last call, or everything when that is due."""
        if self._is_full_look_due() or len(self._changed) > PATHS_MAX:
            yield from self.barrier(observer)
            return
        changed, self._changed = self._changed, set()
        if changed:
            yield from observer.compare(_scope(observer.shadow, changed), deep=False, depth=Depth.CHANGED)

    def barrier(self, observer: Observer) -> Iterator[int]:
        """Everything that was changed before this call is in the log after the last step."""
        self._changed.clear()
        self._looked_ns = time.monotonic_ns()
        self._distrust(observer)
        yield from observer.compare({ROOT_ID: None}, deep=True, depth=Depth.CHANGED)

    def read_everything(self, observer: Observer) -> Iterator[int]:
        """A barrier that believes no size and no time."""
        self._read_ns = 0
        yield from self.barrier(observer)

    def _distrust(self, observer: Observer) -> None:
        """Forget what files looked like that may have changed without looking otherwise."""
        mapped = set(mapped_inodes(observer.reader.device))
        if self._looked_ns - self._read_ns >= DEEP_LOOK_INTERVAL_NS:
            self._read_ns = self._looked_ns
            suspects = set(observer.contents.known)
        else:
            by_inode = observer.shadow.by_inode
            suspects = {by_inode[inode] for inode in mapped | self._mapped if inode in by_inode}
        for file_id in suspects:
            observer.contents.touch(file_id)
        self._mapped = mapped


def _scope(shadow: Shadow, changed: set[bytes]) -> Scope:
    """For each path the deepest known directory on the way to it, and the name to look at there."""
    names: dict[int, set[bytes] | None] = {}
    for path in changed:
        directory, name = ROOT_ID, b""
        for part in path.split(b"/"):
            child = shadow.tree.child(directory, name) if name else ROOT_ID
            if child is None or not shadow.is_directory(child):
                break
            directory, name = child, part
        there = names.setdefault(directory, set())
        if not is_name(name) or b"\xef\xbf\xbd" in name:
            names[directory] = (
                None  # the root itself, or a name that is not UTF-8 and was told with replacements
            )
        elif there is not None:
            there.add(name)
    return {directory: None if of is None else frozenset(of) for directory, of in names.items()}
