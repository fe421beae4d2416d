"""Programs that keep snapshots, given the same moments as the history: git, restic and borg, where they are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

TOOLS = ("git", "restic", "borg")


class Tool(Protocol):
    """A repository of one of them in an empty folder."""

    def begin(self) -> None: ...

    def keep(self, tree: Path, label: str) -> None:
        """One more snapshot, packed as well as it can."""

    def bring_back(self, into: Path) -> None:
        """The newest snapshot, whole, into an empty directory."""

    def size(self) -> int:
        """Bytes on disk."""


class Kept(NamedTuple):
    """``grown``: what all snapshots but the first cost. ``restore_s``: of the last one."""

    grown: int
    restore_s: float


def missing() -> list[str]:
    return [tool for tool in TOOLS if shutil.which(tool) is None]


def tool(name: str, folder: Path) -> Tool:
    """One of ``TOOLS`` with its repository in an empty folder."""
    return _MADE[name](folder)


def measure(name: str, folder: Path, places: Sequence[str], lay: Callable[[str, Path], None]) -> Kept:
    """Snapshots of these moments; ``lay`` puts one into a directory. The first is what all begin with."""
    repository, tree, back = folder / "repository", folder / "tree", folder / "back"
    repository.mkdir(parents=True)
    made = tool(name, repository)
    made.begin()
    sizes: list[int] = []
    for nth, at in enumerate(places):
        shutil.rmtree(tree, ignore_errors=True)
        lay(at, tree)
        made.keep(tree, f"{nth}-{at}")
        sizes.append(made.size())
    back.mkdir()
    began = time.monotonic()
    made.bring_back(back)
    took_s = time.monotonic() - began
    shutil.rmtree(folder)
    return Kept(sizes[-1] - sizes[0], took_s)


class Git:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def begin(self) -> None:
        _run([*self._git(self._folder), "init"])

    def keep(self, tree: Path, label: str) -> None:
        git = self._git(tree)
        _run([*git, "add", "--all"])
        _run([*git, "commit", "--quiet", "--allow-empty", "--message", label])
        _run([*git, "gc", "--quiet", "--prune=now"])

    def bring_back(self, into: Path) -> None:
        _run([*self._git(into), "checkout", "--quiet", "--force", "HEAD", "--", "."])

    def size(self) -> int:
        return _size(self._folder)

    def _git(self, tree: Path) -> list[str]:
        who = ["-c", "user.name=x", "-c", "user.email=x@x"]
        return ["git", f"--git-dir={self._folder}/git", f"--work-tree={tree}", *who]


class Restic:
    def __init__(self, folder: Path) -> None:
        self._folder = folder / "repository"
        self._env = {
            "RESTIC_REPOSITORY": str(self._folder),
            "RESTIC_PASSWORD": "x",
            "RESTIC_CACHE_DIR": str(folder / "cache"),
        }

    def begin(self) -> None:
        _run(["restic", "init"], self._env)

    def keep(self, tree: Path, label: str) -> None:
        _run(["restic", "backup", "--quiet", "--tag", label, "."], self._env, tree)

    def bring_back(self, into: Path) -> None:
        _run(["restic", "restore", "latest", "--quiet", "--target", str(into)], self._env)

    def size(self) -> int:
        return _size(self._folder)


class Borg:
    def __init__(self, folder: Path) -> None:
        self._folder = folder / "repository"
        self._last = ""
        self._env = {
            "BORG_BASE_DIR": str(folder / "base"),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        }

    def begin(self) -> None:
        _run(["borg", "init", "--encryption", "none", str(self._folder)], self._env)

    def keep(self, tree: Path, label: str) -> None:
        self._last = f"{self._folder}::{label}"
        _run(["borg", "create", self._last, "."], self._env, tree)

    def bring_back(self, into: Path) -> None:
        _run(["borg", "extract", self._last], self._env, into)

    def size(self) -> int:
        return _size(self._folder)


_MADE: dict[str, Callable[[Path], Tool]] = {"git": Git, "restic": Restic, "borg": Borg}


def _run(argv: Sequence[str], env: dict[str, str] | None = None, cwd: Path | None = None) -> None:
    subprocess.run(argv, check=True, capture_output=True, env={**os.environ, **(env or {})}, cwd=cwd)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
