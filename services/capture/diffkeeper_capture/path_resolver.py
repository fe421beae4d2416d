"""From the paths of a system call to entries of the volume, as they were at that point of the log.

Inside the volume paths are walked in the shadow tree, never on disk: the disk is ahead. Outside, only the
disk can say where a path leads, so prefixes are looked up there (through the caller's own root and working
directory while it lives) until one is a directory of the volume. Most calls of a machine have nothing to do
with the volume; they are turned away by one dictionary look-up, with an answer that is at most ``MEMORY_NS``
old.
"""

from __future__ import annotations

import os
import re
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path

from diffkeeper.domain import trees
from diffkeeper.domain.deltas import ROOT_ID
from diffkeeper_capture.records import Record
from diffkeeper_capture.shadow import Shadow

# As Linux: more symbolic links in one path are ELOOP.
HOPS_MAX = 40
# How long what was learnt outside the volume is believed.
MEMORY_NS = 1_000_000_000
REMEMBERED_MAX = 4096
# What means the caller's own process in its paths and would mean this process in ours.
_CALLERS_OWN = re.compile(rb"/+proc/+(?:self|thread-self)(?=/|$)|/+dev(?=/+fd(?:/|$))")
_PROCESS_PATH = re.compile(rb"/proc/[0-9]+(?:/|$)")


@dataclass(frozen=True, slots=True)
class Place:
    """An entry of a directory of the volume; ``file_id`` is what the shadow has there. The root has
    parent 0.
    """

    parent: int
    name: bytes
    file_id: int | None


@dataclass(frozen=True, slots=True)
class Lost:
    """The path leads into the volume, to where the shadow knows nothing: below ``directory`` something was
    missed.
    """

    directory: int
    name: bytes


class Outside:
    """The path does not lead into the volume."""


class Unsure:
    """The path means something in a world of which nobody is left: it may lead into the volume."""


OUTSIDE = Outside()
UNSURE = Unsure()
Resolved = Place | Lost | Outside | Unsure


@dataclass(frozen=True, slots=True)
class Base:
    """What a path is relative to: the directory's inode, and the process that asked. ``is_root``: it is that
    process's root, because the path is an absolute one.
    """

    inode: int
    device: int
    tgid: int
    mount_ns: int
    now_ns: int
    is_root: bool = False


