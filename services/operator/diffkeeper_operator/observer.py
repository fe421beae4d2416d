"""One look at the world for one SAC: its pods, the others of its kind, and what control says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from diffkeeper.domain import errors
from diffkeeper_operator import pods, specs
from diffkeeper_operator.authority import Authority
from diffkeeper_operator.kube import Kube, Object
from diffkeeper_operator.observations import Control, Observed, Other, Verified, Workload
from diffkeeper_operator.settings import OperatorSettings


class Observer:
    def __init__(
        self, kube: Kube, authority: Authority | None, settings: OperatorSettings, minor: int
    ) -> None:
        self._kube = kube
        self._authority = authority
        self._settings = settings
        self._minor = minor

    async def look(self, sac: specs.Sac) -> Observed:
        control = await self._authority.look(sac) if self._authority is not None else None
        return Observed(
            here=self._settings.cluster,
            control=control,
            workload=await self._workload(sac),
            others=await self._others(sac),
            verified=_verified(sac.status),
            draining=await self._draining(sac, control),
            minor=self._minor,
        )

    async def _workload(self, sac: specs.Sac) -> Workload:
        labels = primary_labels(sac)
        found = await self._kube.list("v1", "Pod", sac.namespace, labels)
        alive = [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]
        trouble = next((words for pod in alive if (words := _trouble(pod))), "")
        return Workload(bool(alive), sum(_is_ready(pod) for pod in alive), trouble)

    async def _others(self, sac: specs.Sac) -> tuple[Other, ...]:
        """Asked only before a resource is accepted: afterwards it gives way to nobody."""
        if sac.accepted is not None:
            return ()
        return tuple(
            other
            for body in await self._kube.list(specs.API_VERSION, "SAC")
            if (other := _other(body)) is not None
        )

    async def _draining(self, sac: specs.Sac, control: Control | None) -> bool:
        """A planned Switchover has claimed its turn and the log is still led from here."""
        if control is None or control.volume is None or control.volume.leader != self._settings.cluster:
            return False
        found = await self._kube.list(specs.API_VERSION, "Switchover", sac.namespace)
        return any(
            one["spec"]["sac"] == sac.name
            and not one["spec"].get("force")
            and one["spec"]["to"] != self._settings.cluster
            and (one.get("status") or {}).get("phase") == "Running"
            for one in found
        )


def primary_labels(sac: specs.Sac) -> str:
    if sac.spec.selector is not None:
        return _selector(sac.spec.selector.match_labels)
    return _selector({pods.LABEL_NAME: sac.name, pods.LABEL_ROLE: "primary"})


def _selector(labels: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in labels.items())


def _is_ready(pod: Object) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _trouble(pod: Object) -> str:
    """Why a pod does not come up: what a container waits for, else why it is not scheduled."""
    status = pod.get("status") or {}
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        waiting = (container.get("state") or {}).get("waiting")
        if waiting and waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            return f"{container['name']}: {waiting['reason']} {waiting.get('message', '')}".strip()
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("message") or condition.get("reason") or "not scheduled")
    return ""


def _verified(status: dict[str, Any]) -> Verified | None:
    noted = status.get("verification")
    return msgspec.convert(noted, Verified) if noted else None


def _other(body: Object) -> Other | None:
    """None for one that this operator cannot read: its own status says so."""
    try:
        other = specs.read(body)
    except errors.Misconfigured:
        return None
    selector = other.spec.selector
    return Other(
        other.namespace,
        other.name,
        other.known_volume,
        other.spec.storage.path,
        tuple(selector.match_labels.items()) if selector is not None else None,
        other.accepted is not None,
        other.created,
    )
