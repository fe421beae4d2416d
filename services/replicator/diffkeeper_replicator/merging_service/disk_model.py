"""What the merger last knew to stand in the site's directory: entry by entry, with the inode it is there.

Whatever differs from it on disk was done by a program of the site, since the merger notes what it does itself.
In memory, with each change written to the store.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from pathlib import Path

from diffkeeper.domain import errors, trees
from diffkeeper.domain.shared_ops import ROOT
from diffkeeper_replicator import safe_paths
from diffkeeper_replicator.merging_service.store import Store

READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_RENAME_NOREPLACE = 1
_libc = ctypes.CDLL(None, use_errno=True)
_libc.renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
ASIDE_INSIDE = b".diffkeeper-aside"


@dataclass(frozen=True, slots=True)
class Standing:
    """An entry on disk. ``ctime_ns`` 0: look at the content again, whatever the times say."""

    parent: bytes
    name: bytes
    kind: int
    device: int
    inode: int
    generation: int
    mode: int = 0
    size: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    digest: bytes = b""

    def is_node(self, found: trees.Identity) -> bool:
        return (self.device, self.inode, self.generation) == (found.device, found.inode, found.generation)

    def looks_like(self, found: os.stat_result) -> bool:
        return self.ctime_ns != 0 and (self.size, self.mtime_ns, self.ctime_ns) == (
            found.st_size,
            found.st_mtime_ns,
            found.st_ctime_ns,
        )


class DiskModel:
    def __init__(self, store: Store) -> None:
        self._store = store
        self.standing: dict[bytes, Standing] = {}
        self._children: dict[bytes, dict[bytes, bytes]] = {}
        self._by_inode: dict[tuple[int, int], set[bytes]] = {}
        for entry_id, fields in store.disk():
            self._add(entry_id, Standing(*fields))

    def _add(self, entry_id: bytes, standing: Standing) -> None:
        self.standing[entry_id] = standing
        self._children.setdefault(standing.parent, {})[standing.name] = entry_id
        self._by_inode.setdefault((standing.device, standing.inode), set()).add(entry_id)

    def put(self, entry_id: bytes, standing: Standing) -> None:
        self._take_away(entry_id)
        self._add(entry_id, standing)
        self._store.put_disk(entry_id, list(astuple(standing)))

    def change(self, entry_id: bytes, **fields: object) -> None:
        self.put(entry_id, replace(self.standing[entry_id], **fields))  # type: ignore[arg-type]

    def drop(self, entry_id: bytes) -> None:
        if self._take_away(entry_id):
            self._store.drop_disk(entry_id)

    def _take_away(self, entry_id: bytes) -> bool:
        old = self.standing.pop(entry_id, None)
        if old is None:
            return False
        siblings = self._children[old.parent]
        if siblings.get(old.name) == entry_id:
            del siblings[old.name]
        same = self._by_inode[old.device, old.inode]
        same.discard(entry_id)
        if not same:
            del self._by_inode[old.device, old.inode]
        return True

    def children(self, directory: bytes) -> dict[bytes, bytes]:
        return self._children.get(directory, {})

    def of_inode(self, found: trees.Identity) -> list[bytes]:
        same = self._by_inode.get((found.device, found.inode), ())
        return sorted(key for key in same if self.standing[key].is_node(found))

    def path(self, entry_id: bytes) -> bytes | None:
        """Where an entry stands on disk; ``b""`` is the root, None: nowhere."""
        parts: list[bytes] = []
        while entry_id != ROOT:
            at = self.standing.get(entry_id)
            if at is None:
                return None
            parts.append(at.name)
            entry_id = at.parent
        return b"/".join(reversed(parts))

    def below(self, entry_id: bytes) -> Iterator[bytes]:
        """Everything below an entry, deepest first."""
        for child in list(self.children(entry_id).values()):
            yield from self.below(child)
            yield child

    def walk(self, path: bytes) -> tuple[bytes, bytes] | None:
        """(directory entry, name) of the first name on the way that is not known, or of the last one."""
        at = ROOT
        names = [name for name in path.split(b"/") if name]
        for index, name in enumerate(names):
            below = self.children(at).get(name)
            if below is None or index == len(names) - 1:
                return at, name
            at = below
        return None


class Directory:
    """The site's directory: every access goes below its root without following links."""

    def __init__(self, path: Path, device_hint: Path) -> None:
        self.path = path
        try:
            self.fd = safe_paths.open_root(path)
        except OSError as error:
            raise _gone(path, str(error)) from error
        self.aside = _aside(path, self.fd, device_hint)
        self.aside.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.aside_fd = safe_paths.open_root(self.aside)

    def close(self) -> None:
        os.close(self.fd)
        os.close(self.aside_fd)

    def identity(self) -> list[int]:
        found = safe_paths.identity(self.fd)
        return [found.device, found.inode, found.generation]

    def check_there(self) -> None:
        """Raises Misconfigured when the path leads to another directory by now, which is a fault and no removal."""
        try:
            found = os.stat(self.path, follow_symlinks=False)
        except OSError as error:
            raise _gone(self.path, str(error)) from error
        mine = os.fstat(self.fd)
        if (found.st_dev, found.st_ino) != (mine.st_dev, mine.st_ino):
            raise _gone(self.path, "another directory stands there, or another file system is mounted")

    def open_directory(self, path: bytes) -> int:
        return safe_paths.open_beneath(self.fd, path, safe_paths.DIR_FLAGS)


def look(dir_fd: int, name: bytes) -> tuple[os.stat_result, trees.Identity, trees.Kind] | None:
    """What stands at a name; None: nothing, or what no volume holds (sockets, devices)."""
    try:
        found = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None
    kind = safe_paths.kind_of(found.st_mode)
    if kind is None or found.st_dev != os.fstat(dir_fd).st_dev:
        return None
    generation = 0
    if kind in (trees.Kind.FILE, trees.Kind.DIR):
        try:
            fd = os.open(name, READ_FLAGS, dir_fd=dir_fd)
        except FileNotFoundError:
            return None
        except OSError:
            return found, trees.Identity(found.st_dev, found.st_ino, 0), kind
        try:
            found = os.fstat(fd)
            generation = safe_paths.generation(fd)
        finally:
            os.close(fd)
        kind = safe_paths.kind_of(found.st_mode)
        if kind is None:
            return None
    return found, trees.Identity(found.st_dev, found.st_ino, generation), kind


def rename_to_free(src_fd: int, src: bytes, dst_fd: int, dst: bytes) -> None:
    """Rename to a name that nobody has; FileExistsError otherwise."""
    if _libc.renameat2(src_fd, src, dst_fd, dst, _RENAME_NOREPLACE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), src, None, dst)


def permissions(mode: int) -> int:
    """Set-id bits do not travel."""
    return stat.S_IMODE(mode) & 0o1777


def _aside(path: Path, fd: int, beside: Path) -> Path:
    """Where files are made before they appear: on the same file system, outside the volume if that can be."""
    device = os.fstat(fd).st_dev
    beside.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.stat(beside).st_dev == device:
        return beside
    if os.stat(path.parent).st_dev == device and not os.path.ismount(path):
        return path.parent / f".{path.name}.diffkeeper-aside"
    return path / os.fsdecode(ASIDE_INSIDE)


def _gone(path: Path, why: str) -> errors.Misconfigured:
    return errors.Misconfigured(
        f"the directory {path} of a shared volume is gone: {why}; nothing was removed anywhere",
        reason="source-replaced",
        hint="mount it again, or put it back",
        path=path,
    )
