"""The pods of a SAC: the program, and beside it the agent that captures and the replicator that keeps the copy. Pure.

One pod a cluster, with one volume claim, whichever role the cluster has: where it leads, the program is in the pod; elsewhere only the
replicator, which keeps the same directory a warm copy. A change of role is a change of the pod's template.
"""

from __future__ import annotations

import copy
import json
from typing import Any

import msgspec

from diffkeeper_operator import specs
from diffkeeper_operator.observations import Observed, runs_here
from diffkeeper_operator.settings import OperatorSettings

PREFIX = specs.GROUP
LABEL_NAME = f"{PREFIX}/name"
LABEL_ROLE = f"{PREFIX}/role"
DATA, STATE, CONFIG, TOKENS = "data", "diffkeeper-state", "diffkeeper-config", "diffkeeper-tokens"
STATE_PATH, CONFIG_PATH, TOKENS_PATH = "/var/lib/diffkeeper", "/etc/diffkeeper", "/run/secrets/diffkeeper"
AGENT_PORT, REPLICATOR_PORT = 7401, 7402
# A directory below the root of the claim: a fresh file system has a lost+found, which initdb and others refuse.
SUB_PATH = "volume"
STATE_SIZE = "5Gi"
AGENT = "diffkeeper-agent"
REPLICATOR = "diffkeeper-replicator"

# Each right with its reason; nothing else, and no privileged container.
CAPABILITIES = {
    "BPF": "load the capture programs and their maps",
    "PERFMON": "attach them to tracepoints, and read from kernel memory in them",
    "SYS_PTRACE": "read /proc/PID of the program, to find what its descriptors name",
    "SYS_RESOURCE": "lock the ring in memory on kernels before 5.11",
    "DAC_READ_SEARCH": "read files of any owner when a range is read again",
    "SYS_NICE": "read the ring before it is full, on a busy node too",
}

# What an image needs that nobody says: ports, and a password it will not start without.
KNOWN_IMAGES: dict[str, dict[str, Any]] = {
    "postgres": {"port": 5432, "password": "POSTGRES_PASSWORD"},
    "mysql": {"port": 3306, "password": "MYSQL_ROOT_PASSWORD"},
    "mariadb": {"port": 3306, "password": "MARIADB_ROOT_PASSWORD"},
    "redis": {"port": 6379},
    "valkey": {"port": 6379},
}


def known(image: str | None) -> dict[str, Any]:
    """What is known of ``docker.io/library/postgres:15`` by its last word."""
    if image is None:
        return {}
    name = image.split("@")[0].rsplit("/", 1)[-1].split(":")[0]
    return KNOWN_IMAGES.get(name, {})


def needs_password(sac: specs.Sac) -> str | None:
    """The variable that an image wants a password in, if nobody gives it one."""
    variable = known(sac.spec.image).get("password")
    given = {entry.name for entry in sac.spec.env}
    return str(variable) if variable and not given & {variable, f"{variable}_FILE"} else None


def password_secret(sac: specs.Sac) -> str:
    return f"{sac.name}-credentials"


def ports(sac: specs.Sac) -> list[specs.Port]:
    if sac.spec.ports:
        return list(sac.spec.ports)
    if sac.spec.template is not None:
        program = sac.spec.template["spec"]["containers"][0]
        return [
            specs.Port(port=one["containerPort"], name=one.get("name")) for one in program.get("ports", [])
        ]
    port = known(sac.spec.image).get("port")
    return [specs.Port(port=port)] if port else []


def labels(sac: specs.Sac) -> dict[str, str]:
    return {
        "app.kubernetes.io/managed-by": "diffkeeper-operator",
        "app.kubernetes.io/part-of": "diffkeeper",
        LABEL_NAME: sac.name,
    }


def template(sac: specs.Sac, observed: Observed, settings: OperatorSettings) -> dict[str, Any]:
    """The pod template for this cluster's role."""
    given: dict[str, Any] = (
        copy.deepcopy(sac.spec.template) if sac.spec.template else {"spec": {"containers": []}}
    )
    lead = runs_here(sac, observed)
    pod = given["spec"]
    pod["containers"] = _programs(sac, pod["containers"]) if lead else []
    keepers = [_replicator(sac, settings)]
    if lead and sac.spec.agent.form == "sidecar":
        keepers.insert(0, _agent(sac, settings))
        # The agent finds the program's calls by its process, which it otherwise cannot see.
        pod["shareProcessNamespace"] = True
    if lead and observed.native_sidecars:
        # Native sidecars start before the program and end after it.
        pod["initContainers"] = [
            *({**keeper, "restartPolicy": "Always"} for keeper in keepers),
            *pod.get("initContainers", []),
        ]
    else:
        pod["containers"] = [*keepers, *pod["containers"]]
        if not lead:
            pod.pop("initContainers", None)
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        for port in container.get("ports", []):
            # Server-side apply of Kubernetes 1.20 refuses a port that leaves it to the default.
            port.setdefault("protocol", "TCP")
    pod["volumes"] = [*pod.get("volumes", []), *_volumes(sac, settings)]
    pod.setdefault("serviceAccountName", sac.name)
    pod.setdefault("automountServiceAccountToken", False)
    pod.setdefault("terminationGracePeriodSeconds", 120)
    metadata = given.setdefault("metadata", {})
    role = "primary" if lead else "replica"
    metadata["labels"] = {**metadata.get("labels", {}), **labels(sac), LABEL_ROLE: role}
    return {"metadata": metadata, "spec": pod}


