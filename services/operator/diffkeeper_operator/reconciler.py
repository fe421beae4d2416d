"""One SAC brought a step nearer to what it says: look, decide, write what differs, tell. Nothing is remembered between steps.

A step can be cut off anywhere and done again: objects are applied, a password is created only if it is not there, attaching again
is answered as before, and the status comes last.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import structlog

from diffkeeper.domain import errors
from diffkeeper_operator import conditions, phases, pods, refusals, specs
from diffkeeper_operator import desired as objects
from diffkeeper_operator.authority import Authority
from diffkeeper_operator.control import ControlClient
from diffkeeper_operator.kube import Kube, Object
from diffkeeper_operator.observations import Observed, runs_here
from diffkeeper_operator.observer import Observer
from diffkeeper_operator.own_agents import OwnAgents
from diffkeeper_operator.settings import OperatorSettings

Key = tuple[str, str]

_log = structlog.get_logger("operator")


def wall_us() -> int:
    return time.time_ns() // 1000


class Reconciler:
    def __init__(
        self,
        kube: Kube,
        control: ControlClient | None,
        settings: OperatorSettings,
        minor: int,
        now_us: Callable[[], int] = wall_us,
        agents: OwnAgents | None = None,
    ) -> None:
        self._kube = kube
        self._control = control
        self._settings = settings
        self._authority: Authority | None = control or agents
        self._observer = Observer(kube, self._authority, settings, minor)
        self._now_us = now_us
        # When the figures of each status were written last.
        self._written: dict[Key, int] = {}
        # A step and the deletion of the same resource exclude each other.
        self.turns: defaultdict[Key, asyncio.Lock] = defaultdict(asyncio.Lock)
        # Of two resources that want the same volume, one is accepted before the other is looked at.
        self._accepting = asyncio.Lock()

    async def step(self, namespace: str, name: str) -> None:
        async with self.turns[namespace, name]:
            body = await self._kube.find(specs.API_VERSION, "SAC", namespace, name)
            if body is None or "deletionTimestamp" in body["metadata"]:
                return
            await self._step(body)

    async def _step(self, body: Object) -> None:
        try:
            sac = specs.read(body)
        except errors.Misconfigured as error:
            await self._refuse(body, error)
            return
        if not sac.status.get("conditions"):
            body = await self._begin(sac, body)
            sac = specs.read(body)
        async with self._accepting:
            observed = await self._observer.look(sac)
            refusal = refusals.of(sac, observed)
            if refusal is None and sac.accepted is None:
                body = await self._kube.patch_status(body, {"accepted": phases.accepted(sac)})
                sac = specs.read(body)
        if refusal is None and not sac.spec.paused:
            await self._make(sac, observed)
            observed = await self._protect(sac, observed)
        await self._tell(sac, body, phases.status(sac, observed, refusal, self._now()))

    async def verify(self, namespace: str, name: str) -> None:
        """The chain and all copies compared to the byte, when it is due; the status keeps the verdict."""
        body = await self._kube.find(specs.API_VERSION, "SAC", namespace, name)
        if body is None or self._control is None:
            return
        sac = specs.read(body)
        if sac.accepted is None or not self._is_due(sac):
            return
        found = await self._control.verify(sac.known_volume)
        verdict = {"at": self._now(), "ok": found.ok, "verdict": found.verdict}
        await self._kube.patch_status(body, {"verification": verdict})

    def _is_due(self, sac: specs.Sac) -> bool:
        """Once the volume is known to be led, and then again and again."""
        last = sac.status.get("verification")
        if last is None:
            return bool(sac.status.get("epoch"))
        return str(last["at"]) <= phases.rfc3339(self._now_us() - round(self._settings.verify_every_s * 1e6))

    async def _begin(self, sac: specs.Sac, body: Object) -> Object:
        first = conditions.merged([], conditions.at_first(), self._now(), sac.generation)
        status = {"phase": "Pending", "message": "It has been seen.", "conditions": first}
        return await self._kube.patch_status(body, status)

    async def _refuse(self, body: Object, error: errors.DiffKeeperError) -> None:
        status = {"phase": "Refused", "message": f"{error.message}. {error.hint}"}
        if body.get("status", {}).get("message") != status["message"]:
            await self._kube.patch_status(body, status)

    async def _make(self, sac: specs.Sac, observed: Observed) -> None:
        # The first whole status is written after the password, so it is tried until then and never again.
        if (
            not sac.status.get("observedGeneration")
            and sac.spec.selector is None
            and pods.needs_password(sac)
        ):
            await self._make_password(sac)
        for wanted in objects.desired(sac, observed, self._settings):
            metadata = wanted["metadata"]
            found = await self._kube.find(
                wanted["apiVersion"], wanted["kind"], metadata["namespace"], metadata["name"]
            )
            if found is None or objects.differs(wanted, found):
                await self._kube.apply(wanted)
                _log.info("applied", kind=wanted["kind"], name=metadata["name"], namespace=sac.namespace)

    async def _make_password(self, sac: specs.Sac) -> None:
        """Created, never read nor written again. Without an owner: the data outlives the resource and still wants it."""
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": pods.password_secret(sac),
                "namespace": sac.namespace,
                "labels": pods.labels(sac),
            },
            "stringData": {"password": secrets.token_urlsafe(24)},
        }
        try:
            await self._kube.create(secret)
        except errors.Refused as error:
            if error.reason != "already-exists":
                raise

    async def _protect(self, sac: specs.Sac, observed: Observed) -> Observed:
        """Bring the running program's directory under capture, and the history under its policy.

        What was observed, with the reason where capture could not be begun.
        """
        control = observed.control
        if control is None or control.failure is not None:
            return observed
        volume = control.volume
        free = volume is None or volume.state in ("idle", "released")
        mine = volume is None or volume.leader in (None, "", observed.here)
        ready = observed.workload is not None and observed.workload.ready > 0
        if free and mine and ready and runs_here(sac, observed):
            observed = await self._attach(sac, observed)
        wanted = specs.retention_policy(sac.spec.retention)
        kept = control.history.policy if control.history is not None else wanted
        if self._control is not None and wanted is not None and kept != wanted:
            await self._control.keep(sac.known_volume, wanted)
        return observed

    async def _attach(self, sac: specs.Sac, observed: Observed) -> Observed:
        assert self._authority is not None, "somebody was asked"
        try:
            await self._authority.attach(sac, _attach_body(sac, observed))
        except errors.DiffKeeperError as error:
            _log.warning("not captured", name=sac.name, namespace=sac.namespace, why=error.message)
            return replace(observed, not_attached=error)
        return observed

    async def _tell(self, sac: specs.Sac, body: Object, status: dict[str, Any]) -> None:
        key, now = (sac.namespace, sac.name), self._now_us()
        told = phases.changed(sac.status, status)
        late = now - self._written.get(key, 0) >= self._settings.figures_every_s * 1e6
        if not told and not (late and any(sac.status.get(one) != status.get(one) for one in phases.FIGURES)):
            return
        await self._kube.patch_status(body, status)
        self._written[key] = now
        for kind, reason, message in phases.news(sac.status, status):
            await self.announce(body, kind, reason, message)

    async def announce(self, body: Object, kind: str, reason: str, message: str) -> None:
        """An event about a resource: Normal or Warning."""
        metadata = body["metadata"]
        at = self._now()
        await self._kube.create(
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {
                    "name": f"{metadata['name']}.{secrets.token_hex(8)}",
                    "namespace": metadata["namespace"],
                },
                "involvedObject": {
                    "apiVersion": body["apiVersion"],
                    "kind": body["kind"],
                    "name": metadata["name"],
                    "namespace": metadata["namespace"],
                    "uid": metadata["uid"],
                },
                "type": kind,
                "reason": reason,
                # The API server refuses longer ones.
                "message": message[:1024],
                "source": {"component": "diffkeeper-operator"},
                "reportingComponent": specs.GROUP,
                "firstTimestamp": at,
                "lastTimestamp": at,
                "count": 1,
            }
        )

    def _now(self) -> str:
        return phases.rfc3339(self._now_us())


def _attach_body(sac: specs.Sac, observed: Observed) -> dict[str, Any]:
    accepted = sac.accepted or sac.acceptable()
    return {
        "site": observed.here,
        "path": accepted.path,
        "durability": sac.durability(observed.here),
        "policy": sac.spec.policy,
        "mode": accepted.mode,
        "probe": "auto",
    }
