"""The end of a SAC, which never loses data: program stopped, capture ended whole, and only then what the policy says.

The volume's log and its copies in other clusters stay in any case: the way back is to apply the resource again, or a Restore.
Each call does what can be done now and says what it waits for; Kubernetes keeps the resource until nothing is left to wait for.
"""

from __future__ import annotations

from diffkeeper.domain import errors
from diffkeeper_operator import pods, specs
from diffkeeper_operator.control import ControlClient
from diffkeeper_operator.kube import Kube, Object
from diffkeeper_operator.own_agents import OwnAgents

# Whoever knows that control will never answer again lets the resource go with this, set to its name.
ABANDON = f"{specs.GROUP}/abandon"


class Deleter:
    def __init__(
        self, kube: Kube, control: ControlClient | None, cluster: str, agents: OwnAgents | None = None
    ) -> None:
        self._kube = kube
        self._control = control
        self._agents = agents
        self._cluster = cluster

    async def step(self, body: Object) -> str:
        """What is waited for, or nothing when the resource may go."""
        try:
            sac = specs.read(body)
        except errors.Misconfigured:
            # It was never made anything of.
            return ""
        if sac.accepted is None:
            return ""
        if sac.spec.selector is None:
            waiting = await self._stop(sac, body)
            if waiting:
                return waiting
        waiting = await self._end_capture(sac, body)
        if not waiting and sac.spec.deletion_policy == "Delete":
            await self._drop_claims(sac)
        return waiting

    async def _stop(self, sac: specs.Sac, body: Object) -> str:
        kind = "StatefulSet" if sac.accepted is None or sac.accepted.stateful else "Deployment"
        found = await self._kube.find("apps/v1", kind, sac.namespace, sac.name)
        if found is not None:
            if waiting := await self._flush(sac, body):
                return waiting
            await self._kube.delete(found)
        left = await self._kube.list("v1", "Pod", sac.namespace, f"{pods.LABEL_NAME}={sac.name}")
        return f"{len(left)} pods are still ending." if left else ""

    async def _flush(self, sac: specs.Sac, body: Object) -> str:
        """An agent in the pod ends with it. What it had not shipped stays on its claim, unless that is to go as well."""
        if self._agents is None or sac.spec.deletion_policy != "Delete" or _is_abandoned(sac, body):
            return ""
        try:
            await self._agents.flush(sac)
        except errors.DiffKeeperError as error:
            return _kept(sac, error)
        return ""

    async def _end_capture(self, sac: specs.Sac, body: Object) -> str:
        if self._control is None or _is_abandoned(sac, body):
            return ""
        name = sac.known_volume
        try:
            volume = await self._control.volume(name)
            if volume is None or volume.leader != self._cluster or volume.state in ("idle", "released"):
                return ""
            await self._control.detach(name)
        except errors.DiffKeeperError as error:
            return _kept(sac, error)
        return ""

    async def _drop_claims(self, sac: specs.Sac) -> None:
        labels = f"{pods.LABEL_NAME}={sac.name}"
        for claim in await self._kube.list("v1", "PersistentVolumeClaim", sac.namespace, labels):
            await self._kube.delete(claim)


def _is_abandoned(sac: specs.Sac, body: Object) -> bool:
    return bool((body["metadata"].get("annotations") or {}).get(ABANDON) == sac.name)


def _kept(sac: specs.Sac, error: errors.DiffKeeperError) -> str:
    return (
        f"The capture of {sac.known_volume} has not ended, so nothing was removed: {error.message}. {error.hint} "
        f"To let the resource go all the same: kubectl annotate sac {sac.name} {ABANDON}={sac.name}"
    )