def _programs(sac: specs.Sac, containers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not containers:
        containers = [{"name": "program", "image": sac.spec.image}]
        if listening := ports(sac):
            containers[0]["ports"] = [
                {"containerPort": one.port, **({"name": one.name} if one.name else {})} for one in listening
            ]
    first = containers[0]
    env = [msgspec.to_builtins(entry) for entry in sac.spec.env]
    if variable := needs_password(sac):
        key = {"secretKeyRef": {"name": password_secret(sac), "key": "password"}}
        env.append({"name": variable, "valueFrom": key})
    own = {entry["name"] for entry in env}
    kept = [entry for entry in first.get("env", []) if entry["name"] not in own]
    if env or kept:
        first["env"] = [_without_none(entry) for entry in [*kept, *env]]
    mounts = [one for one in first.get("volumeMounts", []) if one["mountPath"] != sac.spec.storage.path]
    first["volumeMounts"] = [*mounts, _data_mount(sac)]
    return containers


def _data_mount(sac: specs.Sac) -> dict[str, Any]:
    # At the same path in each container, so that a path means the same to all of them.
    return {"name": DATA, "mountPath": sac.spec.storage.path, "subPath": SUB_PATH}


def _agent(sac: specs.Sac, settings: OperatorSettings) -> dict[str, Any]:
    rights = {
        "runAsUser": 0,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"], "add": list(CAPABILITIES)},
    }
    return _keeper(
        sac, AGENT, sac.spec.agent.image or settings.agent_image, "diffkeeper-capture", AGENT_PORT, rights
    )


def _replicator(sac: specs.Sac, settings: OperatorSettings) -> dict[str, Any]:
    rights = {
        "runAsUser": 0,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        # Files of the copy have the owners and modes that the program gave them.
        "capabilities": {"drop": ["ALL"], "add": ["CHOWN", "DAC_OVERRIDE", "FOWNER"]},
    }
    return _keeper(
        sac, REPLICATOR, settings.replicator_image, "diffkeeper-replicator", REPLICATOR_PORT, rights
    )


def _keeper(
    sac: specs.Sac, name: str, image: str, command: str, port: int, rights: dict[str, Any]
) -> dict[str, Any]:
    resources = sac.spec.agent.resources or {"requests": {"cpu": "50m", "memory": "128Mi"}}
    return {
        "name": name,
        "image": image,
        "command": [command, "--config", f"{CONFIG_PATH}/{name}.json"],
        "ports": [{"containerPort": port, "name": name.removeprefix("diffkeeper-")}],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": port}, "periodSeconds": 5},
        "resources": resources,
        "securityContext": rights,
        "volumeMounts": [
            _data_mount(sac),
            {"name": STATE, "mountPath": STATE_PATH},
            {"name": CONFIG, "mountPath": CONFIG_PATH, "readOnly": True},
            {"name": TOKENS, "mountPath": TOKENS_PATH, "readOnly": True},
        ],
    }


def _volumes(sac: specs.Sac, settings: OperatorSettings) -> list[dict[str, Any]]:
    claims = [] if sac.spec.stateful else [_claim_of(sac, DATA), _claim_of(sac, STATE)]
    return [
        *claims,
        {"name": CONFIG, "configMap": {"name": config_name(sac)}},
        {"name": TOKENS, "secret": {"secretName": settings.secret, "defaultMode": 0o400}},
    ]


def _claim_of(sac: specs.Sac, kind: str) -> dict[str, Any]:
    return {"name": kind, "persistentVolumeClaim": {"claimName": f"{kind}-{sac.name}"}}


def config_name(sac: specs.Sac) -> str:
    return f"{sac.name}-diffkeeper"


def config_files(sac: specs.Sac, observed: Observed, settings: OperatorSettings) -> dict[str, str]:
    """The settings files of agent and replicator, as those daemons read them."""
    sites = [cluster.name for cluster in sac.clusters(observed.here)]
    both = {
        "site": observed.here,
        "host": "0.0.0.0",
        "token_file": f"{TOKENS_PATH}/token",
        "broker_secret_file": f"{TOKENS_PATH}/broker-secret",
        "servers": list(settings.brokers),
        "sites": sites,
    }
    agent = {**both, "dir": f"{STATE_PATH}/capture", "port": AGENT_PORT}
    replicator = {
        **both,
        "dir": f"{STATE_PATH}/replicator",
        "volumes_dir": f"{STATE_PATH}/volumes",
        "port": REPLICATOR_PORT,
        "repair": settings.repair or None,
    }
    return {f"{AGENT}.json": _text(agent), f"{REPLICATOR}.json": _text(replicator)}


def _text(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def _without_none(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if value is not None}
