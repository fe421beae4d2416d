"""Holds the operator's lease in Kubernetes; a loss ends the process, and what takes over decides anew from the objects."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import NoReturn

import structlog

from diffkeeper.domain import errors
from diffkeeper_operator import leadership
from diffkeeper_operator.kube import Kube, Object
from diffkeeper_operator.leadership import Move
from diffkeeper_operator.settings import OperatorSettings

NAME = "diffkeeper-operator"
_log = structlog.get_logger("operator")
_VERSION = "coordination.k8s.io/v1"
# Renewed so often in its duration that two failures in a row do not lose it.
_TRIES = 4


class LeaseKeeper:
    def __init__(self, kube: Kube, settings: OperatorSettings) -> None:
        self._kube = kube
        self._namespace = settings.namespace
        self._ttl_s = settings.lease_ttl_s
        self._me = settings.who()
        self._seen: leadership.Seen | None = None

    async def acquire(self) -> None:
        """Wait for the lease."""
        while True:
            try:
                if await self.turn():
                    return
            except errors.Transient as error:
                _log.warning("the API server was not reached", why=error.message)
            await asyncio.sleep(self._ttl_s / _TRIES)

    async def keep(self) -> NoReturn:
        """Renew it for ever; raises Fenced as soon as it may be another's."""
        renewed = time.monotonic()
        while True:
            await asyncio.sleep(self._ttl_s / _TRIES)
            try:
                began = time.monotonic()
                if not await self.turn():
                    raise self._lost("another operator took the lease")
                renewed = began
            except errors.Transient as error:
                if time.monotonic() - renewed > self._ttl_s * (_TRIES - 1) / _TRIES:
                    raise self._lost(f"the lease could not be renewed: {error.message}") from error

    async def release(self) -> None:
        """Let another take it at once."""
        found = await self._find()
        if found is not None and found["spec"].get("holderIdentity") == self._me:
            await self._write({**found, "spec": {**found["spec"], "holderIdentity": ""}}, found)

    async def turn(self) -> bool:
        """One try; whether it is ours now."""
        found = await self._find()
        version = found["metadata"]["resourceVersion"] if found else ""
        now = time.monotonic()
        self._seen = leadership.seen(self._seen, version, now)
        if leadership.move(found, self._me, self._seen, now) is Move.WAIT:
            return False
        at = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        return await self._write(
            leadership.lease(NAME, self._namespace, found, self._me, self._ttl_s, at), found
        )

    async def _find(self) -> Object | None:
        return await self._kube.find(_VERSION, "Lease", self._namespace, NAME)

    async def _write(self, lease: Object, found: Object | None) -> bool:
        try:
            await (self._kube.create(lease) if found is None else self._kube.replace(lease))
        except errors.Refused as error:
            if error.reason not in ("conflict", "already-exists"):
                raise
            return False
        return True

    def _lost(self, why: str) -> errors.Fenced:
        return errors.Fenced(
            f"{why}; this operator acts no more",
            reason="lease-lost",
            hint="it starts again by itself and waits",
        )
