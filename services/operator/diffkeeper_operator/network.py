"""How a SAC is reached, and by whom: services that follow the leader, and who may talk to its pods. Pure."""

from __future__ import annotations

from typing import Any

from diffkeeper_operator import pods, specs
from diffkeeper_operator.observations import Observed, primary, runs_here


def service(sac: specs.Sac, observed: Observed) -> dict[str, Any]:
    """NAME: the program wherever it runs. Here, its pods; elsewhere, the leader's cluster, if its endpoint was given.

    Without an endpoint it selects the primary's pods here, of which there are none: a client is refused at once
    instead of waiting.
    """
    leader = primary(sac, observed)
    endpoint = next((one.endpoint for one in sac.clusters(observed.here) if one.name == leader), None)
    if not runs_here(sac, observed) and endpoint:
        return {"type": "ExternalName", "externalName": endpoint}
    return {"type": "ClusterIP", "selector": selector(sac), "ports": _ports(sac)}


def peers(sac: specs.Sac) -> dict[str, Any]:
    """NAME-peers, headless: the pods by name, for the StatefulSet and for control, ready or not."""
    return {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": {pods.LABEL_NAME: sac.name},
        "ports": [
            {"name": "agent", "port": pods.AGENT_PORT, "protocol": "TCP"},
            {"name": "replicator", "port": pods.REPLICATOR_PORT, "protocol": "TCP"},
        ],
    }


def selector(sac: specs.Sac) -> dict[str, str]:
    """The pods of the program: ours that lead, or those somebody else made."""
    if sac.spec.selector is not None:
        return dict(sac.spec.selector.match_labels)
    return {pods.LABEL_NAME: sac.name, pods.LABEL_ROLE: "primary"}


def policy(sac: specs.Sac) -> dict[str, Any]:
    """Who may connect: anybody in the namespace to the program, only DiffKeeper's own to agent and replicator."""
    own = [_open(pods.AGENT_PORT), _open(pods.REPLICATOR_PORT)]
    diffkeeper = {"namespaceSelector": {"matchLabels": {"app.kubernetes.io/part-of": "diffkeeper"}}}
    ingress: list[dict[str, Any]] = [{"from": [diffkeeper], "ports": own}]
    if listening := pods.ports(sac):
        ingress.insert(0, {"from": [{"podSelector": {}}], "ports": [_open(one.port) for one in listening]})
    return {
        "podSelector": {"matchLabels": {pods.LABEL_NAME: sac.name}},
        "policyTypes": ["Ingress"],
        "ingress": ingress,
    }


def _ports(sac: specs.Sac) -> list[dict[str, Any]]:
    # A service without ports is refused by the API server; a program that names none is reached by nobody.
    listening = pods.ports(sac) or [specs.Port(port=pods.AGENT_PORT, name="agent")]
    return [{"name": one.name or f"port-{one.port}", **_open(one.port)} for one in listening]


def _open(port: int) -> dict[str, Any]:
    """With its protocol: without, server-side apply of Kubernetes 1.20 refuses what is a list by port and protocol."""
    return {"port": port, "protocol": "TCP"}
