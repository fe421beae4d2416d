"""Lazily filled trees from beginning to end: made of a stream of changes without contents, started, gone on with after a
crash, and settled.

The hidden folder beside the target holds ``tree``, ``plan``, ``note.json``, ``source.json``, the marks, and a log. It is
locked by whoever works for it. Where ``kept`` lacks it was never used, and is begun anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from diffkeeper import atomic_files
from diffkeeper.changes import Change
from diffkeeper.directory_writer import DirectoryWriter
from diffkeeper.domain import errors
from diffkeeper.lazy import handles, keeper, places, plans, sources
from diffkeeper.lazy.fanotify import Group, why_not
from diffkeeper.lazy.filler import Filler
from diffkeeper.lazy.inflight import Inflight
from diffkeeper.lazy.marks import Marks, boot_id

TREE = "tree"
_STATUS = "status.json"
# With more files than these the whole file system is synced at once.
_MOST_SYNCED = 2000


class Note(msgspec.Struct, frozen=True):
    """``note.json``. ``temporary``: when its mount is taken away nothing of it stays. ``pin``: the tag that keeps its
    moment for so long.
    """

    target: str
    background: bool
    read_only: bool
    temporary: bool
    pin: str | None = None
    asked: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Made:
    files: int
    bytes: int
    left_out: dict[str, int]


def why_not_here(target: Path) -> str | None:
    """Why a tree for this target cannot be filled on demand; None when it can."""
    return why_not(target.parent)


def read_note(folder: Path) -> Note:
    return msgspec.json.decode((folder / "note.json").read_bytes(), type=Note)


def begun(target: Path) -> Note | None:
    """The tree that stands, or stood, for this target and is not whole."""
    folder = places.folder_of(target)
    try:
        return read_note(folder)
    except FileNotFoundError:
        return None


def make(target: Path, stream: Iterable[Change], where: sources.Address, note: Note) -> Made:
    """Make the tree of a stream (``layout`` of the history) and show it at the target, which is missing or empty.

    When this returns it can be used, and its filler runs. Raises Refused where one is begun already.
    """
    folder = places.folder_of(target)
    folder.mkdir(mode=0o700)
    try:
        lock = _lock(folder)
        group = Group.make(read_only=note.read_only)
    except BaseException:
        shutil.rmtree(folder)
        raise
    try:
        return _make(folder, target, stream, where, note, group, lock)
    except BaseException:
        places.hide(target)
        places.discard(folder, target)
        raise
    finally:
        os.close(lock)
        group.close()


def _make(
    folder: Path,
    target: Path,
    stream: Iterable[Change],
    where: sources.Address,
    note: Note,
    group: Group,
    lock: int,
) -> Made:
    # Python takes longer to start than a tree to be made: the worker waits for ``kept``.
    keeper.start_worker(folder, group, lock)
    tree = folder / TREE
    tree.mkdir(mode=0o755)
    found: list[tuple[bytes, int, int, tuple[tuple[int, int], ...]]] = []
    with DirectoryWriter(tree) as writer:
        for change in stream:
            if change[0] == "sparse":
                _, path, key, size, runs = change
                writer.do(("truncate", path, size))
                found.append((path, key, size, plans.unpack_runs(runs)))
            else:
                writer.do(change)
        left_out = dict(writer.left_out)
    files = tuple(_marked(tree, group, *one) for one in found)
    plan = plans.Plan(where.volume, where.position, boot_id(), files)
    plans.write(folder / "plan", plan)
    sources.write(folder, where)
    atomic_files.write_bytes(folder / "note.json", msgspec.json.encode(note))
    try:
        places.show(tree, target, read_only=note.read_only)
    except OSError as error:
        raise errors.Refused(
            f"the tree cannot be shown at {target}: {error.strerror}", reason="not-mounted"
        ) from error
    _make_durable(folder, plan)
    return Made(len(files), plan.bytes, left_out)


def _make_durable(folder: Path, plan: plans.Plan) -> None:
    """Every name and size of the tree is on disk before anything of it is filled, and so before it is used."""
    tree = os.fsencode(folder / TREE)
    with contextlib.closing(Marks(folder, plan)) as marks:
        if len(plan.files) > _MOST_SYNCED:
            os.sync()
        else:
            names = {tree + b"/" + file.path for file in plan.files}
            names |= {above for name in names for above in _above(tree, name)} | {tree, os.fsencode(folder)}
            for name in names:
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)
        marks.keep(marks.snapshot())


def _above(tree: bytes, name: bytes) -> Iterator[bytes]:
    while (name := name.rpartition(b"/")[0]) != tree:
        yield name


def _marked(
    tree: Path, group: Group, path: bytes, key: int, size: int, runs: tuple[tuple[int, int], ...]
) -> plans.File:
    """Paths come from a stream that was checked, and into a tree that nobody else can enter yet."""
    fd = os.open(os.fsencode(tree) + b"/" + path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if runs and (runs[-1][1] > size):
            raise errors.Corrupt("a stream of changes holds runs beyond a file", reason="malformed-stream")
        status = os.fstat(fd)
        if runs:
            group.mark(fd)
        return plans.File(path, key, size, status.st_ino, handles.of(fd), runs, status.st_mtime_ns)
    finally:
        os.close(fd)


def resume(target: Path, where: sources.Address | None = None) -> bool:
    """Go on with a tree whose filler is gone; False when it still works, or when there is nothing to go on with.

    Raises Corrupt when it was never whole enough to be used: then it is gone, and can be made anew.
    """
    folder = places.folder_of(target)
    try:
        lock = _lock(folder)
    except (FileNotFoundError, BlockingIOError):
        return False
    try:
        if where is not None:
            sources.write(folder, where)
        if not (folder / TREE).exists():
            shutil.rmtree(folder)  # it was whole, and had its place
            return False
        plan = _usable_plan(folder, target)
        (folder / keeper.ENDED).unlink(missing_ok=True)
        Inflight(folder).forget_all()
        read_only = read_note(folder).read_only
        group = Group.make(read_only=read_only)
        try:
            _mark_again(folder, plan, group)
            places.show(folder / TREE, target, read_only=read_only)
            keeper.start_worker(folder, group, lock)
        finally:
            group.close()
        return True
    finally:
        os.close(lock)


def _usable_plan(folder: Path, target: Path) -> plans.Plan:
    try:
        if (folder / "kept").exists():
            return plans.read(folder / "plan")
    except FileNotFoundError:
        pass
    places.discard(folder, target)
    raise errors.Corrupt(
        f"what was begun for {target} had not come far enough to be gone on with; it was taken away",
        reason="tree-not-begun",
        hint="give the same command again",
    )


def _mark_again(folder: Path, plan: plans.Plan, group: Group) -> None:
    """Everything that is not whole, whatever it is called by now."""
    marks = Marks(folder, plan)
    mount_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for nth, file in enumerate(plan.files):
            if not file.runs or marks.is_whole(nth):
                continue
            fd = handles.open_file(mount_fd, file.handle)
            if fd is None:
                marks.set_cut(nth, 0)
                continue
            try:
                group.mark(fd)
            finally:
                os.close(fd)
    finally:
        os.close(mount_fd)
        marks.close()


def end(folder: Path, *, whole: bool) -> None:
    """For the worker: it ends. A whole tree takes its place; another waits to be gone on with."""
    target = Path(read_note(folder).target)
    if not whole:
        (folder / keeper.ENDED).touch()
        return
    places.settle(folder / TREE, target)
    (folder / keeper.ENDED).touch()
    shutil.rmtree(folder)


def tell(folder: Path, filler: Filler, damaged: dict[bytes, str], *, whole: bool) -> None:
    """How far it is, for people; nothing depends on it."""
    told = {
        "whole": whole,
        "missing_bytes": filler.missing_bytes(),
        "bytes": filler.plan.bytes,
        "damaged": {os.fsdecode(path): why for path, why in damaged.items()},
    }
    temporary = folder / f"{_STATUS}.new"
    temporary.write_text(json.dumps(told, ensure_ascii=True))
    temporary.rename(folder / _STATUS)


def status(target: Path) -> dict[str, Any] | None:
    """What the worker last told; None when there is none, which is so of a target that is whole."""
    try:
        found: dict[str, Any] = json.loads((places.folder_of(target) / _STATUS).read_text())
    except FileNotFoundError:
        return None
    return found


def _lock(folder: Path) -> int:
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd
