"""The three kinds as a real API server takes them: what it fills in, what it refuses, what kubectl shows."""

from __future__ import annotations

import json
import urllib.error
from pathlib import Path
from typing import Any

import pytest
from tests.support import sacs
from tests.support.kubernetes import Cluster
from tests.support.sacs import DEPLOY

from diffkeeper_operator import specs

pytestmark = [pytest.mark.disaster, pytest.mark.timeout(300)]

GOLDEN = Path(__file__).parent / "golden"


def manifest(name: str = "postgres", **spec: Any) -> dict[str, Any]:
    thing = sacs.body(name=name, **spec)
    return {
        "apiVersion": thing["apiVersion"],
        "kind": "SAC",
        "metadata": {"name": name},
        "spec": thing["spec"],
    }


def test_the_seeds_manifest_applies_as_it_is_and_gets_the_defaults(cluster: Cluster, namespace: str) -> None:
    cluster.kubectl("apply", "-n", namespace, "-f", str(DEPLOY / "examples" / "postgres.yaml"))
    stored = cluster.sac(namespace)
    assert stored["spec"] == {
        "image": "postgres:15",
        "stateful": True,
        "storage": {"path": "/var/lib/postgresql/data", "compression": True, "size": "10Gi"},
        "agent": {"form": "sidecar"},
        "mode": "exclusive",
        "policy": "block",
        "failover": {"policy": "manual", "recoveryPointSeconds": 10, "recoveryTimeSeconds": 60},
        "paused": False,
        "deletionPolicy": "Retain",
    }
    # What the server filled in is what the types would have: nothing hangs on who does it.
    assert specs.read(stored).spec == sacs.sac().spec


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"storage": {"path": "relative/path"}}, "spec.storage.path"),
        ({"storage": {"path": "/"}}, "spec.storage.path"),
        ({"storage": {"path": "/var/../etc"}}, "spec.storage.path"),
        ({"storage": {"path": "/var//data"}}, "spec.storage.path"),
        ({"storage": {"path": "/var/data/"}}, "spec.storage.path"),
        ({"storage": {}}, "spec.storage.path"),
        ({"storage": None}, "spec.storage"),
        ({"image": None}, "spec"),
        ({"selector": {"matchLabels": {"a": "b"}}}, "spec"),
        ({"image": None, "selector": {"matchLabels": {}}}, "spec.selector.matchLabels"),
        ({"image": None, "template": {"spec": {"containers": []}}}, "spec.template.spec.containers"),
        ({"image": "has a blank"}, "spec.image"),
        ({"mode": "both"}, "spec.mode"),
        ({"durability": "maybe"}, "spec.durability"),
        ({"policy": "panic"}, "spec.policy"),
        ({"parity": "4-2"}, "spec.parity"),
        ({"volume": "Upper"}, "spec.volume"),
        ({"deletionPolicy": "Shred"}, "spec.deletionPolicy"),
        ({"clusters": [{"name": "east"}, {"name": "east"}]}, "spec.clusters[1]"),
        ({"clusters": [{"name": "east", "replicas": 2}]}, "spec.clusters.replicas"),
        ({"retention": {"everyWrite": "often"}}, "spec.retention.everyWrite"),
        ({"ports": [{"port": 0}]}, "spec.ports.port"),
        ({"storage": {"path": "/d", "size": "-1Gi"}}, "spec.storage.size"),
        ({"failover": {"recoveryTimeSeconds": 0}}, "spec.failover.recoveryTimeSeconds"),
    ],
)
def test_a_wrong_resource_is_refused_with_the_field_that_is_wrong(
    cluster: Cluster, namespace: str, spec: dict[str, Any], says: str
) -> None:
    with pytest.raises(urllib.error.HTTPError, match="422") as refused:
        cluster.call("POST", f"/apis/{specs.API_VERSION}/namespaces/{namespace}/sacs", manifest(**spec))
    assert says in json.loads(refused.value.read())["message"]
    assert cluster.sac(namespace) is None


@pytest.mark.parametrize("path", ["/d", "/.hidden/data", "/a/..b/c", "/var/lib/my data", "/ä/b"])
def test_an_odd_but_clean_path_is_taken(cluster: Cluster, namespace: str, path: str) -> None:
    cluster.apply(manifest(storage={"path": path}), namespace)
    assert cluster.sac(namespace)["spec"]["storage"]["path"] == path


