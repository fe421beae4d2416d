"""SACs and what is observed of them, for tests of the operator's decisions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from diffkeeper_operator import specs, views
from diffkeeper_operator.observations import Control, Observed, Workload
from diffkeeper_operator.settings import OperatorSettings

DEPLOY = Path(__file__).parents[2] / "deploy" / "k8s"
SETTINGS = OperatorSettings(cluster="east", brokers=("nats://nats:4222",))


def documents(path: Path) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(path.read_text("utf-8")) if one]


def crd(plural: str) -> dict[str, Any]:
    return documents(DEPLOY / "crds" / f"{plural}.yaml")[0]


def body(status: dict[str, Any] | None = None, name: str = "postgres", **spec: Any) -> dict[str, Any]:
    """A resource as the API server gives it, with the spec of the seed's manifest unless changed."""
    given = documents(DEPLOY / "examples" / "postgres.yaml")[0]["spec"] | spec
    given = {key: value for key, value in given.items() if value is not None}
    return {
        "apiVersion": specs.API_VERSION,
        "kind": "SAC",
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": f"uid-{name}",
            "generation": 3,
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": given,
        "status": status or {},
    }


def sac(status: dict[str, Any] | None = None, name: str = "postgres", **spec: Any) -> specs.Sac:
    return specs.read(body(status, name, **spec))


def two_clusters(**spec: Any) -> specs.Sac:
    return sac(
        clusters=[{"name": "east", "endpoint": "east.example"}, {"name": "west", "endpoint": "west.example"}],
        **spec,
    )


def volume(**changes: Any) -> views.Volume:
    """Led by east, followed by west, all well."""
    told: dict[str, Any] = {
        "volume": "default-postgres",
        "state": "capturing",
        "leader": "east",
        "leader_state": "alive",
        "epoch": 1,
        "probe": "bpf",
        "fidelity": "exact",
        "level": {"asked": "remote", "met": True},
        "positions": {"captured": "1.42"},
        "sites": [
            {"site": "east", "role": "lead", "state": "leading"},
            {
                "site": "west",
                "role": "follow",
                "state": "following",
                "journalled": "1.42",
                "base_complete": True,
                "lag": {"frames": 0, "bytes": 0, "ms": 0},
            },
        ],
    }
    return views.read(told | changes, views.Volume)


SITES = (views.Site("east", "alive"), views.Site("west", "alive"))


def observed(seen: views.Volume | None = None, here: str = "east", **changes: Any) -> Observed:
    control = Control(sites=SITES, volume=seen)
    base = Observed(here=here, control=control, workload=Workload(exists=True, ready=1))
    return dataclasses.replace(base, **changes)
