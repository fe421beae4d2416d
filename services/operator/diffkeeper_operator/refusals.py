"""What the schema of Kubernetes 1.20 cannot refuse: a changed field, two resources on one directory, an unknown cluster. Pure.

A refusal names what was kept and what to do, changes no object, and goes away by itself when the cause does.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from diffkeeper.domain import errors, volumes
from diffkeeper.domain import retention as ladders
from diffkeeper_operator import specs
from diffkeeper_operator.observations import Observed, Other

_SAYS = {"class_name": "spec.storage.className", "path": "spec.storage.path", "size": "spec.storage.size"}


@dataclass(frozen=True, slots=True)
class Refusal:
    reason: str
    message: str


def of(sac: specs.Sac, observed: Observed) -> Refusal | None:
    """The first reason not to do what the resource says, or None."""
    return (
        _changed(sac)
        or _clashes(sac, observed.others)
        or _unknown_cluster(sac, observed)
        or _ladder(sac)
        or _name(sac)
        or _form(sac)
    )


def _changed(sac: specs.Sac) -> Refusal | None:
    accepted = sac.accepted
    if accepted is None:
        return None
    was, now = msgspec.structs.asdict(accepted), msgspec.structs.asdict(sac.acceptable())
    changed = [field for field in was if was[field] != now[field]]
    if not changed:
        return None
    what = "; ".join(
        f"{_SAYS.get(field, 'spec.' + field)}: {was[field]!r} -> {now[field]!r}" for field in changed
    )
    return Refusal(
        "ImmutableField",
        f"These fields cannot change: {what}. The running program was left as it is. "
        "Set them back, or make another SAC and move the data with a Restore.",
    )


def _clashes(sac: specs.Sac, others: tuple[Other, ...]) -> Refusal | None:
    """The later of two gives way. Being accepted makes a resource the earlier one for good."""
    for other in others:
        if sac.accepted is not None or not _goes_first(other, sac):
            continue
        whose = f"{other.namespace}/{other.name}"
        if other.volume == sac.volume:
            return Refusal(
                "VolumeTaken",
                f"The volume {sac.volume} is that of SAC {whose}. Give another name in spec.volume.",
            )
        selector = sac.spec.selector
        if (
            selector is not None
            and other.selector is not None
            and other.namespace == sac.namespace
            and _overlap(dict(other.selector), selector.match_labels)
            and _inside(other.path, sac.spec.storage.path)
        ):
            return Refusal(
                "PathShared",
                f"The directory {sac.spec.storage.path} of these pods is already under the care of SAC {whose} "
                f"({other.path}). Delete one of the two, or choose directories apart.",
            )
    return None


def _goes_first(other: Other, sac: specs.Sac) -> bool:
    if (other.namespace, other.name) == (sac.namespace, sac.name):
        return False
    mine = (sac.created, sac.namespace, sac.name)
    return other.accepted or (other.created, other.namespace, other.name) < mine


def _overlap(one: dict[str, str], other: dict[str, str]) -> bool:
    """Whether one pod could have both sets of labels."""
    return all(other[key] == value for key, value in one.items() if key in other)


def _inside(one: str, other: str) -> bool:
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")


def _unknown_cluster(sac: specs.Sac, observed: Observed) -> Refusal | None:
    named = [cluster.name for cluster in sac.spec.clusters]
    if named and observed.here not in named:
        return Refusal(
            "NotForThisCluster",
            f"This cluster is {observed.here}, which spec.clusters does not name ({', '.join(named)}). Nothing was made "
            "here. Add it, or delete the resource in this cluster.",
        )
    if observed.control is None or observed.control.failure is not None:
        return None
    known = {site.site for site in observed.control.sites}
    unknown = [cluster.name for cluster in sac.clusters(observed.here) if cluster.name not in known]
    if unknown:
        return Refusal(
            "UnknownCluster",
            f"DiffKeeper has no site {', '.join(unknown)}; it has {', '.join(sorted(known)) or 'none'}. "
            "Correct spec.clusters, or the cluster's name in the operator's settings.",
        )
    return None


def _ladder(sac: specs.Sac) -> Refusal | None:
    try:
        policy = specs.retention_policy(sac.spec.retention)
        if policy is not None:
            ladders.check(msgspec.convert(policy, ladders.Policy))
    except errors.Refused as error:
        return Refusal("BadRetention", f"{error.message}. {error.hint}".strip())
    return None


def _name(sac: specs.Sac) -> Refusal | None:
    try:
        volumes.check_name("volume", sac.volume)
    except errors.Refused as error:
        return Refusal("BadVolumeName", f"{error.message}: {error.hint}. Give one in spec.volume.")
    return None


def _form(sac: specs.Sac) -> Refusal | None:
    if sac.spec.selector is not None and sac.spec.agent.form != "node":
        return Refusal(
            "NeedsNodeAgent",
            "A workload that exists cannot be given a sidecar. Set spec.agent.form to node and install the node-agent overlay.",
        )
    return None
