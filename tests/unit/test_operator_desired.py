"""The objects that a SAC stands for: pure, whole, and never two writers."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import sacs

from diffkeeper_capture.settings import AgentSettings
from diffkeeper_operator import pods, specs
from diffkeeper_operator.desired import desired, differs
from diffkeeper_operator.observations import Observed
from diffkeeper_replicator.settings import ReplicatorSettings


def made(sac: specs.Sac, observed: Observed) -> dict[tuple[str, str], dict[str, Any]]:
    return {(one["kind"], one["metadata"]["name"]): one for one in desired(sac, observed, sacs.SETTINGS)}


def containers(workload: dict[str, Any]) -> list[str]:
    return [one["name"] for one in workload["spec"]["template"]["spec"]["containers"]]


def program(workload: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = workload["spec"]["template"]["spec"]["containers"][-1]
    return found


def test_the_seeds_manifest_gives_a_whole_captured_workload() -> None:
    objects = made(sacs.sac(), sacs.observed())
    assert set(objects) == {
        ("ServiceAccount", "postgres"),
        ("ConfigMap", "postgres-diffkeeper"),
        ("Service", "postgres"),
        ("Service", "postgres-peers"),
        ("NetworkPolicy", "postgres"),
        ("PodDisruptionBudget", "postgres"),
        ("StatefulSet", "postgres"),
    }
    workload = objects["StatefulSet", "postgres"]
    assert containers(workload) == ["diffkeeper-agent", "diffkeeper-replicator", "program"]
    assert program(workload)["image"] == "postgres:15"
    assert program(workload)["volumeMounts"] == [
        {"name": "data", "mountPath": "/var/lib/postgresql/data", "subPath": "volume"}
    ]
    assert [one["metadata"]["name"] for one in workload["spec"]["volumeClaimTemplates"]] == [
        "data",
        "diffkeeper-state",
    ]
    assert objects["Service", "postgres"]["spec"]["ports"] == [
        {"name": "port-5432", "port": 5432, "protocol": "TCP"}
    ]


def test_a_password_is_only_ever_referred_to() -> None:
    objects = desired(sacs.sac(), sacs.observed(), sacs.SETTINGS)
    assert not [one for one in objects if one["kind"] == "Secret"]
    env = program(objects[-1])["env"]
    assert env == [
        {
            "name": "POSTGRES_PASSWORD",
            "valueFrom": {"secretKeyRef": {"name": "postgres-credentials", "key": "password"}},
        }
    ]


def test_a_password_that_somebody_gives_is_left_to_them() -> None:
    sac = sacs.sac(env=[{"name": "POSTGRES_PASSWORD_FILE", "value": "/run/secret"}])
    assert pods.needs_password(sac) is None
    assert program(desired(sac, sacs.observed(), sacs.SETTINGS)[-1])["env"] == [
        {"name": "POSTGRES_PASSWORD_FILE", "value": "/run/secret"}
    ]


def test_the_settings_files_are_those_that_the_daemons_read() -> None:
    files = pods.config_files(sacs.two_clusters(), sacs.observed(), sacs.SETTINGS)
    agent = msgspec.json.decode(files["diffkeeper-agent.json"], type=AgentSettings)
    replicator = msgspec.json.decode(files["diffkeeper-replicator.json"], type=ReplicatorSettings)
    assert (agent.site, agent.sites) == ("east", ("east", "west"))
    assert (replicator.site, replicator.sites) == ("east", ("east", "west"))


def test_elsewhere_the_same_pod_keeps_a_copy_and_the_service_leads_to_the_primary() -> None:
    objects = made(sacs.two_clusters(), sacs.observed(sacs.volume(), here="west"))
    workload = objects["StatefulSet", "postgres"]
    assert containers(workload) == ["diffkeeper-replicator"]
    assert workload["spec"]["replicas"] == 1
    assert workload["spec"]["template"]["metadata"]["labels"][pods.LABEL_ROLE] == "replica"
    assert objects["Service", "postgres"]["spec"] == {"type": "ExternalName", "externalName": "east.example"}


def test_the_service_follows_the_leader_when_it_moves() -> None:
    moved = sacs.volume(leader="west", epoch=2)
    here, there = sacs.observed(moved), sacs.observed(moved, here="west")
    assert made(sacs.two_clusters(), here)["Service", "postgres"]["spec"]["externalName"] == "west.example"
    assert made(sacs.two_clusters(), there)["Service", "postgres"]["spec"]["type"] == "ClusterIP"
    assert containers(made(sacs.two_clusters(), here)["StatefulSet", "postgres"]) == ["diffkeeper-replicator"]


def test_the_program_leaves_its_pod_before_a_switchover() -> None:
    draining = sacs.observed(sacs.volume(), draining=True)
    assert "program" not in containers(made(sacs.two_clusters(), draining)["StatefulSet", "postgres"])


def test_a_cluster_that_cannot_hear_control_promotes_nothing() -> None:
    silent = sacs.observed(here="west", control=None)
    sac = specs.read(sacs.body({"primary": "east"}, clusters=[{"name": "west"}, {"name": "east"}]))
    assert "program" not in containers(made(sac, silent)["StatefulSet", "postgres"])


def test_newer_servers_get_native_sidecars_and_the_stable_budget() -> None:
    objects = made(sacs.sac(), sacs.observed(minor=30))
    pod = objects["StatefulSet", "postgres"]["spec"]["template"]["spec"]
    assert [(one["name"], one["restartPolicy"]) for one in pod["initContainers"]] == [
        ("diffkeeper-agent", "Always"),
        ("diffkeeper-replicator", "Always"),
    ]
    assert [one["name"] for one in pod["containers"]] == ["program"]
    assert objects["PodDisruptionBudget", "postgres"]["apiVersion"] == "policy/v1"
    old = made(sacs.sac(), sacs.observed())["PodDisruptionBudget", "postgres"]
    assert old["apiVersion"] == "policy/v1beta1"


def test_a_template_keeps_what_it_says_and_gets_the_state_directory() -> None:
    template = {
        "metadata": {"labels": {"app": "mine"}},
        "spec": {
            "containers": [
                {"name": "db", "image": "mine:1", "volumeMounts": [{"name": "own", "mountPath": "/etc/own"}]},
                {"name": "metrics", "image": "exporter:1"},
            ],
            "volumes": [{"name": "own", "configMap": {"name": "own"}}],
        },
    }
    workload = made(sacs.sac(image=None, template=template), sacs.observed())["StatefulSet", "postgres"]
    pod = workload["spec"]["template"]
    assert pod["metadata"]["labels"]["app"] == "mine"
    assert containers(workload) == ["diffkeeper-agent", "diffkeeper-replicator", "db", "metrics"]
    assert [one["mountPath"] for one in pod["spec"]["containers"][2]["volumeMounts"]] == [
        "/etc/own",
        "/var/lib/postgresql/data",
    ]
    assert {"own", "diffkeeper-config"} <= {one["name"] for one in pod["spec"]["volumes"]}


def test_a_deployment_recreates_its_pod_and_its_claims_have_no_owner() -> None:
    objects = made(sacs.sac(stateful=False), sacs.observed())
    assert objects["Deployment", "postgres"]["spec"]["strategy"] == {"type": "Recreate"}
    assert "ownerReferences" not in objects["PersistentVolumeClaim", "data-postgres"]["metadata"]


def test_a_workload_that_exists_is_left_alone() -> None:
    sac = sacs.sac(image=None, selector={"matchLabels": {"app": "db"}}, agent={"form": "node"})
    assert {one["kind"] for one in desired(sac, sacs.observed(), sacs.SETTINGS)} == {
        "Service",
        "PodDisruptionBudget",
    }


def test_no_container_is_privileged_and_every_right_has_its_reason() -> None:
    for one in desired(sacs.sac(), sacs.observed(), sacs.SETTINGS)[-1]["spec"]["template"]["spec"][
        "containers"
    ][:-1]:
        rights = one["securityContext"]
        assert "privileged" not in rights
        assert rights["capabilities"]["drop"] == ["ALL"]
    assert all(pods.CAPABILITIES.values())


_images = st.sampled_from(["postgres:15", "docker.io/library/redis@sha256:1", "own/program:1"])
_specs = st.fixed_dictionaries(
    {
        "image": _images,
        "stateful": st.booleans(),
        "mode": st.sampled_from(["exclusive", "shared"]),
        "agent": st.fixed_dictionaries({"form": st.sampled_from(["sidecar", "node"])}),
        "clusters": st.sampled_from([[], [{"name": "east"}], [{"name": "west"}, {"name": "east"}]]),
    }
)
_worlds = st.builds(
    lambda here, seen, minor, draining: sacs.observed(seen, here=here, minor=minor, draining=draining),
    st.sampled_from(["east", "west"]),
    st.sampled_from([None, sacs.volume(), sacs.volume(leader="west"), sacs.volume(leader=None)]),
    st.sampled_from([20, 25, 30]),
    st.booleans(),
)


@given(_specs, _worlds)
def test_the_same_world_gives_the_same_objects_and_all_of_them_are_json(
    spec: dict[str, Any], world: Observed
) -> None:
    one, other = (desired(sacs.sac(**spec), world, sacs.SETTINGS) for _ in range(2))
    assert json.dumps(one) == json.dumps(other)
    assert not differs(one, other)
    names = [(thing["kind"], thing["metadata"]["name"]) for thing in one]
    assert len(names) == len(set(names))


@given(_specs, st.sampled_from([None, sacs.volume(), sacs.volume(leader="west")]))
def test_an_exclusive_volume_never_has_its_program_in_two_clusters(spec: dict[str, Any], seen: Any) -> None:
    sac = sacs.sac(**{**spec, "mode": "exclusive", "clusters": [{"name": "west"}, {"name": "east"}]})
    running = [
        here
        for here in ("east", "west")
        if "program" in containers(desired(sac, sacs.observed(seen, here=here), sacs.SETTINGS)[-1])
    ]
    assert len(running) == 1


@pytest.mark.parametrize(
    ("wanted", "found", "expected"),
    [
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, True),
        ({"a": [1]}, {"a": [1, 2]}, True),
        ({"a": [{"b": 1}]}, {"a": [{"b": 1, "c": 2}]}, False),
        ({"a": 1}, None, True),
    ],
)
def test_what_others_added_is_no_difference(wanted: Any, found: Any, expected: bool) -> None:
    assert differs(wanted, found) is expected
