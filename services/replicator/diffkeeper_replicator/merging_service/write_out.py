"""Brings the site's directory up to the shared volume: names by rename, content by a new file that takes the
place of the old one in one step.

A reader finds the old file or the new one whole; who holds the old one open keeps it. Nothing is replaced or
removed that is not what the merger left there: what a program did meanwhile is told to ``LocalChanges`` first
(``Round.look``), and what it did in the very last instant is found in the file that was displaced and said as
an edit of what that file was made from.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field

from blake3 import blake3

from diffkeeper.domain import errors, trees
from diffkeeper.domain.shared_ops import ROOT
from diffkeeper_replicator import safe_paths
from diffkeeper_replicator.merging_service import disk_model
from diffkeeper_replicator.merging_service.disk_model import Directory, DiskModel, Standing
from diffkeeper_replicator.merging_service.displaced import Displaced
from diffkeeper_replicator.merging_service.shared_state import SharedState

# Files whose replacement is made ready before one commit covers them all.
BATCH_FILES = 128
# Before the id of an entry that is on its way from one place to another.
_ASIDE = b"aside:"
_MODE_UNKNOWN = 0o644
_DIR_MODE_UNKNOWN = 0o755


# An entry, and the directory and name it is to have.
_Wanted = tuple[bytes, bytes, bytes]


@dataclass(slots=True)
class Round:
    written: int = 0
    # Paths where something else stands than was left there.
    look: set[bytes] = field(default_factory=set)
    left_out: dict[bytes, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Ready:
    """A file made aside, that is to take its place."""

    entry: bytes
    aside: bytes
    standing: Standing
    over: Standing | None


class WriteOut:
    def __init__(
        self, state: SharedState, disk: DiskModel, directory: Directory, displaced: Displaced
    ) -> None:
        self._state = state
        self._disk = disk
        self._directory = directory
        self._displaced = displaced
        self._owners = os.geteuid() == 0
        root = os.fstat(directory.fd)
        self._owner = (root.st_uid, root.st_gid)
        self._number = 0
        # Entries on their way from one place to another, by the name they have aside.
        self._aside_now: dict[bytes, bytes] = {}

    # -- after a crash ---------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Finish what an earlier run announced: it was done where the file that was made aside stands in its place."""
        for entry_id, (aside, *fields) in self._state.store.intents():
            standing = Standing(*fields)
            try:
                if entry_id.startswith(_ASIDE):
                    self._put_back(entry_id.removeprefix(_ASIDE), aside)
                    continue
                found = self._live(standing)
                if found is not None and standing.is_node(found[1]):
                    self._took_place(_Ready(entry_id, aside, standing, self._disk.standing.get(entry_id)))
            except OSError as error:
                raise safe_paths.disk_error(error, "finishing what was begun before a restart") from error
            finally:
                self._state.store.drop_intent(entry_id)
        self._displaced.recover(self._directory)
        self._state.store.commit()

    def _put_back(self, entry_id: bytes, aside: bytes) -> None:
        """What was on its way stands where it came from again; the next round moves it anew."""
        standing = self._disk.standing.get(entry_id)
        if standing is None or disk_model.look(self._directory.aside_fd, aside) is None:
            return
        self._aside_now[entry_id] = aside
        self._back_to_old(entry_id)

    def everything(self) -> None:
        """All there is to compare, at a start."""
        tree = self._state.tree
        self._state.pending.directories |= {ROOT} | {
            entry_id for entry_id, entry in tree.entries.items() if entry.kind is trees.Kind.DIR
        }
        self._state.pending.objects |= set(tree.objects)

    # -- a round ---------------------------------------------------------------------------------------------

    def round(self) -> Round:
        """As much as can be done now; what could not stays pending."""
        self._directory.check_there()
        outcome = Round()
        pending = self._state.pending
        directories, pending.directories = pending.directories, set()
        objects, pending.objects = pending.objects, set()
        try:
            arriving = self._names(directories, outcome)
            files = self._files(arriving, objects, outcome)
            while files:
                batch, files = self._batch(files)
                self._write_batch(batch, outcome)
            self._attributes(objects, outcome)
        except OSError as error:
            pending.directories |= directories
            pending.objects |= objects
            raise safe_paths.disk_error(error, "writing out what other sites did") from error
        except errors.DiffKeeperError:
            pending.directories |= directories
            pending.objects |= objects
            raise
        return outcome

    # -- names -----------------------------------------------------------------------------------------------

    def _names(self, directories: set[bytes], outcome: Round) -> list[_Wanted]:
        """Moves and removals; what has to be made new as (entry, directory, name), directories before what is in
        them.
        """
        tree, disk = self._state.tree, self._disk
        wanted: dict[bytes, tuple[bytes, bytes]] = {}
        leaving: list[bytes] = []
        for directory in directories:
            shown = self._shown(directory)
            for name, entry_id in shown.items():
                at = disk.standing.get(entry_id)
                if at is None or (at.parent, at.name) != (directory, name):
                    wanted[entry_id] = (directory, name)
            for name, entry_id in disk.children(directory).items():
                if shown.get(name) != entry_id:
                    leaving.append(entry_id)
        moving = sorted(wanted.keys() & disk.standing.keys(), key=self._depth_on_disk, reverse=True)
        for entry_id in moving:
            if not self._rename(entry_id, *wanted[entry_id]):
                self._put_aside(entry_id, outcome)
        for entry_id in leaving:
            if entry_id not in wanted and not self._is_wanted(entry_id):
                self._remove(entry_id, outcome)
        made: list[_Wanted] = []
        for entry_id in sorted(wanted, key=lambda key: self._depth(key)):
            directory, name = wanted[entry_id]
            if disk.path(directory) is None:
                self._state.pending.directories.add(directory)
                continue
            if entry_id in self._aside_now:
                self._come_back(entry_id, directory, name, outcome)
            elif entry_id in disk.standing:
                outcome.written += 1
            elif tree.entries[entry_id].kind is trees.Kind.FILE:
                made.append((entry_id, directory, name))
            else:
                self._make(entry_id, directory, name, outcome)
                if tree.entries[entry_id].kind is trees.Kind.DIR:
                    made += self._names({entry_id}, outcome) if entry_id in disk.standing else []
        return made

    def _shown(self, directory: bytes) -> dict[bytes, bytes]:
        tree = self._state.tree
        if directory != ROOT:
            entry = tree.entries.get(directory)
            if entry is None or not tree.is_shown(directory) or not tree.is_placed(directory):
                return {}
        return tree.children(directory)

    def _is_wanted(self, entry_id: bytes) -> bool:
        """Whether it is shown somewhere, in a directory that comes later."""
        tree = self._state.tree
        entry = tree.entries.get(entry_id)
        if entry is None or not tree.is_shown(entry_id) or not tree.is_placed(entry_id):
            return False
        assert entry.at is not None, "it is placed"
        self._state.pending.directories.add(entry.at.parent)
        return True

    def _depth(self, entry_id: bytes) -> int:
        depth, at = 0, self._state.tree.entries[entry_id].at
        while at is not None and at.parent != ROOT:
            depth, above = depth + 1, self._state.tree.entries.get(at.parent)
            at = None if above is None else above.at
        return depth

    def _live(self, standing: Standing) -> tuple[os.stat_result, trees.Identity, trees.Kind] | None:
        path = self._disk.path(standing.parent)
        if path is None:
            return None
        try:
            fd = self._directory.open_directory(path)
        except OSError:
            return None
        try:
            return disk_model.look(fd, standing.name)
        finally:
            os.close(fd)

    def _is_as_left(self, entry_id: bytes, outcome: Round) -> bool:
        """Whether nobody has touched an entry since; otherwise it is to be looked at first."""
        standing = self._disk.standing[entry_id]
        found = self._live(standing)
        same = found is not None and standing.is_node(found[1])
        if same and standing.kind == trees.Kind.FILE:
            assert found is not None, "it is the same"
            same = standing.looks_like(found[0])
        if not same:
            outcome.look.add(self._path(entry_id))
        return same

    def _path(self, entry_id: bytes) -> bytes:
        return self._disk.path(entry_id) or b""

    def _depth_on_disk(self, entry_id: bytes) -> int:
        return self._path(entry_id).count(b"/")

    def _rename(self, entry_id: bytes, directory: bytes, name: bytes) -> bool:
        """In one step, where nothing stands in the way. False: by way of the directory aside."""
        standing = self._disk.standing[entry_id]
        path, target = self._path(entry_id), self._disk.path(directory)
        if (
            target is None
            or self._disk.children(directory).get(name)
            or (target + b"/").startswith(path + b"/")
        ):
            return False
        found = self._live(standing)
        if found is None or not standing.is_node(found[1]):
            return False
        src, dst = self._open(standing.parent), self._open(directory)
        try:
            disk_model.rename_to_free(src, standing.name, dst, name)
        except (FileExistsError, FileNotFoundError):
            return False
        finally:
            os.close(src)
            os.close(dst)
        self._disk.change(entry_id, parent=directory, name=name, ctime_ns=0)
        self._check_links(entry_id)
        return True

    def _check_links(self, entry_id: bytes) -> None:
        """Links that lead outside from where they have come to stand are taken away."""
        for link in [*self._disk.below(entry_id), entry_id]:
            standing = self._disk.standing[link]
            if standing.kind != trees.Kind.SYMLINK:
                continue
            target = self._state.tree.entries[link].target
            if leads_outside(target, self._disk.path(standing.parent) or b""):
                fd = self._open(standing.parent)
                try:
                    os.unlink(standing.name, dir_fd=fd)
                finally:
                    os.close(fd)
                self._disk.drop(link)

    def _new_aside(self) -> bytes:
        self._number += 1
        return f"{self._state.site}-{os.getpid()}-{self._number}".encode()

    def _put_aside(self, entry_id: bytes, outcome: Round) -> None:
        """Out of the way of others that move at the same time; it comes back in the same round."""
        standing = self._disk.standing[entry_id]
        found = self._live(standing)
        if found is None or not standing.is_node(found[1]):
            outcome.look.add(self._path(entry_id))
            self._state.pending.directories.add(standing.parent)
            return
        name = self._new_aside()
        self._state.store.put_intent(_ASIDE + entry_id, [name, *_fields(standing)])
        self._state.store.commit()
        fd = self._open(standing.parent)
        try:
            os.rename(standing.name, name, src_dir_fd=fd, dst_dir_fd=self._directory.aside_fd)
        finally:
            os.close(fd)
        self._aside_now[entry_id] = name

    def _come_back(self, entry_id: bytes, directory: bytes, name: bytes, outcome: Round) -> None:
        aside = self._aside_now.pop(entry_id)
        fd = self._open(directory)
        try:
            disk_model.rename_to_free(self._directory.aside_fd, aside, fd, name)
        except FileExistsError:
            self._aside_now[entry_id] = aside
            outcome.look.add(_join(self._disk.path(directory), name))
            self._back_to_old(entry_id)
            self._state.pending.directories.add(directory)
            return
        finally:
            os.close(fd)
        self._disk.change(entry_id, parent=directory, name=name, ctime_ns=0)
        self._check_links(entry_id)
        self._state.store.drop_intent(_ASIDE + entry_id)
        outcome.written += 1

    def _back_to_old(self, entry_id: bytes) -> None:
        """Where it came from, or under a name of its own when that is taken too."""
        aside, standing = self._aside_now.pop(entry_id), self._disk.standing[entry_id]
        fd = self._open(standing.parent)
        try:
            disk_model.rename_to_free(self._directory.aside_fd, aside, fd, standing.name)
        finally:
            os.close(fd)
        self._state.store.drop_intent(_ASIDE + entry_id)

    def _open(self, directory: bytes) -> int:
        path = self._disk.path(directory)
        if path is None:
            raise OSError(errno.ENOENT, "a directory is not there")
        return self._directory.open_directory(path)

    def _remove(self, entry_id: bytes, outcome: Round) -> None:
        """An entry and what is known below it. What nobody knew of is looked at, and stays."""
        for gone in [*self._disk.below(entry_id), entry_id]:
            if gone not in self._disk.standing or (gone != entry_id and self._is_wanted(gone)):
                continue
            standing = self._disk.standing[gone]
            if not self._is_as_left(gone, outcome):
                self._state.pending.directories.add(standing.parent)
                continue
            fd = self._open(standing.parent)
            try:
                if standing.kind == trees.Kind.DIR:
                    os.rmdir(standing.name, dir_fd=fd)
                else:
                    self._unlink(gone, fd, standing)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                outcome.look |= {_join(self._path(gone), name) for name in self._names_in(gone)}
                self._state.pending.directories.add(standing.parent)
                continue
            finally:
                os.close(fd)
            self._disk.drop(gone)
            outcome.written += 1

    def _unlink(self, entry_id: bytes, fd: int, standing: Standing) -> None:
        """Through aside: what a program wrote in the last instant is still found there."""
        aside = self._new_aside()
        os.rename(standing.name, aside, src_dir_fd=fd, dst_dir_fd=self._directory.aside_fd)
        if standing.kind == trees.Kind.FILE:
            object_id = (
                self._state.tree.entries[entry_id].object if entry_id in self._state.tree.entries else b""
            )
            self._displaced.add(object_id, aside, standing, self._base_of(object_id), removed=entry_id)
        else:
            os.unlink(aside, dir_fd=self._directory.aside_fd)

    def _base_of(self, object_id: bytes) -> bytes:
        """The state of the document that a file on disk was made from."""
        kept = self._state.store.document(object_id) if object_id else None
        return b"" if kept is None else (kept.state if kept.base is None else kept.base)

    def _names_in(self, entry_id: bytes) -> list[bytes]:
        fd = self._open(entry_id)
        try:
            return [os.fsencode(name) for name in os.listdir(fd)]
        finally:
            os.close(fd)

    def _make(self, entry_id: bytes, directory: bytes, name: bytes, outcome: Round) -> None:
        """A directory, a link or a FIFO."""
        entry = self._state.tree.entries[entry_id]
        if entry.kind is trees.Kind.SYMLINK and leads_outside(entry.target, self._path(directory)):
            outcome.left_out[_join(self._path(directory), name)] = "it is a link that leads out of the volume"
            return
        fd = self._open(directory)
        try:
            match entry.kind:
                case trees.Kind.DIR:
                    os.mkdir(name, _DIR_MODE_UNKNOWN, dir_fd=fd)
                case trees.Kind.SYMLINK:
                    os.symlink(entry.target, name, dir_fd=fd)
                case _:
                    os.mkfifo(name, _MODE_UNKNOWN, dir_fd=fd)
            if self._owners:
                os.chown(name, *self._owner, dir_fd=fd, follow_symlinks=False)
            seen = disk_model.look(fd, name)
        except FileExistsError:
            outcome.look.add(_join(self._path(directory), name))
            self._state.pending.directories.add(directory)
            return
        finally:
            os.close(fd)
        if seen is None:
            return
        found, identity, kind = seen
        mode = disk_model.permissions(found.st_mode)
        self._disk.put(
            entry_id,
            Standing(directory, name, int(kind), identity.device, identity.inode, identity.generation, mode),
        )
        self._set_mode(entry_id)
        outcome.written += 1

    # -- files -----------------------------------------------------------------------------------------------

    def _files(self, arriving: list[_Wanted], objects: set[bytes], outcome: Round) -> list[_Wanted]:
        """(entry, directory, name) of every file to be written: new ones, and those of changed documents."""
        files = {entry_id: (entry_id, directory, name) for entry_id, directory, name in arriving}
        for object_id in objects:
            found = self._state.tree.objects.get(object_id)
            kept = self._state.store.document(object_id)
            if found is None or kept is None or kept.base is None:
                continue
            for entry_id in sorted(found.entries & self._disk.standing.keys()):
                at = self._disk.standing[entry_id]
                files[entry_id] = (entry_id, at.parent, at.name)
        return list(files.values())

    def _batch(self, files: list[_Wanted]) -> tuple[list[_Wanted], list[_Wanted]]:
        """Those to be written at once, and the rest: a second name of a file waits for the first, to be its link."""
        batch: list[_Wanted] = []
        rest: list[_Wanted] = []
        objects: set[bytes] = set()
        for wanted in files:
            object_id = self._state.tree.entries[wanted[0]].object
            if len(batch) < BATCH_FILES and object_id not in objects:
                batch.append(wanted)
                objects.add(object_id)
            else:
                rest.append(wanted)
        return batch, rest

    def _write_batch(self, batch: list[_Wanted], outcome: Round) -> None:
        ready: list[_Ready] = []
        for entry_id, directory, name in batch:
            made = self._prepare(entry_id, directory, name, outcome)
            if made is not None:
                ready.append(made)
                self._state.store.put_intent(entry_id, [made.aside, *_fields(made.standing)])
        self._state.store.commit()
        for made in ready:
            if self._take_place(made, outcome):
                self._took_place(made)
                outcome.written += 1
            self._state.store.drop_intent(made.entry)
        self._state.store.commit()

    def _prepare(self, entry_id: bytes, directory: bytes, name: bytes, outcome: Round) -> _Ready | None:
        entry = self._state.tree.entries[entry_id]
        over = self._disk.standing.get(entry_id)
        if over is not None and not self._is_as_left(entry_id, outcome):
            self._state.pending.objects.add(entry.object)
            return None
        document = self._state.document(entry.object)
        if document is None:
            return None  # its content has not come yet
        content = document.content()
        digest = blake3(content).digest()
        if over is not None and digest == over.digest:
            self._state.store.written(entry.object)
            return None
        same = self._same_file(entry_id, digest)
        aside = self._new_aside()
        found = self._state.tree.objects[entry.object]
        mode = found.mode or (over.mode if over is not None else _MODE_UNKNOWN)
        if same is not None:
            fd = self._open(same.parent)
            try:
                os.link(
                    same.name,
                    aside,
                    src_dir_fd=fd,
                    dst_dir_fd=self._directory.aside_fd,
                    follow_symlinks=False,
                )
            finally:
                os.close(fd)
            file_fd = os.open(aside, disk_model.READ_FLAGS, dir_fd=self._directory.aside_fd)
        else:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            file_fd = os.open(aside, flags, 0o600, dir_fd=self._directory.aside_fd)
        try:
            if same is None:
                self._fill(file_fd, content, mode, found.mtime_ns, over)
            status = os.fstat(file_fd)
            identity = safe_paths.identity(file_fd)
        finally:
            os.close(file_fd)
        standing = Standing(
            directory,
            name,
            int(trees.Kind.FILE),
            identity.device,
            identity.inode,
            identity.generation,
            disk_model.permissions(status.st_mode),
            status.st_size,
            status.st_mtime_ns,
            0,
            digest,
        )
        return _Ready(entry_id, aside, standing, over)

    def _same_file(self, entry_id: bytes, digest: bytes) -> Standing | None:
        """Another name of the same object, whose file this one has to be."""
        found = self._state.tree.objects[self._state.tree.entries[entry_id].object]
        for other in sorted(found.entries - {entry_id}):
            at = self._disk.standing.get(other)
            if at is not None and at.digest == digest:
                live = self._live(at)
                if live is not None and at.is_node(live[1]):
                    return at
        return None

    def _fill(self, fd: int, content: bytes, mode: int, mtime_ns: int, over: Standing | None) -> None:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        owner = self._owner
        if over is not None:
            live = self._live(over)
            owner = (live[0].st_uid, live[0].st_gid) if live is not None else owner
        if self._owners:
            os.fchown(fd, *owner)
        os.fchmod(fd, mode & 0o1777)
        if mtime_ns:
            os.utime(fd, ns=(mtime_ns, mtime_ns))
        os.fdatasync(fd)

    def _take_place(self, made: _Ready, outcome: Round) -> bool:
        """One step: the name leads to the new file. False: something else came to stand there."""
        standing = made.standing
        path = _join(self._path(standing.parent), standing.name)
        fd = self._open(standing.parent)
        try:
            if made.over is None:
                disk_model.rename_to_free(self._directory.aside_fd, made.aside, fd, standing.name)
            else:
                safe_paths.exchange(self._directory.aside_fd, made.aside, fd, standing.name)
        except (FileExistsError, FileNotFoundError):
            os.unlink(made.aside, dir_fd=self._directory.aside_fd)
            outcome.look.add(path)
            self._state.pending.directories.add(standing.parent)
            self._state.pending.objects.add(self._state.tree.entries[made.entry].object)
            return False
        finally:
            os.close(fd)
        return True

    def _took_place(self, made: _Ready) -> None:
        """The model after the step, and the file that was displaced."""
        live = self._live(made.standing)
        standing = made.standing
        if live is not None:
            found = live[0]
            untouched = (found.st_size, found.st_mtime_ns) == (standing.size, standing.mtime_ns)
            if untouched:
                standing = _with_ctime(standing, found.st_ctime_ns)
        object_id = self._state.tree.entries[made.entry].object
        base = self._base_of(object_id)
        self._disk.put(made.entry, standing)
        if all(
            self._disk.standing[other].digest == standing.digest
            for other in self._state.tree.objects[object_id].entries
            if other in self._disk.standing
        ):
            self._state.store.written(object_id)
        if made.over is not None:
            self._displaced.add(object_id, made.aside, made.over, base, removed=b"")

    # -- attributes ------------------------------------------------------------------------------------------

    def _attributes(self, objects: set[bytes], outcome: Round) -> None:
        for object_id in objects:
            found = self._state.tree.objects.get(object_id)
            for entry_id in sorted(found.entries & self._disk.standing.keys()) if found is not None else ():
                if self._set_mode(entry_id):
                    outcome.written += 1

    def _set_mode(self, entry_id: bytes) -> bool:
        standing = self._disk.standing[entry_id]
        found = self._state.tree.objects.get(self._state.tree.entries[entry_id].object)
        if found is None or not found.attributes_at[0] or standing.kind == trees.Kind.SYMLINK:
            return False
        wanted = found.mode & 0o1777
        if wanted == standing.mode:
            return False
        fd = self._open(standing.parent)
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
        self._disk.change(entry_id, mode=wanted, ctime_ns=0)
        return True


def leads_outside(target: bytes, directory: bytes) -> bool:
    """Whether a link in ``directory`` may lead out of the volume. Only what goes up first and then down is trusted:
    behind a name there may be another link.
    """
    names = target.split(b"/")
    ups = 0
    while ups < len(names) and names[ups] in (b"..", b"."):
        ups += 1
    climbs = sum(name == b".." for name in names[:ups])
    depth = len([name for name in directory.split(b"/") if name])
    return target.startswith(b"/") or climbs > depth or b".." in names[ups:]


def _join(directory: bytes | None, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name


def _fields(standing: Standing) -> list[object]:
    return [getattr(standing, key) for key in Standing.__dataclass_fields__]


def _with_ctime(standing: Standing, ctime_ns: int) -> Standing:
    fields = _fields(standing)
    fields[-2] = ctime_ns
    return Standing(*fields)  # type: ignore[arg-type]
