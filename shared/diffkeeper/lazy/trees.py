"""Lazily filled trees from beginning to end: made of a stream of changes without contents, started, gone on with after a
crash, and settled.

The hidden folder beside the target holds ``tree``, ``plan``, ``note.json``, ``source.json``, the marks, and a log. It is
locked by whoever works for it. Where ``kept`` lacks it was never used, and is begun anew.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from diffkeeper import atomic_files
from diffkeeper.changes import Change
from diffkeeper.directory_writer import DirectoryWriter
from diffkeeper.domain import errors
from diffkeeper.lazy import guards, handles, holders, keeper, places, plans, sources
from diffkeeper.lazy.fanotify import Group, why_not
from diffkeeper.lazy.filler import Filler
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
    # Why nothing holds it when all that fills it is killed at once; None when something does.
    why_not_held: str | None


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
        lock = lock_of(folder)
        group = Group.make(read_only=note.read_only)
    except BaseException:
        places.remove(folder)
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
    # Python takes longer to start than a tree to be made: this waits for the holder, and the worker for ``kept``.
    why_not_held = holders.why_not()
    holder = holders.start(folder, group) if why_not_held is None else None
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
    _sync_names(folder, plan)
    if holder is not None and not holders.wait(folder, holder):
        why_not_held = f"its holder did not start ({_last_word(folder)}); it is tried again"
    guards.note_shown(folder)
    try:
        places.show(tree, target, read_only=note.read_only)
    except OSError as error:
        raise errors.Refused(
            f"the tree cannot be shown at {target}: {error.strerror}", reason="not-mounted"
        ) from error
    with contextlib.closing(Marks(folder, plan)) as marks:
        marks.keep(marks.snapshot())
    return Made(len(files), plan.bytes, left_out, why_not_held)


def _sync_names(folder: Path, plan: plans.Plan) -> None:
    """Every name and size of the tree is on disk before anything of it is filled, and so before it is used."""
    if len(plan.files) > _MOST_SYNCED:
        os.sync()
        return
    tree = os.fsencode(folder / TREE)
    names = {tree + b"/" + file.path for file in plan.files}
    names |= {above for name in names for above in _above(tree, name)} | {tree}
    for name in names:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


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


def end(folder: Path, *, whole: bool) -> None:
    """For the worker: it ends. A whole tree takes its place; another waits to be gone on with."""
    target = Path(read_note(folder).target)
    if not whole:
        (folder / keeper.ENDED).touch()
        holders.release_all(folder)
        return
    places.settle(folder / TREE, target)
    (folder / keeper.ENDED).touch()
    places.remove(folder)


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


def lock_of(folder: Path, *, make: bool = True) -> int:
    """Held by whoever works for a tree. Raises BlockingIOError when somebody does; FileNotFoundError when it has gone, with
    ``make`` only where the folder has.
    """
    path = folder / "lock"
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if make else 0), 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.stat(path).st_ino != os.fstat(fd).st_ino:
            raise FileNotFoundError(errno.ENOENT, "it went with its tree", str(path))
    except OSError:
        os.close(fd)
        raise
    return fd


def _last_word(folder: Path) -> str:
    """Of its processes."""
    try:
        said = (folder / "log").read_text(errors="replace").split("\n")
    except FileNotFoundError:
        said = []
    return next((line.strip() for line in reversed(said) if line.strip()), "it said nothing")
