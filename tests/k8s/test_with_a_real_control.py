"""The operator between a real API server and a real deployment of two sites: attached, told of, moved by a Switchover."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support import kubernetes, sacs
from tests.support.kubernetes import Cluster, eventually
from tests.support.trial_deployments import deployment, deployment_folder

from dkctl.bench import trials

pytestmark = [pytest.mark.disaster, pytest.mark.timeout(400)]

__all__ = ["deployment", "deployment_folder"]


def test_a_sac_is_captured_and_a_switchover_moves_its_log(
    cluster: Cluster, namespace: str, tmp_path: Path, deployment: trials.Trial, deployment_folder: Path
) -> None:
    state = deployment_folder / "state"
    state.mkdir()
    (state / "notes").write_text("kept")
    directory = deployment_folder / "deployment"
    note = json.loads((directory / "deployment.json").read_text())
    settings = {"control": note["control"]["address"], "control_token_file": str(directory / "token")}
    with kubernetes.operator(cluster, tmp_path / "operator", **settings):
        thing = sacs.body(storage={"path": str(state)}, clusters=[{"name": "east"}, {"name": "west"}])
        cluster.apply(
            {key: thing[key] for key in ("apiVersion", "kind", "spec")} | {"metadata": {"name": "postgres"}},
            namespace,
        )
        cluster.bring_up(namespace)

        def captured() -> Any:
            status = cluster.sac(namespace).get("status", {})
            return status if status.get("readyReplicas") == 2 else None

        status = eventually(captured)
        assert (status["primary"], status["epoch"], status["volume"]) == ("east", 1, f"{namespace}-postgres")
        move = {
            "apiVersion": thing["apiVersion"],
            "kind": "Switchover",
            "metadata": {"name": "move"},
            "spec": {"sac": "postgres", "to": "west"},
        }
        cluster.apply(move, namespace)

        def ended() -> Any:
            status = cluster.one_shot(namespace, "switchovers", "move").get("status", {})
            return status if status.get("completionTime") else None

        record = eventually(ended)
        assert (record["phase"], record["from"], record["to"], record["epoch"]) == (
            "Succeeded",
            "east",
            "west",
            2,
        ), record
        assert record["steps"]
        eventually(lambda: cluster.sac(namespace)["status"].get("primary") == "west")
        volume = deployment.control().volume(f"{namespace}-postgres")
        assert (volume["leader"], volume["epoch"]) == ("west", 2)
        assert (Path(volume["path"]) / "notes").read_text() == "kept"
