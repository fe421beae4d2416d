"""Conditions, phase, refusals and events: what a person reads when something is not well, and what to do about it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import sacs

from diffkeeper.domain import errors
from diffkeeper_operator import conditions, phases, refusals, specs, views
from diffkeeper_operator.observations import Control, Observed, Other, Verified, Workload

AT = "2026-01-01T00:00:00Z"


def told(sac: specs.Sac, observed: Observed) -> dict[str, conditions.Condition]:
    refusal = refusals.of(sac, observed)
    return {one.type: one for one in conditions.conditions(sac, observed, refusal)}


def reasons(sac: specs.Sac, observed: Observed) -> dict[str, tuple[str, str]]:
    return {kind: (one.status, one.reason) for kind, one in told(sac, observed).items()}


def test_everything_is_unknown_at_first() -> None:
    first = conditions.conditions(sacs.sac(), Observed(here="east"), None)
    assert [(one.type, one.status) for one in first] == [(kind, "Unknown") for kind in conditions.TYPES]


def test_a_volume_that_is_well_is_protected() -> None:
    world = sacs.observed(sacs.volume(), verified=Verified(AT, True, "All chains are whole."))
    history = views.History(views.Moment("1.1", 1), views.Moment("1.42", 2), views.Points(42))
    parity = views.Parity(True, "", None, (views.VolumeParity("default-postgres", "4+2", 2),))
    assert world.control is not None
    world = dataclasses.replace(
        world, control=dataclasses.replace(world.control, history=history, parity=parity)
    )
    found = told(sacs.two_clusters(), world)
    assert {one.status for one in found.values()} == {"True"}
    status = phases.status(sacs.two_clusters(), world, None, AT)
    assert (status["phase"], status["primary"], status["epoch"]) == ("Protected", "east", 1)
    assert (status["readyReplicas"], status["desiredReplicas"]) == (2, 2)
    assert status["recoveryWindow"]["points"] == 42


_BROKERLESS = views.Site(
    "east", "degraded", None, (views.Process("nats", "dead"), views.Process("agent", "running"))
)


@pytest.mark.parametrize(
    ("changes", "kind", "expected", "remedy"),
    [
        ({"state": "scanning"}, "Captured", ("False", "BaseScan"), "No action is needed"),
        (
            {"probe": "watch", "why_not_bpf": "no BTF"},
            "Captured",
            ("False", "FallbackPolling"),
            "Give the node a kernel with BTF",
        ),
        ({"gaps": {"open": 1}}, "Captured", ("False", "GapOpen"), "No action is needed"),
        (
            {"state": "failed", "detail": "disk"},
            "Captured",
            ("False", "NotCapturing"),
            "kubectl diffkeeper log",
        ),
        ({"level": {"asked": "remote", "met": False}}, "InSync", ("False", "LevelNotMet"), "Bring the other"),
        ({"sites": []}, "InSync", ("False", "ReplicaBehind"), "kubectl diffkeeper status"),
        ({"leader_state": "dead"}, "PrimaryElected", ("False", "LeaderLost"), "make a Switchover"),
        (
            {"sites": [{"site": "east", "role": "lead"}, {"site": "west", "role": "lead"}]},
            "PrimaryElected",
            ("False", "TwoPrimaries"),
            "make a Switchover|Switchover to the one",
        ),
        ({"state": "failing-over"}, "PrimaryElected", ("Unknown", "Moving"), "No action is needed"),
    ],
)
def test_what_is_not_well_is_named_with_its_remedy(
    changes: dict[str, Any], kind: str, expected: tuple[str, str], remedy: str
) -> None:
    found = told(sacs.two_clusters(), sacs.observed(sacs.volume(**changes)))[kind]
    assert (found.status, found.reason) == expected
    assert any(words in found.message for words in remedy.split("|")), found.message


def test_a_site_without_brokers_is_told_as_such() -> None:
    world = sacs.observed(sacs.volume())
    assert world.control is not None
    world = dataclasses.replace(
        world, control=dataclasses.replace(world.control, sites=(_BROKERLESS, sacs.SITES[1]))
    )
    found = reasons(sacs.two_clusters(), world)
    assert found["Captured"] == found["InSync"] == ("False", "NoBroker")


def test_a_control_that_does_not_answer_makes_everything_of_it_unknown() -> None:
    gone = errors.Unreachable("control cannot be asked", hint="start it")
    world = sacs.observed(control=Control(failure=gone))
    found = told(sacs.two_clusters(), world)
    assert {one.status for kind, one in found.items() if kind != "Ready"} == {"Unknown"}
    assert "start it" in found["Captured"].message
    status = phases.status(sacs.two_clusters(), world, None, AT)
    assert status["phase"] == "Unknown"
    assert "primary" not in status, "what was last known stays"


def test_two_primaries_change_no_workload_and_are_not_ready() -> None:
    split = sacs.volume(sites=[{"site": "east", "role": "lead"}, {"site": "west", "role": "lead"}])
    assert reasons(sacs.two_clusters(), sacs.observed(split))["Ready"] == ("False", "TwoPrimaries")


def test_one_cluster_alone_says_that_there_is_one_copy() -> None:
    found = told(sacs.sac(), sacs.observed(sacs.volume()))["InSync"]
    assert (found.status, found.reason) == ("False", "NoOtherCluster")


def test_a_pod_that_does_not_come_up_says_why() -> None:
    stuck = sacs.observed(workload=Workload(True, 0, "program: ImagePullBackOff"))
    ready = told(sacs.sac(), stuck)["Ready"]
    assert (ready.status, ready.reason) == ("False", "PodNotReady")
    assert "ImagePullBackOff" in ready.message


# -- refusals


def accepted(**changes: Any) -> dict[str, Any]:
    return {"accepted": phases.accepted(sacs.sac()) | changes}


def test_a_changed_field_that_cannot_change_is_refused_with_both_values() -> None:
    sac = sacs.sac(accepted(), storage={"path": "/elsewhere"})
    refusal = refusals.of(sac, sacs.observed())
    assert refusal is not None
    assert refusal.reason == "ImmutableField"
    assert "'/var/lib/postgresql/data' -> '/elsewhere'" in refusal.message
    assert phases.status(sac, sacs.observed(), refusal, AT)["phase"] == "Refused"


def test_set_back_it_is_refused_no_more() -> None:
    assert refusals.of(sacs.sac(accepted()), sacs.observed(here="east")) is None


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"clusters": [{"name": "east"}, {"name": "mars"}]}, "UnknownCluster"),
        ({"clusters": [{"name": "west"}]}, "NotForThisCluster"),
        ({"retention": {"everyWrite": "7d", "everyBarrier": "1d"}}, "BadRetention"),
        ({"image": None, "selector": {"matchLabels": {"app": "db"}}}, "NeedsNodeAgent"),
        ({"volume": "Not A Name"}, "BadVolumeName"),
    ],
)
def test_what_the_schema_cannot_refuse_is_refused(spec: dict[str, Any], reason: str) -> None:
    refusal = refusals.of(sacs.sac(**spec), sacs.observed())
    assert refusal is not None
    assert refusal.reason == reason


def other(**changes: Any) -> Other:
    base = Other("default", "aaa", "default-postgres", "/elsewhere", None)
    return dataclasses.replace(base, **changes)


def test_of_two_resources_with_one_volume_the_later_gives_way() -> None:
    earlier = sacs.observed(others=(other(created="2025-01-01T00:00:00Z"),))
    later = sacs.observed(others=(other(created="2027-01-01T00:00:00Z"),))
    assert getattr(refusals.of(sacs.sac(), earlier), "reason", None) == "VolumeTaken"
    assert refusals.of(sacs.sac(), later) is None


def test_a_directory_inside_one_of_the_same_pods_is_refused() -> None:
    db = (("app", "db"),)
    sac = sacs.sac(image=None, selector={"matchLabels": {"app": "db"}}, agent={"form": "node"})
    inside = other(selector=db, path="/var/lib", volume="other", accepted=True)
    beside = other(selector=db, path="/var/li", volume="other", accepted=True)
    assert getattr(refusals.of(sac, sacs.observed(others=(inside,))), "reason", None) == "PathShared"
    assert refusals.of(sac, sacs.observed(others=(beside,))) is None


# -- status over time


def test_the_time_of_a_condition_changes_only_with_its_status() -> None:
    one = conditions.Condition("Ready", "True", "Running", "It runs.")
    before = conditions.merged([], [one], "then", 1)
    same = conditions.merged(before, [dataclasses.replace(one, message="Still.")], "now", 2)
    changed = conditions.merged(before, [dataclasses.replace(one, status="False")], "now", 2)
    assert same[0]["lastTransitionTime"] == "then"
    assert changed[0]["lastTransitionTime"] == "now"


def test_events_are_told_of_changes_only() -> None:
    well = phases.status(sacs.two_clusters(), sacs.observed(sacs.volume()), None, AT)
    ill = phases.status(sacs.two_clusters(), sacs.observed(sacs.volume(probe="watch")), None, AT)
    assert phases.news(well, well) == []
    assert [(kind, reason) for kind, reason, _ in phases.news(well, ill)] == [("Warning", "FallbackPolling")]
    assert [(kind, reason) for kind, reason, _ in phases.news(ill, well)] == [("Normal", "Capturing")]
    assert phases.news({}, phases.status(sacs.sac(), Observed(here="east"), None, AT)) == []


def test_a_new_epoch_is_told() -> None:
    one = phases.status(sacs.two_clusters(), sacs.observed(sacs.volume()), None, AT)
    two = phases.status(sacs.two_clusters(), sacs.observed(sacs.volume(epoch=2, leader="west")), None, AT)
    assert ("Normal", "NewEpoch", "west leads in epoch 2.") in phases.news(one, two)


def test_figures_that_move_along_are_no_change() -> None:
    one = phases.status(sacs.two_clusters(), sacs.observed(sacs.volume()), None, AT)
    two = phases.status(
        sacs.two_clusters(), sacs.observed(sacs.volume(positions={"captured": "1.99"})), None, AT
    )
    assert one["position"] != two["position"]
    assert not phases.changed(one, two)


_states = st.sampled_from(
    [
        "idle",
        "scanning",
        "capturing",
        "running",
        "released",
        "failing-over",
        "leaderless",
        "fenced",
        "failed",
        "new",
    ]
)
_seen = st.none() | st.builds(
    lambda state, leader, leader_state, probe, gaps, sites: sacs.volume(
        state=state, leader=leader, leader_state=leader_state, probe=probe, gaps=gaps, sites=sites
    ),
    _states,
    st.sampled_from([None, "east", "west", "mars"]),
    st.sampled_from([None, "alive", "dead", "unreachable", "stopped"]),
    st.sampled_from([None, "bpf", "watch"]),
    st.sampled_from([None, {"open": 0}, {"open": 2}, {"open": True}]),
    st.lists(
        st.fixed_dictionaries(
            {
                "site": st.sampled_from(["east", "west"]),
                "role": st.sampled_from([None, "lead", "follow", "none"]),
                "state": st.sampled_from([None, "following", "stalled"]),
            }
        ),
        max_size=3,
    ),
)


@given(_seen, st.sampled_from(["east", "west"]), st.booleans(), st.booleans())
def test_whatever_is_observed_the_status_fits_the_schema(
    seen: views.Volume | None, here: str, draining: bool, paused: bool
) -> None:
    world = sacs.observed(seen, here=here, draining=draining)
    sac = sacs.two_clusters(paused=paused)
    status = phases.status(sac, world, refusals.of(sac, world), AT)
    known = sacs.crd("sacs")["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"][
        "properties"
    ]
    assert status["phase"] in known["phase"]["enum"]
    assert set(status) <= set(known)
    assert [one["type"] for one in status["conditions"]] == list(conditions.TYPES)
    for one in status["conditions"]:
        assert one["reason"].isalnum() and one["reason"][0].isupper()
        assert one["status"] in ("True", "False", "Unknown")
        assert one["message"].endswith(".")
