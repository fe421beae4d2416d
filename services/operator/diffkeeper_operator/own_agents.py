"""The capture agents in this cluster's own pods, asked directly: what is known of a volume where there is no control.

One cluster leads and none takes over, so nothing is decided here: the first epoch is the only one, and it is the agent that
knows its log. Every call is idempotent, and what cannot be asked is part of the answer.
"""

from __future__ import annotations

import ipaddress
from typing import Any

import aiohttp

from diffkeeper import http
from diffkeeper.domain import errors, frames, positions
from diffkeeper_operator import agent_views, pods, specs, views
from diffkeeper_operator.kube import Kube, Object
from diffkeeper_operator.observations import Control

ASK_S = 10.0
# The agent answers once capture has begun; the base is read behind it.
ATTACH_S = 60.0
# How long what the program wrote last may take to reach the log before its pod is ended.
SYNC_S = 20.0
EPOCH = 1


class OwnAgents:
    """``token``: that of the agents, which every pod gets from the Secret of its namespace."""

    def __init__(self, kube: Kube, session: aiohttp.ClientSession, token: str, here: str) -> None:
        self._kube = kube
        self._session = session
        self._token = token
        self._here = here

    async def look(self, sac: specs.Sac) -> Control:
        """What control would say, as far as one agent knows it."""
        sites = tuple(views.Site(cluster.name, "alive") for cluster in sac.clusters(self._here))
        try:
            volume = await self._volume(sac)
        except errors.DiffKeeperError as error:
            return Control(failure=error, direct=True)
        return Control(sites=sites, volume=volume, direct=True)

    async def attach(self, sac: specs.Sac, order: dict[str, Any]) -> None:
        """Have the agent of the program's pod capture what ``order`` says; said again, nothing changes."""
        address = await self._address(sac)
        if address is None:
            return
        others = [one.name for one in sac.clusters(self._here) if one.replicas and one.name != self._here]
        body = {
            **{key: order[key] for key in ("path", "durability", "policy", "probe")},
            "epoch": EPOCH,
            "parent": {"position": str(positions.START), "hash": frames.NO_HASH.hex()},
            "replicas": others,
        }
        await self._call("POST", f"{address}/v1/volumes/{sac.known_volume}/attach", body, ATTACH_S)

    async def flush(self, sac: specs.Sac) -> None:
        """Everything written so far is in the log; raises where that cannot be said.

        Nothing is to be done where no pod runs or nothing is captured: what an agent had left is on its claim.
        """
        address = await self._address(sac)
        if address is None:
            return
        told = (await self._status(address)).of(sac.known_volume)
        if told is None or told.state not in ("scanning", "capturing"):
            return
        body = {"level": "site", "timeout_s": SYNC_S}
        await self._call("POST", f"{address}/v1/volumes/{sac.known_volume}/sync", body, SYNC_S + 5.0)

    async def _volume(self, sac: specs.Sac) -> views.Volume | None:
        if sac.spec.agent.form != "sidecar":
            raise errors.Misconfigured(
                "No agent runs in the pods (spec.agent.form is node), and the operator has no control to ask",
                reason="no-agent-in-pod",
                hint="Set spec.agent.form to sidecar, or give the operator a control.",
            )
        address = await self._address(sac)
        if address is not None:
            told = (await self._status(address)).of(sac.known_volume)
            return None if told is None else agent_views.volume(told, self._here)
        if not sac.status.get("epoch"):
            return None
        leader = str(sac.status.get("primary") or self._here)
        return agent_views.at_rest(sac.known_volume, leader, int(sac.status["epoch"]))

    async def _status(self, address: str) -> agent_views.AgentStatus:
        return views.read(await self._call("GET", f"{address}/v1/status"), agent_views.AgentStatus)

    async def _address(self, sac: specs.Sac) -> str | None:
        """Of the agent in the program's pod; None while no pod of it has one."""
        labels = f"{pods.LABEL_NAME}={sac.name},{pods.LABEL_ROLE}=primary"
        found = await self._kube.list("v1", "Pod", sac.namespace, labels)
        addresses = [address for pod in found if (address := pod_address(pod)) is not None]
        return f"http://{addresses[0]}:{pods.AGENT_PORT}" if addresses else None

    async def _call(self, method: str, url: str, body: Any = None, timeout_s: float = ASK_S) -> Any:
        try:
            return await http.call(
                self._session, method, url, token=self._token, body=body, timeout_s=timeout_s
            )
        except (errors.Unreachable, errors.TimedOut) as error:
            raise errors.Unreachable(
                f"The capture agent does not answer: {error.message}",
                reason="agent-unreachable",
                hint="It is asked again by itself. See: kubectl logs POD -c diffkeeper-agent.",
            ) from error


def pod_address(pod: Object) -> str | None:
    """Where a pod that runs is reached, as part of a URL."""
    status = pod.get("status") or {}
    given = status.get("podIP")
    if not given or "deletionTimestamp" in pod["metadata"] or status.get("phase") != "Running":
        return None
    return f"[{given}]" if ipaddress.ip_address(given).version == 6 else str(given)
