"""``kind: SAC`` as Python sees it: the same fields, defaults and enums as the schema in ``deploy/k8s/crds/sacs.yaml``.

The API server checks what a person writes; these types are read from what it stored, so they are lenient about fields they do not
know (a newer schema) and strict about the rest. Pure.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from blake3 import blake3

from diffkeeper.domain import errors, moments

GROUP = "sacs.diffkeeper.io"
VERSION = "v1"
API_VERSION = f"{GROUP}/{VERSION}"
# What names a volume may have: diffkeeper.domain.volumes.check_name.
MAX_VOLUME_NAME = 40
_DIGEST_CHARS = 8

Level = Literal["observe", "site", "remote"]


class Shape(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Base: camelCase outside, frozen inside."""


class Storage(Shape, frozen=True, kw_only=True):
    path: str
    compression: bool = True
    size: str = "10Gi"
    class_name: str | None = None


class Selector(Shape, frozen=True, kw_only=True):
    match_labels: dict[str, str]


class EnvVar(Shape, frozen=True, kw_only=True):
    name: str
    value: str | None = None
    value_from: dict[str, Any] | None = None


class Port(Shape, frozen=True, kw_only=True):
    port: int
    name: str | None = None


class Agent(Shape, frozen=True, kw_only=True):
    form: Literal["sidecar", "node"] = "sidecar"
    image: str | None = None
    resources: dict[str, Any] | None = None


class Cluster(Shape, frozen=True, kw_only=True):
    name: str
    replicas: int = 1
    endpoint: str | None = None


class Failover(Shape, frozen=True, kw_only=True):
    policy: Literal["manual", "automatic"] = "manual"
    recovery_point_seconds: int = 10
    recovery_time_seconds: int = 60


class RetentionStep(Shape, frozen=True, kw_only=True):
    every: str
    until: str


class Retention(Shape, frozen=True, kw_only=True):
    every_write: str | None = None
    every_barrier: str | None = None
    steps: tuple[RetentionStep, ...] = ()


class Spec(Shape, frozen=True, kw_only=True):
    storage: Storage
    image: str | None = None
    template: dict[str, Any] | None = None
    selector: Selector | None = None
    stateful: bool = True
    env: tuple[EnvVar, ...] = ()
    ports: tuple[Port, ...] = ()
    volume: str | None = None
    agent: Agent = Agent()
    mode: Literal["exclusive", "shared"] = "exclusive"
    durability: Level | None = None
    policy: Literal["block", "degrade"] = "block"
    clusters: tuple[Cluster, ...] = ()
    failover: Failover = Failover()
    parity: str | None = None
    retention: Retention | None = None
    paused: bool = False
    deletion_policy: Literal["Retain", "Delete"] = "Retain"


class Accepted(Shape, frozen=True, kw_only=True):
    """The fields that cannot change, as they were when the resource was first accepted; kept in its status."""

    volume: str
    path: str
    mode: str
    size: str
    stateful: bool
    class_name: str | None = None


class Sac(msgspec.Struct, frozen=True, kw_only=True):
    """One resource as the reconciler works with it."""

    name: str
    namespace: str
    uid: str
    generation: int
    spec: Spec
    created: str = ""
    status: dict[str, Any] = {}
    deleting: bool = False

    @property
    def volume(self) -> str:
        return self.spec.volume or volume_name(self.namespace, self.name)

    @property
    def accepted(self) -> Accepted | None:
        noted = self.status.get("accepted")
        return msgspec.convert(noted, Accepted) if noted else None

    @property
    def known_volume(self) -> str:
        """What was accepted stays the volume, whatever the spec was changed to since."""
        return self.accepted.volume if self.accepted is not None else self.volume

    def acceptable(self) -> Accepted:
        """What would be accepted now."""
        storage = self.spec.storage
        return Accepted(
            volume=self.volume,
            path=storage.path,
            mode=self.spec.mode,
            size=storage.size,
            class_name=storage.class_name,
            stateful=self.spec.stateful,
        )

    def clusters(self, here: str) -> tuple[Cluster, ...]:
        """Where copies are kept, the preferred primary first."""
        return self.spec.clusters or (Cluster(name=here),)

    def durability(self, here: str) -> Level:
        """``remote`` needs another site that confirms: with one cluster no write could ever be acknowledged."""
        holders = [cluster for cluster in self.clusters(here) if cluster.replicas]
        return self.spec.durability or ("remote" if len(holders) > 1 else "site")


def read(body: dict[str, Any]) -> Sac:
    """The resource as the API server gave it; raises Misconfigured when it is none of this operator's version."""
    metadata = body["metadata"]
    try:
        spec = msgspec.convert(body.get("spec") or {}, Spec)
    except msgspec.ValidationError as error:
        raise errors.Misconfigured(
            f"{metadata['namespace']}/{metadata['name']} does not fit the schema of this operator: {error}",
            reason="bad-spec",
            hint="install the custom resource definition of the operator's own version: dkctl manifests",
        ) from error
    return Sac(
        name=metadata["name"],
        namespace=metadata["namespace"],
        uid=metadata["uid"],
        generation=metadata.get("generation", 0),
        spec=spec,
        created=metadata.get("creationTimestamp", ""),
        status=body.get("status") or {},
        deleting="deletionTimestamp" in metadata,
    )


def volume_name(namespace: str, name: str) -> str:
    """NAMESPACE-NAME; where that is too long, cut and told apart by a digest. The same in every cluster."""
    whole = f"{namespace}-{name}".replace(".", "-")
    # ``a-b``/``c`` and ``a``/``b-c`` would be one volume without the digest.
    if len(whole) <= MAX_VOLUME_NAME and "-" not in namespace and "." not in name:
        return whole
    digest = blake3(f"{namespace}/{name}".encode()).hexdigest()[:_DIGEST_CHARS]
    return f"{whole[: MAX_VOLUME_NAME - _DIGEST_CHARS - 1].rstrip('-')}-{digest}"


def retention_policy(retention: Retention | None) -> dict[str, Any] | None:
    """The body of ``PUT …/history/policy``; None where nothing was asked for."""
    if retention is None:
        return None
    return {
        "every_write_s": _seconds(retention.every_write),
        "every_barrier_s": _seconds(retention.every_barrier),
        "steps": [
            {"every_s": _seconds(step.every), "until_s": _seconds(step.until)} for step in retention.steps
        ],
    }


def _seconds(age: str | None) -> int | None:
    return None if age is None else moments.parse_age(age) // 1_000_000
