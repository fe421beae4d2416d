"""``python -m diffkeeper.lazy.worker FOLDER GROUP LOCK KEEPER``: fills one tree. Started by its keeper, and watches that as it
is watched: each holds the group, so that no death of one lets a program pass.
"""

from __future__ import annotations

import contextlib
import os
import resource
import threading
import time
from pathlib import Path

from diffkeeper.domain import errors
from diffkeeper.lazy import holders, keeper, places, plans, trees
from diffkeeper.lazy.fanotify import Group
from diffkeeper.lazy.filler import Filler
from diffkeeper.lazy.inflight import MOST_FDS, Inflight
from diffkeeper.lazy.marks import Marks
from diffkeeper.lazy.server import Server
from diffkeeper.lazy.sources import HttpSource

_BEGIN_EVERY_S = 0.005
_SYNC_EVERY_S = 1.0
# Between looks whether anybody is still in a tree that is whole.
_LOOK_EVERY_S = 1.0
# A source that is away for so long, with nobody in the tree, ends the filling; it goes on when asked for.
_GIVE_UP_S = 20.0


def main() -> None:
    folder, group, lock, watched = keeper.arguments()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (MOST_FDS, hard))
    while not (folder / "kept").exists():
        if not folder.exists():
            return  # it could not be made
        time.sleep(_BEGIN_EVERY_S)
    note = trees.read_note(folder)
    plan = plans.read(folder / "plan")
    mount_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    source = HttpSource(folder)
    filler = Filler(plan, Marks(folder, plan), source, mount_fd)
    server = Server(group, filler, Inflight(folder), mount_fd, by_itself=note.read_only)
    server.settle()
    threading.Thread(target=server.serve, name="events", daemon=True).start()
    threading.Thread(
        target=keeper.watch, args=(folder, group, lock, watched), name="keeper", daemon=True
    ).start()
    work = _Work(folder, note, server, filler, source, group)
    code = work.run()
    work.let_go()
    os._exit(code)


class _Work:
    def __init__(
        self,
        folder: Path,
        note: trees.Note,
        server: Server,
        filler: Filler,
        source: HttpSource,
        group: Group,
    ) -> None:
        self._folder, self._note, self._source = folder, note, source
        self._target, self._tree = Path(note.target), folder / trees.TREE
        self._server, self._filler = server, filler
        self._group = group
        self._may_be_held = holders.why_not() is None
        self._holders: set[holders.Holder] = set()
        self._whole = threading.Event()

    def run(self) -> int:
        """Until nothing is left to do."""
        if self._note.background:
            threading.Thread(target=self._fill, name="background", daemon=True).start()
        while not self._is_over():
            self._hold()
            if self._whole.wait(_SYNC_EVERY_S):
                time.sleep(_LOOK_EVERY_S)
            self._server.sync()
            self._tell()
        return 0

    def _hold(self) -> None:
        """Whoever is killed, one stays that holds the group."""
        if self._may_be_held:
            holders.keep(self._folder, self._group)
            self._holders.update(holders.of(self._folder))

    def let_go(self) -> None:
        """Also of one that was started while the folder was taken away."""
        for one in self._holders:
            holders.release(self._folder, one)

    def _fill(self) -> None:
        while True:
            with contextlib.suppress(errors.Transient):
                if self._server.fill_all():
                    self._whole.set()
                    return
            time.sleep(_SYNC_EVERY_S)

    def _is_over(self) -> bool:
        if not places.is_shown(self._tree, self._target):
            return self._is_left()
        if self._whole.is_set() and places.is_left_alone(self._target):
            if self._note.pin is not None:
                self._source.unpin(self._note.pin)
            trees.end(self._folder, whole=True)
            return True
        if self._is_deserted() and places.hide(self._target):
            trees.end(self._folder, whole=False)
            return True
        return False

    def _is_deserted(self) -> bool:
        lost = self._server.lost_since
        return lost is not None and time.monotonic() - lost > _GIVE_UP_S

    def _is_left(self) -> bool:
        """Somebody took the mount away: nobody can come in any more, and nobody was in it."""
        if not self._tree.exists():
            with contextlib.suppress(FileNotFoundError):
                places.remove(self._folder)  # a worker before this one had settled it
            return True
        trees.end(self._folder, whole=False)
        if self._note.temporary:
            if self._note.pin is not None:
                self._source.unpin(self._note.pin)
            places.discard(self._folder, self._target)
        return True

    def _tell(self) -> None:
        trees.tell(self._folder, self._filler, self._server.damaged, whole=self._whole.is_set())


if __name__ == "__main__":
    main()
