"""Writable copies of a volume at a moment: directories beside the replicas, and a note of each.

A branch is noted before its directory is begun and marked whole once that is complete, so a crash leaves
either no branch or a whole one, or one that the next call begins anew. What a program does in a branch touches
nothing else.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from diffkeeper import atomic_files
from diffkeeper.directory_writer import DirectoryWriter
from diffkeeper.domain import errors, moments
from diffkeeper_replicator import state_changes
from diffkeeper_replicator.states import State

FOLDER = ".branches"


class Branch(msgspec.Struct, frozen=True):
    name: str
    position: str
    at_us: int
    created_us: int
    path: str
    whole: bool = False


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

    def create(self, name: str, point: moments.Point, state: State) -> dict[str, Any]:
        """A directory that holds the state at a point. The same again is answered with what is there."""
        with self._lock:
            return self._create(name, point, state)

    def _create(self, name: str, point: moments.Point, state: State) -> dict[str, Any]:
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
        self._fill(path, state)
        branch = msgspec.structs.replace(branch, whole=True)
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

    def _fill(self, path: Path, state: State) -> None:
        path.mkdir(parents=True, mode=0o711)
        # A program that runs as another user walks through to its own files.
        os.chmod(path.parent, 0o711)
        os.chmod(path.parent.parent, 0o711)
        with DirectoryWriter(path) as writer:
            for change in state_changes.restore(state):
                writer.do(change)
            writer.sync()

    def _clear(self, path: Path) -> None:
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
