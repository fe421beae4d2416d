"""The objects a SAC stands for in this cluster. Pure: the same spec and the same observation give the same objects.

They are owned by the resource, so that Kubernetes takes them away with it, except the volume claims, which hold the
state: those go only by the deletion policy (``deletion``). A password is made once and never read (``actions``).
"""

from __future__ import annotations

from typing import Any

from diffkeeper_operator import network, pods, specs
from diffkeeper_operator.observations import Observed, runs_here
from diffkeeper_operator.settings import OperatorSettings

Object = dict[str, Any]


def desired(sac: specs.Sac, observed: Observed, settings: OperatorSettings) -> list[Object]:
    """In the order in which they are made: what a pod refers to is there before the pod."""
    if sac.spec.selector is not None:
        return [_service(sac, observed), _budget(sac, observed)]
    objects = [
        _account(sac),
        _config(sac, observed, settings),
        _service(sac, observed),
        _named(sac, "v1", "Service", "-peers", network.peers(sac)),
        _named(sac, "networking.k8s.io/v1", "NetworkPolicy", "", network.policy(sac)),
        _budget(sac, observed),
    ]
    if not sac.spec.stateful:
        objects += _claims(sac)
    return [*objects, _workload(sac, observed, settings)]


def _workload(sac: specs.Sac, observed: Observed, settings: OperatorSettings) -> Object:
    here = next((one for one in sac.clusters(observed.here) if one.name == observed.here), None)
    wanted = 1 if runs_here(sac, observed) else (here.replicas if here else 0)
    spec: dict[str, Any] = {
        "replicas": wanted,
        "selector": {"matchLabels": {pods.LABEL_NAME: sac.name}},
        "template": pods.template(sac, observed, settings),
    }
    if not sac.spec.stateful:
        # Two pods of an exclusive volume at once would be two writers.
        return _named(sac, "apps/v1", "Deployment", "", {**spec, "strategy": {"type": "Recreate"}})
    stateful = {
        **spec,
        "serviceName": f"{sac.name}-peers",
        "volumeClaimTemplates": [
            {"metadata": {"name": kind, "labels": pods.labels(sac)}, "spec": claim}
            for kind, claim in _claim_specs(sac).items()
        ],
    }
    return _named(sac, "apps/v1", "StatefulSet", "", stateful)


def _claim_specs(sac: specs.Sac) -> dict[str, Object]:
    storage = sac.spec.storage
    class_name = {"storageClassName": storage.class_name} if storage.class_name else {}
    return {
        kind: {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}, **class_name}
        for kind, size in ((pods.DATA, storage.size), (pods.STATE, pods.STATE_SIZE))
    }


def _claims(sac: specs.Sac) -> list[Object]:
    """Of a Deployment, which has no templates for them. Without an owner: state outlives its resource."""
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {
                "name": f"{kind}-{sac.name}",
                "namespace": sac.namespace,
                "labels": pods.labels(sac),
            },
            "spec": claim,
        }
        for kind, claim in _claim_specs(sac).items()
    ]


def _account(sac: specs.Sac) -> Object:
    """Pods of a SAC ask nothing of Kubernetes, so it has no role and no token."""
    account = _named(sac, "v1", "ServiceAccount", "", None)
    return {**account, "automountServiceAccountToken": False}


def _config(sac: specs.Sac, observed: Observed, settings: OperatorSettings) -> Object:
    config = _named(sac, "v1", "ConfigMap", pods.config_name(sac).removeprefix(sac.name), None)
    return {**config, "data": pods.config_files(sac, observed, settings)}


def _service(sac: specs.Sac, observed: Observed) -> Object:
    return _named(sac, "v1", "Service", "", network.service(sac, observed))


def _budget(sac: specs.Sac, observed: Observed) -> Object:
    """One pod a cluster: a drain of its node is a decision, made by a Switchover first."""
    spec = {"maxUnavailable": 0, "selector": {"matchLabels": network.selector(sac)}}
    version = "policy/v1" if observed.minor >= 21 else "policy/v1beta1"
    return _named(sac, version, "PodDisruptionBudget", "", spec)


def _named(sac: specs.Sac, api_version: str, kind: str, suffix: str, spec: Any) -> Object:
    owner = {
        "apiVersion": specs.API_VERSION,
        "kind": "SAC",
        "name": sac.name,
        "uid": sac.uid,
        "controller": True,
    }
    metadata = {
        "name": f"{sac.name}{suffix}",
        "namespace": sac.namespace,
        "labels": pods.labels(sac),
        "ownerReferences": [owner],
    }
    made: Object = {"apiVersion": api_version, "kind": kind, "metadata": metadata}
    return made if spec is None else {**made, "spec": spec}


def differs(wanted: Any, found: Any) -> bool:
    """Whether ``found`` lacks something of ``wanted``; what the API server and others added to it is theirs."""
    if isinstance(wanted, dict):
        return not isinstance(found, dict) or any(
            differs(value, found.get(key)) for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        if not isinstance(found, list) or len(found) != len(wanted):
            return True
        return any(differs(one, other) for one, other in zip(wanted, found, strict=True))
    return bool(wanted != found)
