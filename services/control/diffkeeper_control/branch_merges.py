"""Orphan branches as control serves them: told from all sites, compared, taken over, dropped.

Taking a branch's files into the main line is done as any program would do it: written into the leader's directory, under
its capture. So it is an ordinary part of the log, and can be undone as one. Nobody may write there meanwhile.
"""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from diffkeeper.domain import errors
from diffkeeper_control import left_directories, registry
from diffkeeper_control.embedded import Embedded
from diffkeeper_control.lifecycle import Lifecycle
from diffkeeper_control.registry import Volume

SYNC_TIMEOUT_S = 60.0


class BranchMerges:
    def __init__(self, embedded: Embedded, known: registry.Registry, lifecycle: Lifecycle) -> None:
        self._embedded = embedded
        self._registry = known
        self._lifecycle = lifecycle

    async def every(self, name: str) -> list[dict[str, Any]]:
        volume = self._registry.get(name)
        running = [site for site in self._embedded.sites if not self._embedded.is_stopped(site)]
        return await left_directories.branches(volume, self._embedded.clients, running)

    async def compared(self, name: str, branch: str, query: dict[str, str]) -> dict[str, Any]:
        holder = await self._holder(name, branch)
        return await self._embedded.clients[holder].replicator.branch(name, branch, query)

    async def drop(self, name: str, branch: str) -> dict[str, Any]:
        holder = await self._holder(name, branch)
        return await self._embedded.clients[holder].replicator.drop_branch(name, branch)

    async def merge(self, name: str, branch: str, paths: list[str], to: str | None) -> dict[str, Any]:
        """The branch's version of ``paths`` (all of them without any) into a directory, or into the main line."""
        holder = await self._holder(name, branch)
        if to is not None:
            taken = await self._take(name, holder, branch, {"paths": paths, "to": to})
            return {**taken, "to": to, "position": None}
        async with self._lifecycle.lock(name):
            volume = self._registry.get(name)
            await self._check_quiet(volume, holder)
            before = await self._lifecycle.sync(name, "remote", SYNC_TIMEOUT_S)
            replicator = self._embedded.clients[holder].replicator
            await replicator.catch_up(name, before["position"], SYNC_TIMEOUT_S)
            with tempfile.TemporaryDirectory(dir=self._embedded.layout.control) as folder:
                to = str(Path(folder) / "taken")
                taken = await self._take(name, holder, branch, {"paths": paths, "to": to, "untouched": True})
                target = Path(volume.paths[volume.leader])
                await asyncio.to_thread(_put, Path(to), target, taken["removed"])
            after = await self._lifecycle.sync(name, "remote", SYNC_TIMEOUT_S)
        return {**taken, "to": None, "position": after["position"]}

    async def _take(self, name: str, site: str, branch: str, body: dict[str, Any]) -> dict[str, Any]:
        return await self._embedded.clients[site].replicator.take_branch(name, branch, body)

    async def _holder(self, name: str, branch: str) -> str:
        for found in await self.every(name):
            if found["name"] != branch:
                continue
            if found["state"] != "kept":
                raise errors.Refused(
                    f"branch {branch} is not one that can be read yet: its directory {found['path']} is "
                    f"{found['state']}",
                    reason="branch-not-kept",
                    hint=f"start site {found['site']}; or look into the directory itself",
                )
            return str(found["held_by"])
        known = ", ".join(found["name"] for found in await self.every(name)) or "none"
        raise errors.NotFound(
            f"{name} has no branch {branch!r}",
            reason="unknown-branch",
            hint=f"dkctl branch list; known: {known}",
        )

    async def _check_quiet(self, volume: Volume, holder: str) -> None:
        status = await self._embedded.clients[volume.leader].agent.volume(volume.name)
        if status is None or status.get("state") != "capturing":
            raise errors.Refused(
                f"nothing captures {volume.name} at its leader {volume.leader}; nothing was taken",
                reason="not-captured",
                hint=f"dkctl attach {volume.name} --site {volume.leader}, then again; or merge --to DIR",
            )
        program = status.get("program")
        if program and program.get("running"):
            raise errors.Refused(
                f"process {program['pid']} runs on {volume.name}; its files are not changed under it",
                reason="program-running",
                hint="stop it first, or take the branch's version into a directory: --to DIR",
                pid=program["pid"],
            )
        if holder == volume.leader:
            raise errors.Refused(
                f"the branch is held by {holder}, which leads now and does not follow what it writes itself",
                reason="held-by-leader",
                hint="take it into a directory (--to DIR), or fail over to another site first",
            )


def _put(taken: Path, target: Path, removed: list[str]) -> None:
    """Each file in one step, over what is there."""
    root = os.path.realpath(target)
    for folder, names, files in os.walk(taken):
        into = target / Path(folder).relative_to(taken)
        _check_inside(root, into)
        for name in names:
            if not (Path(folder) / name).is_symlink():
                (into / name).mkdir(exist_ok=True)
        for name in [*files, *(name for name in names if (Path(folder) / name).is_symlink())]:
            source, temporary = Path(folder) / name, into / f".{name}.taken"
            shutil.copy2(source, temporary, follow_symlinks=False)
            os.chown(temporary, source.lstat().st_uid, source.lstat().st_gid, follow_symlinks=False)
            os.rename(temporary, into / name)
    for text in removed:
        gone = target / _raw(text)
        _check_inside(root, gone.parent)
        if gone.is_dir() and not gone.is_symlink():
            if not any(gone.iterdir()):
                gone.rmdir()
        else:
            gone.unlink(missing_ok=True)


def _check_inside(root: str, folder: Path) -> None:
    """A program may have put a symbolic link where the branch has a directory."""
    real = os.path.realpath(folder)
    if real != root and not real.startswith(root + "/"):
        raise errors.Refused(
            f"{folder} leads out of the volume; nothing was written there", reason="path-leads-outside"
        )


def _raw(text: str) -> str:
    if text.startswith("b64:"):
        return os.fsdecode(base64.b64decode(text.removeprefix("b64:")))
    return text
