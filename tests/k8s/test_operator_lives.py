"""The operator as a process with its own rights on a real API server: it makes, mends, refuses, waits, and outlives its killing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support import control_server, kubernetes, sacs
from tests.support.control_server import ControlServer
from tests.support.kubernetes import Cluster, Operator, eventually
from tests.support.lossy_proxy import LossyProxy

from diffkeeper.domain import errors
from diffkeeper_operator import conditions

pytestmark = [pytest.mark.disaster, pytest.mark.timeout(300)]


def manifest(name: str = "postgres", **spec: Any) -> dict[str, Any]:
    thing = sacs.body(name=name, **spec)
    return {
        "apiVersion": thing["apiVersion"],
        "kind": "SAC",
        "metadata": {"name": name},
        "spec": thing["spec"],
    }


def one_shot(kind: str, name: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "sacs.diffkeeper.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def condition(sac: dict[str, Any], kind: str) -> tuple[str, str]:
    found: dict[str, Any] = next(
        (one for one in sac.get("status", {}).get("conditions", []) if one["type"] == kind), {}
    )
    return found.get("status", ""), found.get("reason", "")


@pytest.fixture
def control(tmp_path: Path) -> Iterator[ControlServer]:
    with control_server.serve(tmp_path / "control") as server:
        server.answers["GET /v1/status"] = {
            "sites": [control_server.site("east"), control_server.site("west")],
            "volumes": [],
            "operations": [],
        }
        server.answers["GET /v1/operations"] = {"operations": []}
        yield server


@pytest.fixture
def operator(cluster: Cluster, control: ControlServer, tmp_path: Path) -> Iterator[Operator]:
    with kubernetes.operator(
        cluster,
        tmp_path / "operator",
        control=control.address,
        control_token_file=str(control.directory / "token"),
        brokers=["nats://nats:4222"],
    ) as running:
        yield running


def lay_down(control: ControlServer, namespace: str, **changes: Any) -> str:
    """A volume for the SAC postgres of ``namespace``, as control tells of it."""
    name = f"{namespace}-postgres"
    told = control_server.volume(volume=name, state="capturing", **changes)
    control.answers[f"GET /v1/volumes/{name}"] = told
    control.answers[f"POST /v1/volumes/{name}/verify"] = {"ok": True, "verdict": "All chains are whole."}
    control.answers[f"GET /v1/volumes/{name}/history"] = {
        "first": {"position": "1.1", "at_us": 1},
        "last": {"position": "1.42", "at_us": 2_000_000},
        "points": {"kept": 42},
    }
    return name


def phase(cluster: Cluster, namespace: str, wanted: str, name: str = "postgres") -> dict[str, Any]:
    def look() -> Any:
        sac = cluster.sac(namespace, name)
        return sac if sac and sac.get("status", {}).get("phase") == wanted else None

    found: dict[str, Any] = eventually(look)
    return found


def test_a_resource_lives_from_unknown_to_protected_and_is_mended(
    cluster: Cluster, namespace: str, operator: Operator, control: ControlServer
) -> None:
    cluster.apply(manifest(clusters=[{"name": "east"}, {"name": "west"}]), namespace)
    eventually(lambda: cluster.stateful_set(namespace))
    sac = cluster.sac(namespace)
    assert [one["type"] for one in sac["status"]["conditions"]] == list(conditions.TYPES)
    # The controllers make the pod of it, and its claims.
    attach = f"POST /v1/volumes/{namespace}-postgres/attach"
    control.answers[attach] = {}
    cluster.bring_up(namespace)
    eventually(lambda: control.bodies(attach))
    assert control.bodies(attach)[0] == {
        "site": "east",
        "path": "/var/lib/postgresql/data",
        "durability": "remote",
        "policy": "block",
        "mode": "exclusive",
        "probe": "auto",
    }
    lay_down(control, namespace)
    sac = phase(cluster, namespace, "Protected") if _verified(cluster, namespace) else {}
    assert (sac["status"]["primary"], sac["status"]["epoch"]) == ("east", 1)
    assert (sac["status"]["readyReplicas"], sac["status"]["desiredReplicas"]) == (2, 2)
    assert sac["status"]["observedGeneration"] == sac["metadata"]["generation"]
    cluster.kubectl("wait", "--for=condition=Captured", "--timeout=30s", "sac/postgres", "-n", namespace)
    # What somebody else changes of ours comes back, what they added stays.
    service = f"/api/v1/namespaces/{namespace}/services/postgres"
    patch = {
        "metadata": {"annotations": {"theirs": "1"}},
        "spec": {"selector": {"sacs.diffkeeper.io/role": "x"}},
    }
    cluster.call("PATCH", service, patch, "application/merge-patch+json")
    eventually(lambda: cluster.find(service)["spec"]["selector"]["sacs.diffkeeper.io/role"] == "primary")
    assert cluster.find(service)["metadata"]["annotations"]["theirs"] == "1"
    # The password was made once; nobody reads it here but the API server's audit.
    assert cluster.find(f"/api/v1/namespaces/{namespace}/secrets/postgres-credentials")["data"]["password"]
    before = cluster.events(namespace)
    told = [reason for reason, _ in before]
    assert "Capturing" in told
    assert len(before) == len(set(before)), "an event is told once"


def _verified(cluster: Cluster, namespace: str) -> bool:
    return bool(eventually(lambda: condition(cluster.sac(namespace), "ChainVerified")[0] == "True"))


def test_an_update_reaches_the_pods_and_an_immutable_one_is_answered(
    cluster: Cluster, namespace: str, operator: Operator
) -> None:
    cluster.apply(manifest(), namespace)
    eventually(lambda: cluster.stateful_set(namespace))
    cluster.apply(manifest(image="postgres:16"), namespace)

    def image() -> Any:
        pod = cluster.stateful_set(namespace)["spec"]["template"]["spec"]
        return pod["containers"][-1]["image"]

    eventually(lambda: image() == "postgres:16")
    cluster.apply(manifest(image="postgres:17", storage={"path": "/elsewhere"}), namespace)
    sac = phase(cluster, namespace, "Refused")
    assert condition(sac, "Ready") == ("False", "ImmutableField")
    assert "'/var/lib/postgresql/data' -> '/elsewhere'" in sac["status"]["message"]
    assert image() == "postgres:16", "a refused resource changes nothing"
    cluster.apply(manifest(image="postgres:17"), namespace)
    eventually(lambda: image() == "postgres:17")


def test_paused_means_that_nothing_is_changed(cluster: Cluster, namespace: str, operator: Operator) -> None:
    cluster.apply(manifest(paused=True), namespace)
    phase(cluster, namespace, "Paused")
    assert cluster.stateful_set(namespace) is None
    cluster.apply(manifest(), namespace)
    eventually(lambda: cluster.stateful_set(namespace))


def test_the_second_of_two_resources_on_one_volume_gives_way(
    cluster: Cluster, namespace: str, operator: Operator
) -> None:
    cluster.apply(manifest(volume=namespace), namespace)
    eventually(lambda: cluster.stateful_set(namespace))
    cluster.apply(manifest(name="again", volume=namespace), namespace)
    refused = phase(cluster, namespace, "Refused", name="again")
    assert condition(refused, "Ready") == ("False", "VolumeTaken")
    assert cluster.stateful_set(namespace, "again") is None


@pytest.mark.parametrize(("policy", "stateful"), [("Retain", True), ("Delete", False)])
def test_deletion_ends_the_capture_first_and_takes_the_state_only_if_told(
    cluster: Cluster, namespace: str, operator: Operator, control: ControlServer, policy: str, stateful: bool
) -> None:
    name = lay_down(control, namespace)
    detach = f"POST /v1/volumes/{name}/detach"
    control.answers[detach] = errors.Refused("a program runs under dkctl run", reason="program-running")
    cluster.apply(manifest(deletionPolicy=policy, stateful=stateful), namespace)
    claim = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/data-postgres{'-0' if stateful else ''}"
    eventually(lambda: cluster.find(claim))
    cluster.kubectl("delete", "sac", "postgres", "-n", namespace, "--wait=false")
    sac = phase(cluster, namespace, "Deleting")
    eventually(lambda: "has not ended" in cluster.sac(namespace)["status"]["message"])
    assert sac["metadata"]["finalizers"] == ["sacs.diffkeeper.io/keeps-state"]
    assert cluster.find(claim), "nothing goes before the capture has ended"
    workload = "statefulsets" if stateful else "deployments"
    assert cluster.find(f"/apis/apps/v1/namespaces/{namespace}/{workload}/postgres") is None
    control.answers[detach] = {"volume": name, "position": "1.43", "hash": "ab"}
    eventually(lambda: cluster.sac(namespace) is None)
    if policy == "Retain":
        assert "deletionTimestamp" not in cluster.find(claim)["metadata"]
    else:
        # Without a controller for claims in use, its own finalizer may still hold it.
        assert (
            "deletionTimestamp"
            in (cluster.find(claim) or {"metadata": {"deletionTimestamp": ""}})["metadata"]
        )


def test_killed_at_any_time_the_operator_goes_on_where_it_was(
    cluster: Cluster, namespace: str, operator: Operator, control: ControlServer
) -> None:
    """At each of these instants something is half done; nothing is done twice that would be seen."""
    cluster.apply(manifest(), namespace)
    eventually(lambda: cluster.sac(namespace).get("status"))
    operator.kill()
    cluster.apply(manifest(env=[{"name": "A", "value": "1"}]), namespace)
    operator.start()
    eventually(lambda: cluster.stateful_set(namespace))
    operator.kill()
    password = cluster.find(f"/api/v1/namespaces/{namespace}/secrets/postgres-credentials")
    cluster.call("DELETE", f"/apis/apps/v1/namespaces/{namespace}/statefulsets/postgres")
    operator.start()
    made = eventually(lambda: cluster.stateful_set(namespace))
    assert {"name": "A", "value": "1"} in made["spec"]["template"]["spec"]["containers"][-1]["env"]
    again = cluster.find(f"/api/v1/namespaces/{namespace}/secrets/postgres-credentials")
    assert again["data"] == password["data"], "a password that data was made with never changes"
    cluster.kubectl("delete", "sac", "postgres", "-n", namespace, "--wait=false")
    operator.kill()
    assert cluster.sac(namespace) is not None, "the finalizer holds it while nobody is there"
    operator.start()
    eventually(lambda: cluster.sac(namespace) is None)


def test_of_two_operators_one_acts_and_the_other_takes_over(
    cluster: Cluster, namespace: str, operator: Operator, tmp_path: Path
) -> None:
    cluster.apply(manifest(), namespace)
    eventually(lambda: cluster.stateful_set(namespace))
    lease = "/apis/coordination.k8s.io/v1/namespaces/diffkeeper-system/leases/diffkeeper-operator"
    first = cluster.find(lease)["spec"]["holderIdentity"]
    with kubernetes.operator(cluster, tmp_path / "second", identity="second") as second:
        eventually(lambda: "waiting for the lease" in second.log)
        assert cluster.find(lease)["spec"]["holderIdentity"] == first
        assert "event=ready" not in second.log
        operator.kill()
        eventually(lambda: cluster.find(lease)["spec"]["holderIdentity"] == "second")
        cluster.apply(manifest(image="postgres:16"), namespace)
        eventually(
            lambda: (
                cluster.stateful_set(namespace)["spec"]["template"]["spec"]["containers"][-1]["image"]
                == "postgres:16"
            )
        )


def test_a_watch_that_is_cut_is_begun_again(
    cluster: Cluster, namespace: str, control: ControlServer, tmp_path: Path
) -> None:
    with _proxy(cluster.port) as (proxy, loop, port):
        server = f"https://127.0.0.1:{port}"
        with kubernetes.operator(cluster, tmp_path / "operator", server=server) as operator:
            cluster.apply(manifest(), namespace)
            eventually(lambda: cluster.stateful_set(namespace))
            asyncio.run_coroutine_threadsafe(proxy.cut(), loop).result(30)
            cluster.apply(manifest(name="later"), namespace)
            eventually(lambda: cluster.stateful_set(namespace, "later"))
            assert operator.exit_code is None


class _proxy:
    """A lossy proxy in a thread of its own, because the test itself waits."""

    def __init__(self, target: int) -> None:
        self._proxy = LossyProxy(target)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> tuple[LossyProxy, asyncio.AbstractEventLoop, int]:
        self._thread.start()
        address = asyncio.run_coroutine_threadsafe(self._proxy.start(), self._loop).result(30)
        return self._proxy, self._loop, int(address.rsplit(":", 1)[1])

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._proxy.stop(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def test_a_silent_control_is_unknown_and_changes_nothing(
    cluster: Cluster, namespace: str, operator: Operator, control: ControlServer
) -> None:
    lay_down(control, namespace)
    cluster.apply(manifest(), namespace)
    eventually(lambda: condition(cluster.sac(namespace) or {}, "Captured")[0] == "True")
    control.answers["GET /v1/status"] = errors.Unreachable("the sites are gone", hint="start them")
    sac = phase(cluster, namespace, "Unknown")
    assert condition(sac, "Captured") == ("Unknown", "ControlUnreachable")
    assert sac["status"]["primary"] == "east", "what was last known stays"
    assert (
        cluster.stateful_set(namespace)["spec"]["template"]["metadata"]["labels"]["sacs.diffkeeper.io/role"]
        == "primary"
    )


def test_a_switchover_drains_moves_once_and_stays_as_the_record(
    cluster: Cluster, namespace: str, operator: Operator, control: ControlServer
) -> None:
    name = lay_down(control, namespace)
    failover, operation = f"POST /v1/volumes/{name}/failover", "GET /v1/operations/op-1"
    running = control_server.operation(volume=name, state="running", phase="promise")
    control.answers[failover] = running
    control.answers[operation] = running
    cluster.apply(
        manifest(clusters=[{"name": "east"}, {"name": "west", "endpoint": "west.example"}]), namespace
    )
    cluster.bring_up(namespace)
    cluster.apply(one_shot("Switchover", "move", sac="postgres", to="west"), namespace)
    # The program leaves its pod; only then is the log handed over.
    eventually(lambda: control.bodies(failover))
    assert control.bodies(failover)[0] == {
        "to": "west",
        "force": False,
        "accept_loss": False,
        "start": False,
        "timeout_s": 60,
    }
    pods = cluster.call("GET", f"/api/v1/namespaces/{namespace}/pods")["items"]
    assert not [one for one in pods if one["metadata"]["labels"]["sacs.diffkeeper.io/role"] == "primary"]
    operator.kill()
    operator.start()
    control.answers[operation] = control_server.operation(volume=name)
    control.answers[f"GET /v1/volumes/{name}"] = control_server.volume(
        volume=name, state="capturing", leader="west", epoch=2
    )
    ended = eventually(lambda: _over(cluster.one_shot(namespace, "switchovers", "move")))
    assert (ended["phase"], ended["operation"], ended["from"], ended["epoch"]) == (
        "Succeeded",
        "op-1",
        "east",
        2,
    )
    assert ended["position"] == "2.43"
    assert ended["steps"] == [{"phase": "promise", "outcome": "done", "tookMillis": 2}]
    assert len(control.bodies(failover)) == 1, "asked once, whoever was killed"
    service = f"/api/v1/namespaces/{namespace}/services/postgres"
    eventually(lambda: cluster.find(service)["spec"].get("externalName") == "west.example")
    assert cluster.sac(namespace)["status"]["epoch"] == 2


def _over(body: dict[str, Any]) -> Any:
    status = body.get("status", {})
    return status if status.get("completionTime") else None


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"sac": "nothing", "to": "west"}, "unknown-sac"),
        ({"sac": "postgres", "to": "mars"}, "unknown-site"),
        ({"sac": "postgres", "to": "west", "force": True, "acceptLoss": "mysql"}, "wrong-name"),
    ],
)
def test_a_switchover_that_makes_no_sense_is_refused_for_good(
    cluster: Cluster,
    namespace: str,
    operator: Operator,
    control: ControlServer,
    spec: dict[str, Any],
    reason: str,
) -> None:
    lay_down(control, namespace)
    cluster.apply(manifest(), namespace)
    eventually(lambda: condition(cluster.sac(namespace) or {}, "Captured")[0] == "True")
    cluster.apply(one_shot("Switchover", "move", **spec), namespace)
    ended = eventually(lambda: _over(cluster.one_shot(namespace, "switchovers", "move")))
    assert (ended["phase"], ended["reason"]) == ("Refused", reason)
    assert not [call for call, _ in control.asked if call.endswith("/failover")]


def test_a_restore_makes_a_branch_of_one_position_and_stays_as_the_record(
    cluster: Cluster, namespace: str, operator: Operator, control: ControlServer
) -> None:
    name = lay_down(control, namespace)
    control.answers[f"GET /v1/volumes/{name}/history/moment"] = {"position": "1.40", "at_us": 1_000_000}
    made = f"PUT /v1/volumes/{name}/history/branches/restore-monday"
    control.answers[made] = {"name": "restore-monday", "position": "1.40", "path": "/branches/restore-monday"}
    cluster.apply(manifest(), namespace)
    eventually(lambda: condition(cluster.sac(namespace) or {}, "Captured")[0] == "True")
    cluster.apply(one_shot("Restore", "monday", sac="postgres", at="5m"), namespace)
    ended = eventually(lambda: _over(cluster.one_shot(namespace, "restores", "monday")))
    assert (ended["phase"], ended["position"], ended["path"]) == (
        "Succeeded",
        "1.40",
        "/branches/restore-monday",
    )
    assert control.bodies(made) == [{"when": "1.40"}]


def test_the_operator_used_every_right_it_has_and_asked_for_no_other(cluster: Cluster) -> None:
    """Runs last: the audit log holds what all tests above made it do."""
    used = cluster.used_by_operator()
    assert not [one for one in used if one[0].startswith("!")], "refused by RBAC"
    granted = set()
    for thing in sacs.documents(sacs.DEPLOY / "operator" / "rights.yaml"):
        for rule in thing.get("rules", []):
            granted |= {
                (verb, group, resource)
                for verb in rule["verbs"]
                for group in rule["apiGroups"]
                for resource in rule["resources"]
            }
    # A server-side apply that makes an object is one request with two rights.
    implied = {("create", group, resource) for verb, group, resource in used if verb == "patch"}
    assert granted - used - implied == set()


def test_the_service_account_may_what_its_roles_say_and_nothing_near_it(cluster: Cluster) -> None:
    account = f"--as={kubernetes.OPERATOR}"
    may = [("list", "sacs.sacs.diffkeeper.io"), ("create", "secrets"), ("delete", "statefulsets.apps")]
    may_not = [
        ("get", "secrets"),
        ("list", "secrets"),
        ("delete", "sacs.sacs.diffkeeper.io"),
        ("create", "pods"),
        ("delete", "pods"),
        ("get", "nodes"),
        ("create", "clusterroles.rbac.authorization.k8s.io"),
        ("impersonate", "users"),
        ("update", "leases.coordination.k8s.io"),
    ]
    for verb, resource in may:
        assert cluster.kubectl("auth", "can-i", verb, resource, account).strip() == "yes"
    for verb, resource in may_not:
        cluster.kubectl("auth", "can-i", verb, resource, account, expect=1)
