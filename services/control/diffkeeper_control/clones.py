"""Clones of followers' directories, each with an owner: whoever asked for it, a process of this machine.

A clone lies below ``sites/SITE/clones`` and lives as long as its owner: when that has ended without taking it
away, ``sweep`` does, with every program that was started on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from diffkeeper import atomic_files
from diffkeeper.domain import errors
from diffkeeper_control import admissions, processes
from diffkeeper_control.embedded import Embedded
from diffkeeper_control.registry import Registry

# In the environment of whatever runs on a clone: its directory.
CLONE = "DIFFKEEPER_CLONE"
_NOTE_SUFFIX = ".json"

_log = structlog.get_logger("clones")


@dataclass(frozen=True, slots=True)
class Clone:
    id: str
    site: str
    path: Path
    position: str
    hash: str
    # How long the replica did not apply for it.
    took_ms: float


class _Note(msgspec.Struct, frozen=True):
    volume: str
    pid: int
    start_ticks: int
    since_us: int


class Clones:
    def __init__(self, embedded: Embedded, known: Registry) -> None:
        self._embedded = embedded
        self._registry = known

    async def make(self, volume: str, site: str, owner: processes.ProcessId) -> Clone:
        """Clone the volume's replica at a site that follows. Raises Refused, NotFound, Transient."""
        known = self._registry.get(volume)
        admissions.check_site(site, self._embedded.sites)
        if known.leader == site:
            raise errors.Refused(
                f"site {site} leads volume {volume}: its directory belongs to its program",
                reason="leads",
                hint="name a site that follows; dkctl status shows them",
                site=site,
            )
        directory = self._embedded.layout.clones(site)
        directory.mkdir(parents=True, exist_ok=True, mode=0o711)
        since_us = time.time_ns() // 1000
        clone_id = f"{volume}-{since_us}"
        note = _Note(volume, owner.pid, owner.start_ticks, since_us)
        atomic_files.write_bytes(directory / f"{clone_id}{_NOTE_SUFFIX}", msgspec.json.encode(note))
        path = directory / clone_id
        try:
            answer = await self._embedded.clients[site].replicator.clone(volume, str(path))
        except BaseException:
            await self.remove(site, clone_id)
            raise
        return Clone(clone_id, site, path, answer["position"], answer["hash"], float(answer["took_ms"]))

    async def remove(self, site: str, clone_id: str) -> None:
        """Take a clone away, and end what runs on it. Of one that is gone nothing is left to do."""
        directory = self._embedded.layout.clones(site)
        path = directory / clone_id
        if path.parent != directory:
            raise errors.Refused(f"{clone_id!r} is no clone", reason="bad-name")
        await processes.kill_all(processes.with_environment(CLONE, str(path)))
        with contextlib.suppress(FileNotFoundError):  # gone, or somebody else is at it
            await asyncio.to_thread(shutil.rmtree, path)
        (directory / f"{clone_id}{_NOTE_SUFFIX}").unlink(missing_ok=True)

    async def sweep(self) -> None:
        """Take away the clones whose owners have ended."""
        for site in self._embedded.sites:
            directory = self._embedded.layout.clones(site)
            for path in sorted(directory.glob(f"*{_NOTE_SUFFIX}")) if directory.is_dir() else ():
                try:
                    await self._sweep(site, path)
                except FileNotFoundError:
                    continue  # its owner took it away just now
                except (OSError, msgspec.DecodeError) as error:
                    _log.error("a clone could not be taken away", note=str(path), error=str(error))

    async def _sweep(self, site: str, path: Path) -> None:
        note = msgspec.json.decode(path.read_bytes(), type=_Note)
        if not processes.is_running(processes.ProcessId(note.pid, note.start_ticks)):
            _log.info("taking away a clone whose owner has ended", site=site, clone=path.stem)
            await self.remove(site, path.stem)
