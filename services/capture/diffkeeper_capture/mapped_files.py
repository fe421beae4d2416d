"""Files that change without system calls: some process has them mapped writable and shared (a SQLite
``-shm``, an LMDB), or the kernel itself writes to them.

At a barrier, and about once a second between barriers, they are made equal to the log. Where the kernel names
pages as they turn dirty, only those are read (``DirtyPages``); on file systems without dirty pages (tmpfs,
overlays), or without that program of the probe, the whole file is (``ComparedFiles``). What is stored and
overwritten between two looks is not seen: the log says so once for each file by a gap.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator

from diffkeeper_capture import rereader
from diffkeeper_capture.compared_files import ComparedFiles
from diffkeeper_capture.dirty_pages import DirtyPages
from diffkeeper_capture.records import Mapping
from diffkeeper_capture.scanner import Arrivals
from diffkeeper_capture.shadow import Shadow

# File systems whose files and mappings are the same inodes, and which tell of each dirty page: ext4, xfs,
# btrfs, f2fs.
_TELL_PAGES = frozenset({0xEF53, 0x58465342, 0x9123683E, 0xF2F52010})
_LIBC = ctypes.CDLL(None, use_errno=True)


class MappedFiles:
    """Of one volume. ``on_follow`` hears that writes to a file that is followed now need thought."""

    def __init__(
        self, shadow: Shadow, reader: rereader.Rereader, root_fd: int, on_follow: Callable[[], None]
    ) -> None:
        self.compared = ComparedFiles(shadow, reader)
        self.dirty = DirtyPages(shadow, reader)
        self._shadow = shadow
        self._reader = reader
        self._on_follow = on_follow
        self._tells_pages = _file_system(root_fd) in _TELL_PAGES
        self._told: set[int] = set()
        self._work: Iterator[int] | None = None
        # Inodes that were mapped or stored to before anybody told that they exist.
        self._expected: dict[int, int] = {}
        shadow.on_forget.append(self._told.discard)

    def __bool__(self) -> bool:
        return bool(self.dirty.pages or self.compared.known)

    def is_followed(self, file_id: int) -> bool:
        return file_id in self.dirty.pages or file_id in self.compared.known

    @property
    def ids(self) -> set[int]:
        """Files that may change untold now."""
        return self.dirty.pages.keys() | self.compared.known.keys()

    def go_on(self, file_id: int, *, is_compared: bool) -> None:
        """Follow a file of which nothing is known: all of its data is logged at the next barrier."""
        self._on_follow()
        if is_compared or not self._tells_pages:
            self.compared.follow(file_id)
        else:
            self.dirty.doubt(file_id)

    def follow(self, file_id: int, mapping: int) -> None:
        """A file is mapped; ``mapping`` is what the kernel side says of it (``records.Mapping``)."""
        self._tell(file_id, "mmap")
        self._on_follow()
        if not (self._tells_pages and mapping & Mapping.FOLLOWED):
            self.compared.follow(file_id)
        elif mapping & Mapping.DIRTY:
            self.dirty.doubt(file_id)

    def dirtied(self, file_id: int, first: int, count: int) -> None:
        """Pages turned dirty outside of the calls that are told."""
        self._tell(file_id, "stored-unseen")
        if file_id not in self.dirty.pages:
            self._on_follow()
        self.dirty.dirtied(file_id, first, count)

    def forget_range(self, file_id: int, offset: int, length: int) -> None:
        self.compared.forget_range(file_id, offset, length)
        self.dirty.forget_range(file_id, offset, length)

    def log_changes(self, at_us: int, budget: int) -> bool:
        """Log what differs; False when more than ``budget`` bytes have to be read: call again."""
        while budget > 0:
            if self._work is None:
                self._work = self._log_all(at_us)
            cost = next(self._work, 0)
            if not cost:
                self._work = None
                return True
            budget -= cost
        return False

    def _log_all(self, at_us: int) -> Iterator[int]:
        yield from self.dirty.log_changes(at_us)
        yield from self.compared.log_changes(at_us)

    def _tell(self, file_id: int, cause: str) -> None:
        if file_id not in self._told:
            self._told.add(file_id)
            detail = (
                f"{self._shadow.readable_path(file_id)}: read again at each barrier as long as it is dirty"
            )
            self._shadow.sink.gap(cause, detail, file_id)

    def arrived(self, file_id: int, fd: int) -> None:
        """A file that was somewhere else until now is about to be read."""
        if self._tells_pages and self.dirty.follow_dirty(file_id, fd):
            self._on_follow()

    def expect(self, inode: int, mapping: int) -> None:
        """A file that is not known yet is mapped, or was stored to; see ``follow``."""
        self._expected[inode] = self._expected.get(inode, mapping) & Mapping.FOLLOWED | Mapping.DIRTY

    def follow_arrivals(self, arrivals: Arrivals) -> None:
        """Files that came to be known by being found: some may have been mapped all the time. Takes the ids."""
        for inode, mapping in self._expected.items():
            file_id = self._shadow.by_inode.get(inode)
            if file_id is not None and self._shadow.is_file(file_id):
                self.follow(file_id, mapping)
        self._expected.clear()
        if arrivals:
            for inode in mapped_inodes(self._reader.device):
                file_id = self._shadow.by_inode.get(inode)
                if file_id is not None and file_id in arrivals and self._shadow.is_file(file_id):
                    # The kernel side does not follow what was mapped before it, or elsewhere.
                    self.follow(file_id, 0)
        arrivals.clear()


def _file_system(fd: int) -> int:
    """The magic number of a file system, 0 when it cannot be told."""
    buffer = (ctypes.c_long * 32)()
    return 0 if _LIBC.fstatfs(fd, buffer) else int(buffer[0]) & 0xFFFF_FFFF


def mapped_inodes(device: int) -> Iterator[int]:
    """Of every file of a device that some process has mapped shared and writable."""
    wanted = b"%02x:%02x" % (os.major(device), os.minor(device))
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/maps", "rb") as maps:
                for line in maps:
                    fields = line.split(None, 5)
                    if len(fields) == 6 and fields[1][1:4:2] == b"ws" and fields[3] == wanted:
                        yield int(fields[4])
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
