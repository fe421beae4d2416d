"""What the operator knows at one look: the world as ``desired`` and ``conditions`` are told it. Pure.

None means not looked at yet, or not heard: that is Unknown, never False.
"""

from __future__ import annotations

from dataclasses import dataclass

from diffkeeper.domain import errors
from diffkeeper_operator import specs, views


@dataclass(frozen=True, slots=True)
class Workload:
    """The pods of the program in this cluster."""

    exists: bool
    ready: int = 0
    # Why a pod does not become ready, as the kubelet says it.
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Other:
    """Another SAC of this cluster, as far as two may be in each other's way."""

    namespace: str
    name: str
    volume: str
    path: str
    # None: it has a workload, and so a directory, of its own.
    selector: tuple[tuple[str, str], ...] | None
    # Whether it was accepted before, and when it was made: the earlier of two stays.
    accepted: bool = False
    created: str = ""


@dataclass(frozen=True, slots=True)
class Control:
    """One look at control. With ``failure`` nothing else is known; without a volume it has never seen one."""

    failure: errors.DiffKeeperError | None = None
    # There is no control: this is what the agent of the pod says, which knows neither copies nor history.
    direct: bool = False
    sites: tuple[views.Site, ...] = ()
    volume: views.Volume | None = None
    history: views.History | None = None
    # None: there are no storage nodes, or the repair service did not answer.
    parity: views.Parity | None = None
    parity_failure: errors.DiffKeeperError | None = None

    def site(self, name: str) -> views.Site | None:
        return next((site for site in self.sites if site.site == name), None)


@dataclass(frozen=True, slots=True)
class Verified:
    at: str
    ok: bool
    verdict: str


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything at once. ``here`` is this cluster's name, which is its site's name in DiffKeeper."""

    here: str
    control: Control | None = None
    workload: Workload | None = None
    others: tuple[Other, ...] = ()
    verified: Verified | None = None
    # A planned Switchover away from here: the program leaves its pod before the log is handed over.
    draining: bool = False
    # Why capture could not be begun at this look.
    not_attached: errors.DiffKeeperError | None = None
    # Of this cluster's API server: 1.MINOR.
    minor: int = 20

    @property
    def native_sidecars(self) -> bool:
        """Init containers that restart always; switched on everywhere since 1.29."""
        return self.minor >= 29

    @property
    def volume(self) -> views.Volume | None:
        return self.control.volume if self.control is not None else None

    @property
    def leaders(self) -> tuple[str, ...]:
        """Every site that says it leads; more than one is a split that nobody may feed."""
        return tuple(site.site for site in self.volume.sites if site.role == "lead") if self.volume else ()


def primary(sac: specs.Sac, observed: Observed) -> str:
    """The cluster where the program shall run: whom control says, whom it said last, the first that may hold a copy.

    Never guessed otherwise: a cluster that cannot hear control keeps what was last known and promotes nothing.
    """
    if observed.volume is not None and observed.volume.leader:
        return observed.volume.leader
    noted = sac.status.get("primary")
    if noted:
        return str(noted)
    holders = [cluster.name for cluster in sac.clusters(observed.here) if cluster.replicas]
    return holders[0] if holders else observed.here


def runs_here(sac: specs.Sac, observed: Observed) -> bool:
    """Whether this cluster has the program. A shared volume has it everywhere, a split one nowhere new."""
    if sac.spec.mode == "shared":
        return any(one.name == observed.here and one.replicas for one in sac.clusters(observed.here))
    return primary(sac, observed) == observed.here and not observed.draining
