"""Lazily filled trees whose workers are gone: gone on with, or taken out of the way."""

from __future__ import annotations

import os
from pathlib import Path

from diffkeeper.domain import errors
from diffkeeper.lazy import guards, handles, holders, keeper, places, plans, sources, trees
from diffkeeper.lazy.fanotify import Group
from diffkeeper.lazy.inflight import Inflight
from diffkeeper.lazy.marks import Marks


def resume(target: Path, where: sources.Address | None = None) -> bool:
    """Go on with a tree whose filler is gone; False when it still works, or when there is nothing to go on with.

    Raises Corrupt when it was never whole enough to be used: then it is gone, and can be made anew. Raises Refused when
    programs may have read what was not filled (``guards``).
    """
    folder = places.folder_of(target)
    try:
        lock = trees.lock_of(folder)
    except (FileNotFoundError, BlockingIOError):
        return False
    try:
        if where is not None:
            sources.write(folder, where)
        if not (folder / trees.TREE).exists():
            places.remove(folder)  # it was whole, and had its place
            return False
        _go_on(folder, target, _usable_plan(folder, target), lock)
        return True
    finally:
        os.close(lock)


def _go_on(folder: Path, target: Path, plan: plans.Plan, lock: int) -> None:
    read_only = trees.read_note(folder).read_only
    held = holders.adopt(folder)
    if held is None:
        if guards.was_left_open(folder):
            raise guards.left_open(target)
        Inflight(folder).forget_all()
    group = held or Group.make(read_only=read_only)
    try:
        if held is None:
            _mark_again(folder, plan, group)
            if holders.why_not() is None:
                holders.keep(folder, group)
        guards.note_shown(folder)
        (folder / keeper.ENDED).unlink(missing_ok=True)
        places.show(folder / trees.TREE, target, read_only=read_only)
        keeper.start_worker(folder, group, lock)
    finally:
        group.close()


def give_up(target: Path, aside: Path | None) -> bool:
    """Take a tree that was left open out of the way, to ``aside`` or altogether; False when there is none such.

    Raises Refused when something still uses it.
    """
    folder = places.folder_of(target)
    try:
        lock = trees.lock_of(folder)
    except (FileNotFoundError, BlockingIOError):
        return False
    try:
        if not guards.was_left_open(folder) or any(holders.of(folder)):
            return False
        if not places.hide(target):
            raise guards.left_open(target)
        if aside is None:
            places.discard(folder, target)
        else:
            places.put_aside(folder, target, aside)
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
