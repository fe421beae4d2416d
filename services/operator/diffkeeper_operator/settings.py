"""The operator's settings file, and what of it the objects need."""

from __future__ import annotations

import os

from diffkeeper import settings


class OperatorSettings(settings.Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    # This cluster's name: the name of its site in DiffKeeper.
    cluster: str
    # Where the operator keeps its lease.
    namespace: str = "diffkeeper-system"
    # Control's admin API, such as http://control.diffkeeper-system:7400; empty: there is none.
    control: str = ""
    control_token_file: str = ""
    # The token of the agents. Without a control the operator asks the agents of its own pods with it; empty: it asks nobody.
    agent_token_file: str = ""
    # The repair service; empty where there are no storage nodes.
    repair: str = ""
    # What agents and replicators are told.
    brokers: tuple[str, ...] = ()
    # Secret in the resource's own namespace with the keys ``token`` and ``broker-secret``; only ever referred to.
    secret: str = "diffkeeper"
    agent_image: str = "diffkeeper/agent:0.1.0"
    replicator_image: str = "diffkeeper/replicator:0.1.0"
    interval_s: float = 10.0
    verify_every_s: float = 6 * 3600.0
    # Figures that only move along are written this seldom; a change of state at once.
    figures_every_s: float = 60.0
    lease_ttl_s: float = 15.0
    # Who this operator is in the lease; the pod's name in a cluster.
    identity: str = ""

    def who(self) -> str:
        return self.identity or f"{os.uname().nodename}-{os.getpid()}"
