"""Writable copies of a volume at a moment: directories beside the replicas, and a note of each.

A branch is noted before its directory is begun and marked whole once that can be used, so a crash leaves
either no branch or a whole one, or one that the next call begins anew. What a program does in a branch touches
nothing else.

A small one is copied. A larger one is there at once and filled while it is used (``diffkeeper.lazy``), where
the kernel can do that; its filler asks this site's replicator, and is started again by any call about branches.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from diffkeeper import atomic_files
from diffkeeper.directory_writer import DirectoryWriter
from diffkeeper.domain import errors, moments
from diffkeeper.lazy import going_on, places, sources, trees
from diffkeeper_replicator import lazy_content, state_changes
from diffkeeper_replicator.states import State

FOLDER = ".branches"
# What is copied in a moment is not worth a filler.
COPIED_BYTES = 4 * 1024 * 1024


class Branch(msgspec.Struct, frozen=True):
    name: str
    position: str
    at_us: int
    created_us: int
    path: str
    whole: bool = False
    # How its bytes came: copied, lazy; and why it was copied although it is large.
    how: str = "copied"
    why_not_lazy: str | None = None
    # Why it is not filled any further.
    trouble: str | None = None


class Caller(NamedTuple):
    """Where a filler asks for bytes: the replicator through which the call came."""

    address: str
    token: str


class Branches:
    """Those of one volume. Changes come one at a time."""

    def __init__(self, notes: Path, volume: str, folder: Path) -> None:
        self._volume = volume
        self._folder = folder / volume
        self._notes = notes / "branches"
        self._lock = threading.Lock()
        self._notes.mkdir(parents=True, exist_ok=True)

    def all(self) -> list[Branch]:
        found = [msgspec.json.decode(path.read_bytes(), type=Branch) for path in self._notes.glob("*.json")]
        return sorted(found, key=lambda branch: branch.created_us)

    def create(
        self, name: str, point: moments.Point, state: State, caller: Caller | None = None
    ) -> dict[str, Any]:
        """A directory that holds the state at a point. The same again is answered with what is there."""
        with self._lock:
            return self._create(name, point, state, caller)

    def resume(self, caller: Caller | None) -> None:
        """Fillers that ended go on, and ask where the caller asked. One that cannot is noted and disturbs no other."""
        if caller is None:
            return
        with self._lock:
            for branch in self.all():
                if branch.whole and branch.how == "lazy" and branch.trouble is None:
                    try:
                        going_on.resume(Path(branch.path), self._where(branch, caller))
                    except (errors.Refused, errors.Corrupt) as error:
                        self._note(msgspec.structs.replace(branch, trouble=error.message))

    def _create(self, name: str, point: moments.Point, state: State, caller: Caller | None) -> dict[str, Any]:
        began = time.monotonic()
        known = self._known(name)
        if known is not None and known.whole:
            if known.position == str(point.position):
                return self._told(known)
            raise errors.Refused(
                f"there is a branch {name!r} already, of {known.position}",
                reason="branch-exists",
                hint=f"dkctl branch drop {self._volume} {name}, or choose another name",
            )
        path = self._folder / name
        branch = Branch(name, str(point.position), point.at_us, time.time_ns() // 1000, str(path))
        self._note(branch)
        self._clear(path)
        self._make_room(path)
        large = lazy_content.bytes_of(state) > COPIED_BYTES
        why_not = self._why_not_lazy(path, caller) if large else None
        if large and why_not is None:
            assert caller is not None, "without one there is a reason not to"
            self._fill_lazily(path, state, self._where(branch, caller))
        else:
            self._fill(path, state)
        how = "lazy" if large and why_not is None else "copied"
        branch = msgspec.structs.replace(branch, whole=True, how=how, why_not_lazy=why_not)
        self._note(branch)
        return self._told(branch) | {"took_ms": round((time.monotonic() - began) * 1000, 3)}

    def drop(self, name: str) -> dict[str, Any]:
        """Remove a branch and all that was written in it."""
        with self._lock:
            return self._drop(name)

    def _drop(self, name: str) -> dict[str, Any]:
        known = self._known(name)
        if known is None:
            raise errors.NotFound(
                f"there is no branch {name!r}", reason="unknown-branch", hint="dkctl branch list"
            )
        self._note(msgspec.structs.replace(known, whole=False))
        self._clear(Path(known.path))
        self._path(name).unlink()
        atomic_files.fsync_directory(self._notes)
        return self._told(known)

    def position_of(self, name: str) -> str | None:
        known = self._known(name)
        return known.position if known is not None else None

    def _make_room(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A program that runs as another user walks through to its own files.
        os.chmod(path.parent, 0o711)
        os.chmod(path.parent.parent, 0o711)

    def _why_not_lazy(self, path: Path, caller: Caller | None) -> str | None:
        if caller is None:
            return "the call did not come through a replicator"
        return trees.why_not_here(path)

    def _where(self, branch: Branch, caller: Caller) -> sources.Address:
        return sources.Address(self._volume, branch.position, caller.address, caller.token)

    def _fill_lazily(self, path: Path, state: State, where: sources.Address) -> None:
        note = trees.Note(str(path), background=True, read_only=False, temporary=False)
        trees.make(path, lazy_content.layout(state), where, note)

    def _fill(self, path: Path, state: State) -> None:
        path.mkdir(mode=0o711)
        with DirectoryWriter(path) as writer:
            for change in state_changes.restore(state):
                writer.do(change)
            writer.sync()

    def _clear(self, path: Path) -> None:
        if not places.hide(path):
            raise errors.Refused(
                f"a process is in {path}; nothing was touched",
                reason="branch-in-use",
                hint=f"end it (fuser -vm {path} names it), and try again",
            )
        if places.folder_of(path).exists():
            places.discard(places.folder_of(path), path)
        if path.exists():
            shutil.rmtree(path)

    def _path(self, name: str) -> Path:
        return self._notes / f"{name}.json"

    def _known(self, name: str) -> Branch | None:
        moments.check_name("branch", name)
        try:
            return msgspec.json.decode(self._path(name).read_bytes(), type=Branch)
        except FileNotFoundError:
            return None

    def _note(self, branch: Branch) -> None:
        atomic_files.write_bytes(self._path(branch.name), msgspec.json.encode(branch))

    def _told(self, branch: Branch) -> dict[str, Any]:
        told: dict[str, Any] = msgspec.to_builtins(branch)
        return told | {"volume": self._volume}
