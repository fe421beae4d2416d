"""Which of several operators acts: a lease of Kubernetes, decided purely and by this process's own monotonic clock.

A lease of another counts as living until it was seen unchanged for its whole duration; clocks of other machines are never compared.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any


class Move(enum.Enum):
    TAKE = "take"  # nobody holds it, or its holder was silent for the whole duration
    RENEW = "renew"  # it is ours
    WAIT = "wait"  # it is another's, who lives as far as we have seen


@dataclass(frozen=True, slots=True)
class Seen:
    """A state of the lease, and when (monotonic seconds) we first saw it so."""

    version: str
    since: float


def seen(before: Seen | None, version: str, now: float) -> Seen:
    return before if before is not None and before.version == version else Seen(version, now)


def move(lease: dict[str, Any] | None, me: str, observed: Seen, now: float) -> Move:
    spec = (lease or {}).get("spec") or {}
    holder = spec.get("holderIdentity")
    if not holder:
        return Move.TAKE
    if holder == me:
        return Move.RENEW
    return Move.TAKE if now - observed.since >= float(spec.get("leaseDurationSeconds", 15)) else Move.WAIT


def lease(
    name: str, namespace: str, found: dict[str, Any] | None, me: str, ttl_s: float, at: str
) -> dict[str, Any]:
    """The lease as it is written to hold it; with the version of what was found, so that one of two wins."""
    old = (found or {}).get("spec") or {}
    mine = old.get("holderIdentity") == me
    metadata: dict[str, Any] = {"name": name, "namespace": namespace}
    if found is not None:
        metadata["resourceVersion"] = found["metadata"]["resourceVersion"]
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": metadata,
        "spec": {
            "holderIdentity": me,
            "leaseDurationSeconds": max(1, round(ttl_s)),
            "renewTime": at,
            "acquireTime": old.get("acquireTime", at) if mine else at,
            "leaseTransitions": int(old.get("leaseTransitions", 0)) + (0 if mine or found is None else 1),
        },
    }
