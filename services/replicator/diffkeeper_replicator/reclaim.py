"""Takes a directory that a fenced writer left back into the main line, in place: nothing is copied that did not change.

First the survey: what the directory has beyond the parent goes into an orphan branch, durable and whole. Only then the
directory is put back to the parent: names by ``layout``, then the bytes that differ. The bytes come out of this site's
own journal, which its own streams fill, so no other site is asked for anything but what it wrote since. A crash before
the branch is whole leaves the directory untouched; a crash after it puts back again, by the same plan.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import structlog

from diffkeeper.domain import errors, frames, trees
from diffkeeper_replicator import history_base, orphan_branches, safe_paths, surveys
from diffkeeper_replicator.handles import DEAD, Handles
from diffkeeper_replicator.journal import Journal
from diffkeeper_replicator.layout import Layout
from diffkeeper_replicator.naming import Namer
from diffkeeper_replicator.orphan_branches import Note
from diffkeeper_replicator.states import State
from diffkeeper_replicator.surveys import Plan, Target

_log = structlog.get_logger("reclaim")


@dataclass(frozen=True, slots=True)
class Left:
    """What is known of a directory besides itself: how the branch is called, its frames, and which inode was which
    id.
    """

    note: Note
    tail: Iterable[frames.Frame]
    identities: dict[int, trees.Identity]


@dataclass(frozen=True, slots=True)
class Reclaimed:
    state: trees.TreeState
    base_end: str | None
    # Bytes written to bring the directory to the position.
    bytes: int


def reclaim(
    orphans: Path, root: Path, journal: Journal, tip: frames.Tip, left: Left, *, allow_setid: bool
) -> Reclaimed:
    """Bring ``root`` to ``tip``, a frame that the journal holds. Blocking; again after a crash. ``orphans`` lies in the
    volume's folder, whose history knows what a journal that was shortened goes on from.

    Raises Transient ``directory-busy`` while a process has something of it open, Corrupt when the journal does not lead
    to the position or cannot be read backward: then nothing was changed.
    """
    root_fd = safe_paths.open_root(root)
    try:
        folder = orphans / left.note.name
        with history_base.state_before(left.note.volume, orphans.parent, journal) as base:
            target = surveys.target_of(journal, tip, base)
            check_idle(root_fd)
            if not (folder / "changes").exists():
                _survey(folder, root_fd, journal, target, left, base)
        plan = surveys.read_plan(folder / "plan", target)
        put_back(root, root_fd, folder / "truth", target, plan, allow_setid=allow_setid)
        safe_paths.sync_filesystem(root_fd)
        state = trees.TreeState(
            left.note.volume, tip.position, tip.hash, target.stamp, target.tree, target.identities
        )
        return Reclaimed(state, target.base_end, plan.bytes)
    except OSError as error:
        raise safe_paths.disk_error(error, f"taking {root} back") from error
    finally:
        os.close(root_fd)


def done(orphans: Path, name: str) -> None:
    """The directory follows from durable notes: the plan is not needed again."""
    for word in ("plan", "truth"):
        (orphans / name / word).unlink(missing_ok=True)


def _survey(
    folder: Path, root_fd: int, journal: Journal, target: Target, left: Left, base: State | None
) -> None:
    writer = orphan_branches.Writer(folder, left.note)
    try:
        before = surveys.fingerprints(root_fd)
        entries = list(surveys.walk(root_fd))
        by_inode = surveys.identify(root_fd, target, entries, left.identities)
        changes = surveys.Surveyor(root_fd, journal, target, writer, base).run(entries, by_inode)
        check_idle(root_fd)
        if surveys.fingerprints(root_fd) != before:
            raise _busy("something was written to it while it was read")
        writer.finish(changes, left.tail)
    finally:
        writer.abandon()
    _log.info("kept as an orphan branch", branch=left.note.name, paths=len(changes))


def put_back(root: Path, root_fd: int, truth: Path, target: Target, plan: Plan, *, allow_setid: bool) -> None:
    """Names, then contents, then modes; the target's identities are those on disk afterwards. Done twice it gives the
    same.
    """
    inodes = {found.status.st_ino for found in surveys.walk(root_fd)} | {os.fstat(root_fd).st_ino}
    aside = Layout.aside_inodes(root, root_fd)
    for file_id in [i for i, known in target.identities.items() if known.inode not in inodes | aside]:
        del target.identities[file_id]  # made by a run before this one, and made again
    with Layout(root, root_fd, target.tree, target.identities, allow_setid=allow_setid) as layout:
        layout.bring_about()
        handles = Handles(root_fd, target.tree, target.identities)
        try:
            with open(truth, "rb", buffering=0) as file:
                _write(handles, file.fileno(), plan)
            _set_xattrs(handles, target, plan, allow_setid=allow_setid)
            _set_times(handles, target, plan)
        finally:
            handles.close()
        layout.finish()


def _write(handles: Handles, truth: int, plan: Plan) -> None:
    for file_id in plan.ranges.keys() | plan.sizes.keys():
        fd = handles.file(file_id)
        assert fd != DEAD, "the plan has only files that live at the position"
        if file_id in plan.sizes:
            os.ftruncate(fd, plan.sizes[file_id])
        for kept in plan.ranges.get(file_id, ()):
            if kept.at < 0:
                safe_paths.punch(fd, kept.offset, kept.length)
                continue
            data = os.pread(truth, kept.length, kept.at)
            done = 0
            while done < len(data):
                done += os.pwrite(fd, data[done:], kept.offset + done)


def _set_xattrs(handles: Handles, target: Target, plan: Plan, *, allow_setid: bool) -> None:
    names = Namer(target.tree, target.identities, handles, allow_setid)
    for file_id, node in target.tree.nodes.items():
        if node.kind not in (trees.Kind.FILE, trees.Kind.DIR):
            continue
        wanted = {name: value for name, value in plan.xattrs.get(file_id, {}).items() if value is not None}
        fd = (handles.file if node.kind is trees.Kind.FILE else handles.directory)(file_id)
        try:
            there = {os.fsencode(name): os.getxattr(fd, name) for name in os.listxattr(fd)}
        except OSError:
            continue  # a file system without them
        for name in there.keys() - wanted.keys():
            if name.startswith(b"user."):
                names.set_xattr(file_id, name, None)
        for name, value in wanted.items():
            if there.get(name) != value:
                names.set_xattr(file_id, name, value)


def _set_times(handles: Handles, target: Target, plan: Plan) -> None:
    for file_id, mtime_ns in plan.mtimes.items():
        if target.tree.nodes[file_id].kind is trees.Kind.FILE:
            os.utime(handles.file(file_id), ns=(mtime_ns, mtime_ns))


def check_idle(root_fd: int) -> None:
    """Raises Transient ``directory-busy`` when any process has a file of the directory open for writing."""
    known = {(found.status.st_dev, found.status.st_ino) for found in surveys.walk(root_fd)}
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        if pid != os.getpid() and _writes_to(pid, known):
            raise _busy(f"process {pid} has a file of it open for writing")


def _writes_to(pid: int, known: set[tuple[int, int]]) -> bool:
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)
    except OSError:
        return False  # it ended meanwhile, or is none of ours to look into
    return any(_is_write_to(f"{folder}/{name}", known) for name in names)


def _is_write_to(link: str, known: set[tuple[int, int]]) -> bool:
    try:
        found = os.stat(link)
        # The link's own mode tells how the descriptor was opened.
        writing = bool(os.lstat(link).st_mode & stat.S_IWUSR)
    except OSError:
        return False  # closed meanwhile
    return writing and stat.S_ISREG(found.st_mode) and (found.st_dev, found.st_ino) in known


def _busy(why: str) -> errors.Transient:
    return errors.Transient(
        f"the directory is not taken back yet: {why}; nothing was changed",
        reason="directory-busy",
        hint="end the program that writes there; it is tried again",
    )
