"""Does a Switchover or a Restore, and writes down what happened. What to do is decided in ``one_shots``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from diffkeeper.domain import errors
from diffkeeper_operator import one_shots, phases, pods, specs, views
from diffkeeper_operator.control import ControlClient
from diffkeeper_operator.kube import Kube, Object

Kind = Literal["Switchover", "Restore"]
_RETRIED = (errors.Transient,)


class OneShotWorker:
    def __init__(
        self, kube: Kube, control: ControlClient | None, cluster: str, now_us: Callable[[], int]
    ) -> None:
        self._kube = kube
        self._control = control
        self._cluster = cluster
        self._now_us = now_us

    async def step(self, kind: Kind, namespace: str, name: str) -> bool:
        """Bring it as far as it goes now; whether it is over. Raises Transient when it is worth trying again."""
        body = await self._kube.find(specs.API_VERSION, kind, namespace, name)
        if body is None or one_shots.is_over(body.get("status") or {}):
            return True
        request = one_shots.read(kind, body["spec"])
        sac = await self._sac(namespace, request.sac)
        if not body.get("status"):
            body = await self._claim(body, request, sac)
            if one_shots.is_over(body["status"]):
                return True
        if sac is None:
            gone = errors.Refused("the SAC is gone; nothing more was done", reason="gone")
            return await self._write(body, one_shots.refused(gone, self._at()))
        if self._control is None:
            none = errors.Refused(
                "the operator has no control to ask, and only control moves or restores a volume; nothing was done",
                reason="no-control",
                hint="set control in the operator's settings and make another",
            )
            return await self._write(body, one_shots.refused(none, self._at()))
        try:
            if isinstance(request, one_shots.SwitchoverSpec):
                return await self._switch_over(body, request, sac)
            return await self._restore(body, request, sac)
        except _RETRIED:
            raise
        except errors.DiffKeeperError as error:
            return await self._write(body, one_shots.refused(error, self._at()))

    async def _claim(self, body: Object, request: one_shots.Request, sac: specs.Sac | None) -> Object:
        """By compare-and-set: of two operators, one has it. Nothing is asked of control before."""
        last = ""
        if sac is not None and self._control is not None:
            known = await self._control.operations(sac.known_volume)
            last = known[-1].id if known else ""
        status = one_shots.claim(request, sac, last, self._at())
        return await self._kube.patch_status(body, status, only_if_unchanged=True)

    async def _switch_over(self, body: Object, request: one_shots.SwitchoverSpec, sac: specs.Sac) -> bool:
        control, status, volume = self._control, body["status"], sac.known_volume
        assert control is not None, "checked by step"
        if known := status.get("operation"):
            return await self._follow(body, await control.operation(known))
        begun = one_shots.adopted(status, await control.operations(volume))
        if begun is None:
            seen = await control.volume(volume)
            if seen is not None and seen.leader == request.to:
                return await self._write(body, one_shots.already_there(request.to, self._at()))
            if not request.force and seen is not None and await self._program_runs(seen, request, sac):
                return False
            begun = await control.failover(volume, one_shots.failover_body(request))
            body = await self._kube.patch_status(body, {"from": (seen.leader if seen else "") or ""})
        return await self._follow(body, begun)

    async def _program_runs(
        self, seen: views.Volume, request: one_shots.SwitchoverSpec, sac: specs.Sac
    ) -> bool:
        """Whether the program still has to leave its pod. Only the leader's own cluster can make it leave."""
        if seen.leader_state != "alive":
            return False
        if seen.leader != self._cluster:
            raise errors.Refused(
                f"{seen.leader} leads and is alive, and this is {self._cluster}; nothing was done",
                reason="not-the-leader",
                hint=f"make the Switchover in the cluster {seen.leader}, whose operator can stop the program at a barrier",
            )
        if seen.at(request.to) is None:
            raise errors.NotFound(
                f"DiffKeeper has no site {request.to}; nothing was done", reason="unknown-site"
            )
        if sac.spec.selector is not None:
            return False
        labels = f"{pods.LABEL_NAME}={sac.name},{pods.LABEL_ROLE}=primary"
        return bool(await self._kube.list("v1", "Pod", sac.namespace, labels))

    async def _follow(self, body: Object, operation: views.Operation) -> bool:
        return await self._write(body, one_shots.of_operation(operation, self._at()))

    async def _restore(self, body: Object, request: one_shots.RestoreSpec, sac: specs.Sac) -> bool:
        control, volume = self._control, sac.known_volume
        assert control is not None, "checked by step"
        position = body["status"].get("position")
        if not position:
            # Once for all: what ``latest`` or ``5m`` mean changes while one waits.
            moment = await control.moment(volume, request.at)
            position = moment.position or ""
            told: dict[str, Any] = {"position": position}
            if moment.at_us is not None:
                told["at"] = phases.rfc3339(moment.at_us)
            body = await self._kube.patch_status(body, told)
        branch = await control.branch(volume, one_shots.branch_name(body["metadata"]["name"]), position)
        return await self._write(body, one_shots.of_branch(branch, body["status"].get("at", ""), self._at()))

    async def _write(self, body: Object, more: one_shots.Status) -> bool:
        """Add to the status, if that changes it; whether it is over now."""
        status = body.get("status") or {}
        if any(status.get(key) != value for key, value in more.items()):
            await self._kube.patch_status(body, more)
        return one_shots.is_over(more)

    async def _sac(self, namespace: str, name: str) -> specs.Sac | None:
        body = await self._kube.find(specs.API_VERSION, "SAC", namespace, name)
        return None if body is None else specs.read(body)

    def _at(self) -> str:
        return phases.rfc3339(self._now_us())