class PathResolver:
    """For one volume. ``device`` is in the kernel's form (major << 20 | minor)."""

    def __init__(self, shadow: Shadow, root: Path, status: os.stat_result) -> None:
        self.device = kernel_device(status.st_dev)
        self._shadow = shadow
        self._root = (status.st_dev, status.st_ino)
        self._own_ns = os.stat("/proc/self/ns/mnt").st_ino
        own = {os.fsencode(os.path.abspath(root)), os.fsencode(os.path.realpath(root))}
        # Text by which our own mount namespace names the root. Being mounted over is noticed by
        # ``check_root``.
        self._own_prefixes = tuple(sorted(own))
        self._real = os.fsencode(os.path.realpath(root))
        self._above = _ancestors(self._real)
        self._proc_device = os.stat("/proc/self").st_dev
        machine_root = os.stat("/")
        self._own_root = (kernel_device(machine_root.st_dev), machine_root.st_ino)
        # (namespace, base device and inode if relative, directory as written) → (where it enters or None,
        # until when).
        self._outside: dict[tuple[int, int, int, bytes], tuple[tuple[int, bytes] | None, int]] = {}
        # (namespace, device and inode of the root) → a process seen there, and until when nobody was.
        self._living: dict[tuple[int, int, int], int] = {}
        self._deserted: dict[tuple[int, int, int], int] = {}
        # Of the path resolved last: it was looked up in our own world for want of its caller's.
        self._is_world_gone = False

    def entry(self, base: Base, path: bytes) -> Resolved:
        """The entry that a path names, its last component not followed."""
        return self._resolve(_based(base, path), path, follow=False)

    def target(self, base: Base, path: bytes) -> Resolved:
        """The entry that a path leads to, symbolic links followed to the end."""
        return self._resolve(_based(base, path), path, follow=True)

    def _resolve(self, base: Base, path: bytes, *, follow: bool, hops: int = 0) -> Resolved:
        if hops > HOPS_MAX:
            return OUTSIDE
        if not path:
            file_id = self._known(base)
            return OUTSIDE if file_id is None else self._place_of(file_id)
        if not path.startswith(b"/"):
            at = self._known(base)
            if at is not None and self._shadow.is_directory(at):
                return self._walk(base, at, path, follow=follow, hops=hops)
        elif base.is_root and (at := self._known(base)) is not None and self._shadow.is_directory(at):
            return self._walk(base, at, path, follow=follow, hops=hops)  # its root is in the volume
        start = self._enter(base, path, follow)
        if start is None:
            return UNSURE if self._is_world_gone else OUTSIDE
        return self._walk(base, start[0], start[1], follow=follow, hops=hops)

    def _known(self, base: Base) -> int | None:
        if base.device and base.device != self.device:
            return None
        return self._shadow.by_inode.get(base.inode)

    # ---- inside the volume

    def _walk(self, base: Base, at: int, rest: bytes, *, follow: bool, hops: int) -> Resolved:
        """Walk ``rest`` from the directory ``at`` in the shadow."""
        nodes = self._shadow.tree.nodes
        parts = deque(part for part in rest.split(b"/") if part not in (b"", b"."))
        # ``lstat("link/")`` follows the link.
        follow = follow or rest.endswith((b"/", b"/."))
        while parts:
            name = parts.popleft()
            if name == b"..":
                if at == ROOT_ID:
                    return self._leave(base, parts, follow, hops)
                at = self._above_of(at)
                continue
            child = self._shadow.tree.child(at, name)
            is_last = not parts
            node = nodes.get(child) if child is not None else None
            if node is not None and node.kind is trees.Kind.SYMLINK and (follow or not is_last):
                hops += 1
                if hops > HOPS_MAX:
                    return OUTSIDE
                if node.target.startswith(b"/"):
                    root = self._root_of(base)
                    if root is None:
                        return Lost(at, name)
                    return self._again(root, b"/".join((node.target, *parts)), follow, hops)
                parts.extendleft(
                    part for part in reversed(node.target.split(b"/")) if part not in (b"", b".")
                )
                continue
            if is_last:
                return Place(at, name, child)
            if node is None or child is None or node.kind is not trees.Kind.DIR:
                return Lost(at, name)
            at = child
        return self._place_of(at)

    def _leave(self, base: Base, parts: deque[bytes], follow: bool, hops: int) -> Resolved:
        """Up from the root, as it stands in our own namespace; a path may come back in."""
        device, inode = self._own_root
        own = Base(inode, device, base.tgid, self._own_ns, base.now_ns, is_root=True)
        return self._again(own, b"/".join((os.path.dirname(self._real), *parts)), follow, hops)

    def _again(self, base: Base, path: bytes, follow: bool, hops: int) -> Resolved:
        return self._resolve(base, path, follow=follow, hops=hops + 1)

    def _above_of(self, directory: int) -> int:
        return next(iter(self._shadow.tree.nodes[directory].entries))[0]

    def _place_of(self, file_id: int) -> Resolved:
        if file_id == ROOT_ID:
            return Place(0, b"", ROOT_ID)
        node = self._shadow.tree.nodes.get(file_id)
        if node is None or not node.entries:
            return OUTSIDE
        parent, name = min(node.entries)
        return Place(parent, name, file_id)

    # ---- outside the volume

    def _enter(self, base: Base, path: bytes, follow: bool) -> tuple[int, bytes] | None:
        """Where a path from outside gets into the volume: (directory id, what is left of the path)."""
        self._is_world_gone = False
        is_absolute = path.startswith(b"/")
        if is_absolute:
            if self._sees_as_we_do(base):
                for prefix in self._own_prefixes:
                    if path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in (b"", b"/"):
                        return ROOT_ID, path[len(prefix) :]
        else:
            tail = self._above.get((base.device, base.inode))
            if tail is not None:
                rest = _without(path, tail)
                if rest is not None:
                    return ROOT_ID, rest
            if b"/" not in path and not follow:
                return None
        return self._look_outside(base, path, follow, is_absolute)

    def _look_outside(
        self, base: Base, path: bytes, follow: bool, is_absolute: bool
    ) -> tuple[int, bytes] | None:
        own = _CALLERS_OWN.match(path) if is_absolute else None
        if own is not None:
            path = b"/proc/%d/%s" % (base.tgid, path[own.end() :].lstrip(b"/"))
        head, slash, last = path.rstrip(b"/").rpartition(b"/")
        directory = path if follow else head + slash
        if own is not None:
            # Never remembered: what a descriptor stands for changes from call to call.
            found = self._search([b""], directory, is_absolute)
            return found if found is None or follow else (found[0], found[1] + b"/" + last)
        key = (base.mount_ns, base.device, base.inode, directory)
        remembered = self._outside.get(key)
        if remembered is not None and remembered[1] > base.now_ns and self._holds(remembered[0]):
            found = remembered[0]
        else:
            found = self._search(self._views(base, is_absolute), directory, is_absolute)
            if len(self._outside) >= REMEMBERED_MAX:
                self._outside.clear()
            self._outside[key] = (found, base.now_ns + MEMORY_NS)
        if found is None:
            return None
        return found if follow else (found[0], found[1] + b"/" + last)

    def _holds(self, found: tuple[int, bytes] | None) -> bool:
        return found is None or found[0] in self._shadow.tree.nodes

    def _sees_as_we_do(self, base: Base) -> bool:
        """Whether the caller has our mount namespace and our root; a base of 0 is a record that does
        not say.
        """
        has_own_root = not base.inode or (base.device, base.inode) == self._own_root
        return base.mount_ns in (self._own_ns, 0) and has_own_root

    def _search(self, views: list[bytes], path: bytes, is_absolute: bool) -> tuple[int, bytes] | None:
        """Look up ever longer prefixes on disk until one is a directory (or, whole, a file) of the volume."""
        for view in views:
            end = 1 if is_absolute else 0
            while end < len(path):
                end = _next_slash(path, end + 1)
                try:
                    status = os.stat(view + path[:end])
                except OSError:
                    break
                if status.st_dev == self._proc_device and not _PROCESS_PATH.match(path):
                    return None  # by some link into /proc, where "self" would be this process
                if (status.st_dev, status.st_ino) == self._root:
                    return ROOT_ID, path[end:]
                if status.st_dev == self._root[0] and status.st_ino in self._shadow.by_inode:
                    return self._inside(self._shadow.by_inode[status.st_ino], path[end:])
            else:
                return None
        return None

    def _inside(self, file_id: int, rest: bytes) -> tuple[int, bytes] | None:
        if self._shadow.is_directory(file_id):
            return file_id, rest
        place = self._place_of(file_id)
        return (place.parent, place.name) if isinstance(place, Place) else None

    def _views(self, base: Base, is_absolute: bool) -> list[bytes]:
        """Prefixes through which the caller's paths can be looked up here, best first."""
        proc = b"/proc/%d" % base.tgid
        if not is_absolute:
            try:
                status = os.stat(proc + b"/cwd")
            except OSError:
                return []
            is_base = (kernel_device(status.st_dev), status.st_ino) == (base.device, base.inode)
            return [proc + b"/cwd/"] if is_base else []
        if self._sees_as_we_do(base):
            return [b""]
        world = (base.mount_ns, base.device, base.inode)
        for tgid in (base.tgid, self._living.get(world, base.tgid)):
            if self._world_of(tgid) == world:
                self._living[world] = tgid
                return [b"/proc/%d/root" % tgid]
        found = self._search_living(world, base.now_ns)
        if found is not None:
            return [b"/proc/%d/root" % found]
        # The caller is gone and so is everyone there: most namespaces share most paths.
        self._is_world_gone = True
        return [b""]

    def _search_living(self, world: tuple[int, int, int], now_ns: int) -> int | None:
        """Some process of a world. That there is none is believed for a while, for looking costs."""
        if self._deserted.get(world, 0) > now_ns:
            return None
        for name in os.listdir("/proc"):
            if name.isdigit() and self._world_of(int(name)) == world:
                self._living[world] = int(name)
                return int(name)
        if len(self._deserted) >= REMEMBERED_MAX:
            self._deserted.clear()
        self._deserted[world] = now_ns + MEMORY_NS
        return None

    def _root_of(self, base: Base) -> Base | None:
        """The root of the caller, from which an absolute link goes on; None when nobody knows it any more."""
        if base.is_root:
            return base
        world = self._world_of(base.tgid)
        if world is not None and base.mount_ns in (world[0], 0):
            return replace(base, device=world[1], inode=world[2], is_root=True)
        if base.mount_ns in (self._own_ns, 0):
            return replace(base, device=self._own_root[0], inode=self._own_root[1], is_root=True)
        return None

    def _world_of(self, tgid: int) -> tuple[int, int, int] | None:
        """(mount namespace, device and inode of the root) of a process, None when it has ended."""
        try:
            namespace = os.stat(f"/proc/{tgid}/ns/mnt").st_ino
            root = os.stat(f"/proc/{tgid}/root")
        except OSError:
            return None
        return namespace, kernel_device(root.st_dev), root.st_ino


