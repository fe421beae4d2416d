"""What writing a site's directory needs of everything: where an entry stands, whether it is as the merger left it, and
names in the directory aside.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field

from diffkeeper.domain import trees
from diffkeeper_replicator.merging_service import disk_model
from diffkeeper_replicator.merging_service.disk_model import Directory, DiskModel, Standing
from diffkeeper_replicator.merging_service.displaced import Displaced
from diffkeeper_replicator.merging_service.shared_state import SharedState

# Before the id of an entry that is on its way from one place to another.
ASIDE = b"aside:"
MODE_UNKNOWN = 0o644

# An entry, and the directory and name it is to have.
Wanted = tuple[bytes, bytes, bytes]


@dataclass(slots=True)
class Round:
    written: int = 0
    # Paths where something else stands than was left there.
    look: set[bytes] = field(default_factory=set)
    left_out: dict[bytes, str] = field(default_factory=dict)


class Workplace:
    def __init__(
        self, state: SharedState, disk: DiskModel, directory: Directory, displaced: Displaced
    ) -> None:
        self.state = state
        self.disk = disk
        self.directory = directory
        self.displaced = displaced
        self.owners = os.geteuid() == 0
        root = os.fstat(directory.fd)
        self.owner = (root.st_uid, root.st_gid)
        self._number = 0

    def live(self, standing: Standing) -> tuple[os.stat_result, trees.Identity, trees.Kind] | None:
        path = self.disk.path(standing.parent)
        if path is None:
            return None
        try:
            fd = self.directory.open_directory(path)
        except OSError:
            return None
        try:
            return disk_model.look(fd, standing.name)
        finally:
            os.close(fd)

    def is_as_left(self, entry_id: bytes, outcome: Round) -> bool:
        """Whether nobody has touched an entry since; otherwise it is to be looked at first."""
        standing = self.disk.standing[entry_id]
        found = self.live(standing)
        same = found is not None and standing.is_node(found[1])
        if same and standing.kind == trees.Kind.FILE:
            assert found is not None, "it is the same"
            same = standing.looks_like(found[0])
        if not same:
            outcome.look.add(self.path(entry_id))
        return same

    def path(self, entry_id: bytes) -> bytes:
        return self.disk.path(entry_id) or b""

    def new_aside(self) -> bytes:
        self._number += 1
        return f"{self.state.site}-{os.getpid()}-{self._number}".encode()

    def open(self, directory: bytes) -> int:
        path = self.disk.path(directory)
        if path is None:
            raise OSError(errno.ENOENT, "a directory is not there")
        return self.directory.open_directory(path)

    def base_of(self, object_id: bytes) -> bytes:
        """The state of the document that a file on disk was made from."""
        kept = self.state.store.document(object_id) if object_id else None
        return b"" if kept is None else (kept.state if kept.base is None else kept.base)

    def set_mode(self, entry_id: bytes) -> bool:
        standing = self.disk.standing[entry_id]
        found = self.state.tree.objects.get(self.state.tree.entries[entry_id].object)
        if found is None or not found.attributes_at[0] or standing.kind == trees.Kind.SYMLINK:
            return False
        wanted = found.mode & 0o1777
        if wanted == standing.mode:
            return False
        fd = self.open(standing.parent)
        try:
            path_fd = os.open(standing.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        except FileNotFoundError:
            return False
        finally:
            os.close(fd)
        try:
            now = os.fstat(path_fd)
            if now.st_ino != standing.inode or stat.S_ISLNK(now.st_mode):
                return False
            os.chmod(f"/proc/self/fd/{path_fd}", wanted)
        finally:
            os.close(path_fd)
        self.disk.change(entry_id, mode=wanted, ctime_ns=0)
        return True


def join(directory: bytes | None, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name


def fields(standing: Standing) -> list[object]:
    return [getattr(standing, key) for key in Standing.__dataclass_fields__]