def test_a_name_too_long_for_what_is_made_from_it_is_refused(cluster: Cluster, namespace: str) -> None:
    said = cluster.apply(manifest(name="x" * 53), namespace, expect=1)
    assert "metadata.name" in said


def test_an_unknown_field_is_named_by_kubectl(cluster: Cluster, namespace: str) -> None:
    assert 'unknown field "imgae"' in cluster.apply(manifest(imgae="x"), namespace, expect=1)


def test_status_is_written_through_its_subresource_only_and_checked(cluster: Cluster, namespace: str) -> None:
    cluster.apply(manifest() | {"status": {"phase": "Protected"}}, namespace)
    stored = cluster.sac(namespace)
    assert "status" not in stored
    path = f"/apis/{specs.API_VERSION}/namespaces/{namespace}/sacs/postgres/status"
    kind = "application/merge-patch+json"
    written = cluster.call("PATCH", path, {"status": {"phase": "Protected"}, "spec": {"paused": True}}, kind)
    assert (written["status"]["phase"], written["spec"]["paused"]) == ("Protected", False)
    with pytest.raises(urllib.error.HTTPError, match="422"):
        cluster.call("PATCH", path, {"status": {"phase": "Splendid"}}, kind)


def test_of_two_who_change_the_same_state_one_gets_a_conflict(cluster: Cluster, namespace: str) -> None:
    cluster.apply(manifest(), namespace)
    stored = cluster.sac(namespace)
    path = f"/apis/{specs.API_VERSION}/namespaces/{namespace}/sacs/postgres"
    stored["spec"]["paused"] = True
    cluster.call("PUT", path, stored)
    with pytest.raises(urllib.error.HTTPError, match="409"):
        cluster.call("PUT", path, stored)


def test_clusters_are_a_list_that_two_appliers_share_by_name(cluster: Cluster, namespace: str) -> None:
    for who, name in (("one", "east"), ("two", "west")):
        thing = manifest(clusters=[{"name": name}])
        cluster.kubectl(
            "apply",
            "--server-side",
            f"--field-manager={who}",
            "-n",
            namespace,
            "-f",
            "-",
            stdin=json.dumps(thing),
        )
    assert [one["name"] for one in cluster.sac(namespace)["spec"]["clusters"]] == ["east", "west"]


def test_a_server_side_dry_run_tells_the_defaults_and_stores_nothing(
    cluster: Cluster, namespace: str
) -> None:
    told = cluster.kubectl(
        "apply", "--dry-run=server", "-o", "json", "-n", namespace, "-f", "-", stdin=json.dumps(manifest())
    )
    assert json.loads(told)["spec"]["deletionPolicy"] == "Retain"
    assert cluster.sac(namespace) is None


def test_kubectl_get_shows_the_promised_columns(cluster: Cluster, namespace: str) -> None:
    cluster.apply(manifest(), namespace)
    path = f"/apis/{specs.API_VERSION}/namespaces/{namespace}/sacs/postgres/status"
    status = {"phase": "Protected", "primary": "east", "epoch": 7, "readyReplicas": 2, "desiredReplicas": 3}
    cluster.call("PATCH", path, {"status": status}, "application/merge-patch+json")
    head, row = (line.split() for line in cluster.kubectl("get", "sac", "-n", namespace).splitlines())
    assert head == ["NAME", "PHASE", "PRIMARY", "EPOCH", "READY", "DESIRED", "AGE"]
    assert row[:-1] == ["postgres", "Protected", "east", "7", "2", "3"]
    cluster.kubectl(
        "wait", "--for=condition=Ready=false", "--timeout=1s", "sac/postgres", "-n", namespace, expect=1
    )


@pytest.mark.parametrize(
    "what", ["sac.spec", "sac.spec.storage", "sac.spec.clusters", "switchover.spec", "restore.spec"]
)
def test_kubectl_explain_says_what_it_said(cluster: Cluster, what: str) -> None:
    # The first lines name kind and version; golden files are renewed by deleting them and running this once more.
    told = cluster.kubectl("explain", what)
    golden = GOLDEN / f"{what}.txt"
    if not golden.exists():
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(told)
        pytest.fail(f"{golden.name} was not there; look at it and run this again")
    assert told == golden.read_text()


@pytest.mark.parametrize("overlay", ["single", "east", "west"])
def test_every_manifest_of_an_overlay_is_taken_by_the_server(cluster: Cluster, overlay: str) -> None:
    from dkctl import manifests

    text = manifests.render(overlay)
    cluster.kubectl("apply", "--dry-run=server", "-f", "-", stdin=text)
