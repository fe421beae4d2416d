"""Where kopf meets the reconciler: thin, and without decisions.

A SAC has one daemon, which does its steps one after the other: soon after an event, and otherwise at the interval. A failed step is
logged and tried again at the next; nothing is restarted because of it. Kopf keeps its notes in annotations, and posts no events.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

import kopf
import structlog

from diffkeeper.domain import errors
from diffkeeper_operator import specs
from diffkeeper_operator.deletion import Deleter
from diffkeeper_operator.kube import Kube
from diffkeeper_operator.one_shot_worker import Kind, OneShotWorker
from diffkeeper_operator.reconciler import Key, Reconciler

FINALIZER = f"{specs.GROUP}/keeps-state"
# How long a daemon may take to notice that its resource goes.
_GRACE_S = 5.0
# How often what waits for something is looked at again.
_AGAIN_S = 2.0

_log = structlog.get_logger("operator")


class Handlers:
    """The handlers of one operator, in a registry of their own."""

    def __init__(
        self,
        kube: Kube,
        reconciler: Reconciler,
        deleter: Deleter,
        worker: OneShotWorker,
        *,
        interval_s: float,
    ) -> None:
        self.registry = kopf.OperatorRegistry()
        self._kube = kube
        self._reconciler = reconciler
        self._deleter = deleter
        self._worker = worker
        self._interval_s = interval_s
        # What was told of each resource last: the same trouble is told once.
        self._told: dict[Key, str] = {}
        self._wakes: defaultdict[Key, asyncio.Event] = defaultdict(asyncio.Event)
        self._register()

    def _register(self) -> None:
        sac = (specs.GROUP, specs.VERSION, "sacs")
        kopf.on.event(*sac, registry=self.registry)(self.wake)
        kopf.daemon(*sac, registry=self.registry, cancellation_timeout=_GRACE_S)(self.care)
        kopf.timer(*sac, registry=self.registry, interval=self._interval_s, initial_delay=self._interval_s)(
            self.verify
        )
        kopf.on.delete(*sac, registry=self.registry)(self.end)
        for plural, kind in (("switchovers", self.switch_over), ("restores", self.restore)):
            kopf.on.create(specs.GROUP, specs.VERSION, plural, registry=self.registry)(kind)
            kopf.on.resume(specs.GROUP, specs.VERSION, plural, registry=self.registry)(kind)

    async def wake(self, namespace: str | None, name: str | None, **_: Any) -> None:
        self._wakes[str(namespace), str(name)].set()

    async def care(self, namespace: str | None, name: str | None, stopped: Any, **_: Any) -> None:
        key = (str(namespace), str(name))
        wake = self._wakes[key]
        while not stopped:
            wake.clear()
            try:
                await self._reconciler.step(*key)
                self._told.pop(key, None)
            except errors.DiffKeeperError as error:
                self._tell("a step failed", key, error)
            await _either(wake, self._interval_s)
        self._wakes.pop(key, None)

    async def verify(self, namespace: str | None, name: str | None, **_: Any) -> None:
        key = (str(namespace), str(name))
        try:
            await self._reconciler.verify(*key)
        except errors.DiffKeeperError as error:
            self._tell("a verification failed", key, error)

    def _tell(self, what: str, key: Key, error: errors.DiffKeeperError) -> None:
        if self._told.get(key) != error.message:
            self._told[key] = error.message
            _log.warning(what, namespace=key[0], name=key[1], reason=error.reason, why=error.message)

    async def end(self, namespace: str | None, name: str | None, **_: Any) -> None:
        key = (str(namespace), str(name))
        async with self._reconciler.turns[key]:
            body = await self._kube.find(specs.API_VERSION, "SAC", *key)
            if body is None:
                return
            try:
                waiting = await self._deleter.step(body)
            except errors.DiffKeeperError as error:
                waiting = error.message
            if not waiting:
                return
            status = {"phase": "Deleting", "message": waiting}
            if any((body.get("status") or {}).get(field) != value for field, value in status.items()):
                await self._kube.patch_status(body, status)
        raise kopf.TemporaryError(waiting, delay=_AGAIN_S)

    async def switch_over(self, namespace: str | None, name: str | None, **_: Any) -> None:
        await self._once("Switchover", namespace, name)

    async def restore(self, namespace: str | None, name: str | None, **_: Any) -> None:
        await self._once("Restore", namespace, name)

    async def _once(self, kind: Kind, namespace: str | None, name: str | None) -> None:
        try:
            over = await self._worker.step(kind, str(namespace), str(name))
        except errors.DiffKeeperError as error:
            if isinstance(error, errors.Transient) or error.reason == "conflict":
                raise kopf.TemporaryError(error.message, delay=_AGAIN_S) from error
            raise kopf.PermanentError(error.message) from error
        for wake in self._wakes.values():
            wake.set()
        if not over:
            raise kopf.TemporaryError(f"{kind} {name} is under way", delay=_AGAIN_S)


async def _either(wake: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(wake.wait(), seconds)
    except TimeoutError:
        return


def kopf_settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.persistence.finalizer = FINALIZER
    # Structural schemas prune what is put into status; annotations are always there.
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=specs.GROUP)
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=specs.GROUP)
    settings.posting.enabled = False
    settings.scanning.disabled = True
    # A watch that the network cut silently is begun anew.
    settings.watching.server_timeout = 60
    settings.watching.client_timeout = 90
    settings.networking.request_timeout = 30
    settings.peering.standalone = True
    return settings
