"""The shared volumes of a site: made at their first mention, taken up again at a start."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from diffkeeper import atomic_files
from diffkeeper.domain import errors
from diffkeeper.log import event_log
from diffkeeper_replicator.merging_service import shared_role
from diffkeeper_replicator.merging_service.shared_role import SharedRole
from diffkeeper_replicator.merging_service.shared_volume import SharedVolume

_ROLE = "shared.json"
_AGAIN_S = 1.0
_log = structlog.get_logger("merging")


class SharedVolumes:
    def __init__(self, directory: Path, log: event_log.EventLog, now_us: Callable[[], int]) -> None:
        self._directory = directory
        self._event_log = log
        self._now_us = now_us
        self._volumes: dict[str, SharedVolume] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._changing = asyncio.Lock()

    @property
    def site(self) -> str:
        return self._event_log.site

    def resume(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        for found in sorted(self._directory.glob(f"*/{_ROLE}")):
            self._begin(found.parent.name, msgspec.json.decode(found.read_bytes(), type=SharedRole))

    def all(self) -> list[SharedVolume]:
        return [self._volumes[name] for name in sorted(self._volumes)]

    def get(self, volume: str) -> SharedVolume:
        found = self._volumes.get(volume)
        if found is None:
            raise errors.NotFound(
                f"no shared volume {volume} is known at {self.site}",
                reason="unknown-volume",
                hint="dkctl status",
            )
        return found

    async def put_role(self, volume: str, role: SharedRole) -> SharedVolume:
        """The same role again changes nothing."""
        shared_role.check(volume, role)
        # One change at a time: of two volumes begun at once one would hold what the other needs.
        async with self._changing:
            known = self._volumes.get(volume)
            if known is not None and known.role == role:
                return known
            own = self._directory / volume
            own.mkdir(parents=True, exist_ok=True)
            atomic_files.write_json(own / _ROLE, msgspec.to_builtins(role))
            await self._end(volume)
            return self._begin(volume, role)

    def _begin(self, volume: str, role: SharedRole) -> SharedVolume:
        made = SharedVolume(volume, self._directory / volume, role, self._event_log, self._now_us)
        self._volumes[volume] = made
        self._tasks[volume] = asyncio.create_task(self._keep(made), name=f"shared volume {volume}")
        return made

    async def _keep(self, volume: SharedVolume) -> None:
        """An error nobody foresaw ends one run of one volume, and is told; the next begins from what is on disk."""
        while True:
            try:
                await volume.run()
            except Exception as error:  # noqa: BLE001  a group of whatever ended its tasks; it is told, and tried again
                _log.exception("a shared volume had to begin again", volume=volume.volume)
                volume.troubles[""] = errors.DiffKeeperError(
                    f"merging stopped with {error!r}; it begins again", reason="merging-failed"
                )
            await asyncio.sleep(_AGAIN_S)

    async def _end(self, volume: str) -> None:
        task = self._tasks.pop(volume, None)
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def close(self) -> None:
        for volume in list(self._tasks):
            await self._end(volume)