def _based(base: Base, path: bytes) -> Base:
    return replace(base, is_root=True) if path.startswith(b"/") else base


def _next_slash(path: bytes, start: int) -> int:
    at = path.find(b"/", start)
    return len(path) if at < 0 else at


def kernel_device(device: int) -> int:
    return os.major(device) << 20 | os.minor(device)


def _ancestors(root: bytes) -> dict[tuple[int, int], tuple[bytes, ...]]:
    """Directories above the root, by (kernel device, inode): the names that lead from each down to the
    root.
    """
    above: dict[tuple[int, int], tuple[bytes, ...]] = {}
    tail: tuple[bytes, ...] = ()
    at = root
    while at != b"/":
        at, name = os.path.split(at)
        tail = (name, *tail)
        status = os.stat(at)
        above[(kernel_device(status.st_dev), status.st_ino)] = tail
    return above


def _without(path: bytes, tail: tuple[bytes, ...]) -> bytes | None:
    """``path`` without the leading components ``tail``; None when it does not begin with them."""
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if tuple(parts[: len(tail)]) != tail:
        return None
    rest = b"/".join(parts[len(tail) :])
    return rest + b"/" if path.endswith(b"/") and rest else rest


def base_of(record: Record, which: int = 1) -> Base:
    """The first or the second base directory of a PATH record."""
    if which == 1:
        return Base(record.inode, record.device, record.tgid, record.mount_ns, record.end_ns)
    return Base(record.inode2, record.device2, record.tgid, record.mount_ns, record.end_ns)


__all__ = [
    "OUTSIDE",
    "Base",
    "Lost",
    "Outside",
    "PathResolver",
    "Place",
    "Resolved",
    "Unsure",
    "base_of",
    "kernel_device",
]
