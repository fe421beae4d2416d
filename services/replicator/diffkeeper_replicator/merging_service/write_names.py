"""The names of a site's directory: moves, removals, and what is made that has no content.

Names are taken by ``renameat2`` without replacing; what stands in the way of each other goes by way of the directory
aside, under an intent.
"""

from __future__ import annotations

import errno
import os

from diffkeeper.domain import trees
from diffkeeper.domain.shared_ops import ROOT
from diffkeeper_replicator.merging_service import disk_model
from diffkeeper_replicator.merging_service.disk_model import Standing
from diffkeeper_replicator.merging_service.workplace import (
    ASIDE,
    MODE_UNKNOWN,
    Round,
    Wanted,
    Workplace,
    fields,
    join,
)

_DIR_MODE_UNKNOWN = 0o755


class NameWriter:
    def __init__(self, place: Workplace) -> None:
        self._place = place
        # Entries on their way from one place to another, by the name they have aside.
        self._aside_now: dict[bytes, bytes] = {}

    def names(self, directories: set[bytes], outcome: Round) -> list[Wanted]:
        """Moves and removals; what has to be made new as (entry, directory, name), directories before what is in
        them.
        """
        tree, disk = self._place.state.tree, self._place.disk
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
        made: list[Wanted] = []
        for entry_id in sorted(wanted, key=lambda key: self._depth(key)):
            directory, name = wanted[entry_id]
            if disk.path(directory) is None:
                self._place.state.pending.directories.add(directory)
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
                    made += self.names({entry_id}, outcome) if entry_id in disk.standing else []
        return made

    def _shown(self, directory: bytes) -> dict[bytes, bytes]:
        tree = self._place.state.tree
        if directory != ROOT:
            entry = tree.entries.get(directory)
            if entry is None or not tree.is_shown(directory) or not tree.is_placed(directory):
                return {}
        return tree.children(directory)

    def _is_wanted(self, entry_id: bytes) -> bool:
        """Whether it is shown somewhere, in a directory that comes later."""
        tree = self._place.state.tree
        entry = tree.entries.get(entry_id)
        if entry is None or not tree.is_shown(entry_id) or not tree.is_placed(entry_id):
            return False
        assert entry.at is not None, "it is placed"
        self._place.state.pending.directories.add(entry.at.parent)
        return True

    def _depth(self, entry_id: bytes) -> int:
        depth, at = 0, self._place.state.tree.entries[entry_id].at
        while at is not None and at.parent != ROOT:
            depth, above = depth + 1, self._place.state.tree.entries.get(at.parent)
            at = None if above is None else above.at
        return depth

    def _depth_on_disk(self, entry_id: bytes) -> int:
        return self._place.path(entry_id).count(b"/")

    def _rename(self, entry_id: bytes, directory: bytes, name: bytes) -> bool:
        """In one step, where nothing stands in the way. False: by way of the directory aside."""
        standing = self._place.disk.standing[entry_id]
        path, target = self._place.path(entry_id), self._place.disk.path(directory)
        if (
            target is None
            or self._place.disk.children(directory).get(name)
            or (target + b"/").startswith(path + b"/")
        ):
            return False
        found = self._place.live(standing)
        if found is None or not standing.is_node(found[1]):
            return False
        src, dst = self._place.open(standing.parent), self._place.open(directory)
        try:
            disk_model.rename_to_free(src, standing.name, dst, name)
        except (FileExistsError, FileNotFoundError):
            return False
        finally:
            os.close(src)
            os.close(dst)
        self._place.disk.change(entry_id, parent=directory, name=name, ctime_ns=0)
        self._check_links(entry_id)
        return True

    def _check_links(self, entry_id: bytes) -> None:
        """Links that lead outside from where they have come to stand are taken away."""
        for link in [*self._place.disk.below(entry_id), entry_id]:
            standing = self._place.disk.standing[link]
            if standing.kind != trees.Kind.SYMLINK:
                continue
            target = self._place.state.tree.entries[link].target
            if leads_outside(target, self._place.disk.path(standing.parent) or b""):
                fd = self._place.open(standing.parent)
                try:
                    os.unlink(standing.name, dir_fd=fd)
                finally:
                    os.close(fd)
                self._place.disk.drop(link)

    def _put_aside(self, entry_id: bytes, outcome: Round) -> None:
        """Out of the way of others that move at the same time; it comes back in the same round."""
        standing = self._place.disk.standing[entry_id]
        found = self._place.live(standing)
        if found is None or not standing.is_node(found[1]):
            outcome.look.add(self._place.path(entry_id))
            self._place.state.pending.directories.add(standing.parent)
            return
        name = self._place.new_aside()
        self._place.state.store.put_intent(ASIDE + entry_id, [name, *fields(standing)])
        self._place.state.store.commit()
        fd = self._place.open(standing.parent)
        try:
            os.rename(standing.name, name, src_dir_fd=fd, dst_dir_fd=self._place.directory.aside_fd)
        finally:
            os.close(fd)
        self._aside_now[entry_id] = name

    def _come_back(self, entry_id: bytes, directory: bytes, name: bytes, outcome: Round) -> None:
        aside = self._aside_now.pop(entry_id)
        fd = self._place.open(directory)
        try:
            disk_model.rename_to_free(self._place.directory.aside_fd, aside, fd, name)
        except FileExistsError:
            self._aside_now[entry_id] = aside
            outcome.look.add(join(self._place.disk.path(directory), name))
            self._back_to_old(entry_id)
            self._place.state.pending.directories.add(directory)
            return
        finally:
            os.close(fd)
        self._place.disk.change(entry_id, parent=directory, name=name, ctime_ns=0)
        self._check_links(entry_id)
        self._place.state.store.drop_intent(ASIDE + entry_id)
        outcome.written += 1

    def _back_to_old(self, entry_id: bytes) -> None:
        """Where it came from, or under a name of its own when that is taken too."""
        aside, standing = self._aside_now.pop(entry_id), self._place.disk.standing[entry_id]
        fd = self._place.open(standing.parent)
        try:
            disk_model.rename_to_free(self._place.directory.aside_fd, aside, fd, standing.name)
        finally:
            os.close(fd)
        self._place.state.store.drop_intent(ASIDE + entry_id)

    def _remove(self, entry_id: bytes, outcome: Round) -> None:
        """An entry and what is known below it. What nobody knew of is looked at, and stays."""
        for gone in [*self._place.disk.below(entry_id), entry_id]:
            if gone not in self._place.disk.standing or (gone != entry_id and self._is_wanted(gone)):
                continue
            standing = self._place.disk.standing[gone]
            if not self._place.is_as_left(gone, outcome):
                self._place.state.pending.directories.add(standing.parent)
                continue
            fd = self._place.open(standing.parent)
            try:
                if standing.kind == trees.Kind.DIR:
                    os.rmdir(standing.name, dir_fd=fd)
                else:
                    self._unlink(gone, fd, standing)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                outcome.look |= {join(self._place.path(gone), name) for name in self._names_in(gone)}
                self._place.state.pending.directories.add(standing.parent)
                continue
            finally:
                os.close(fd)
            self._place.disk.drop(gone)
            outcome.written += 1

    def _unlink(self, entry_id: bytes, fd: int, standing: Standing) -> None:
        """Through aside: what a program wrote in the last instant is still found there."""
        aside = self._place.new_aside()
        os.rename(standing.name, aside, src_dir_fd=fd, dst_dir_fd=self._place.directory.aside_fd)
        if standing.kind == trees.Kind.FILE:
            object_id = (
                self._place.state.tree.entries[entry_id].object
                if entry_id in self._place.state.tree.entries
                else b""
            )
            self._place.displaced.add(
                object_id, aside, standing, self._place.base_of(object_id), removed=entry_id
            )
        else:
            os.unlink(aside, dir_fd=self._place.directory.aside_fd)

    def _names_in(self, entry_id: bytes) -> list[bytes]:
        fd = self._place.open(entry_id)
        try:
            return [os.fsencode(name) for name in os.listdir(fd)]
        finally:
            os.close(fd)

    def _make(self, entry_id: bytes, directory: bytes, name: bytes, outcome: Round) -> None:
        """A directory, a link or a FIFO."""
        entry = self._place.state.tree.entries[entry_id]
        if entry.kind is trees.Kind.SYMLINK and leads_outside(entry.target, self._place.path(directory)):
            outcome.left_out[join(self._place.path(directory), name)] = (
                "it is a link that leads out of the volume"
            )
            return
        fd = self._place.open(directory)
        try:
            match entry.kind:
                case trees.Kind.DIR:
                    os.mkdir(name, _DIR_MODE_UNKNOWN, dir_fd=fd)
                case trees.Kind.SYMLINK:
                    os.symlink(entry.target, name, dir_fd=fd)
                case _:
                    os.mkfifo(name, MODE_UNKNOWN, dir_fd=fd)
            if self._place.owners:
                os.chown(name, *self._place.owner, dir_fd=fd, follow_symlinks=False)
            seen = disk_model.look(fd, name)
        except FileExistsError:
            outcome.look.add(join(self._place.path(directory), name))
            self._place.state.pending.directories.add(directory)
            return
        finally:
            os.close(fd)
        if seen is None:
            return
        found, identity, kind = seen
        mode = disk_model.permissions(found.st_mode)
        self._place.disk.put(
            entry_id,
            Standing(directory, name, int(kind), identity.device, identity.inode, identity.generation, mode),
        )
        self._place.set_mode(entry_id)
        outcome.written += 1

    def put_back(self, entry_id: bytes, aside: bytes) -> None:
        """What was on its way stands where it came from again; the next round moves it anew."""
        standing = self._place.disk.standing.get(entry_id)
        if standing is None or disk_model.look(self._place.directory.aside_fd, aside) is None:
            return
        self._aside_now[entry_id] = aside
        self._back_to_old(entry_id)


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
