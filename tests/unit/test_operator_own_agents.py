"""A SAC where there is no control: what the agent of its pod says, and what follows from it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from tests.support import sacs

from diffkeeper.domain import errors
from diffkeeper_operator import agent_views, conditions, phases, views
from diffkeeper_operator.observations import Control, Observed, Workload
from diffkeeper_operator.own_agents import pod_address


def said(**changes: Any) -> agent_views.AgentVolume:
    """The status of an agent, with what the operator does not read in it."""
    told: dict[str, Any] = {
        "volume": "default-postgres",
        "path": "/var/lib/postgresql/data",
        "state": "capturing",
        "epoch": 1,
        "durability": "site",
        "effective_durability": "site",
        "policy": "block",
        "probe": "bpf",
        "fidelity": "exact",
        "error": None,
        "trouble": None,
        "base": {"files": 1, "bytes": 10, "files_total": 1, "bytes_total": 10, "done": True},
        "captured": "1.42",
        "stored": "1.41",
        "confirmed": {},
        "replicas": {},
        "lag": {"frames": 1, "bytes": 100, "ms": 2},
        "gaps": {"open": False, "total": 0, "last": None},
        "barriers": {"total": 3, "waiting": []},
        "at_us": 10_000_000,
    }
    status = views.read({"site": "east", "volumes": [told | changes]}, agent_views.AgentStatus)
    found = status.of("default-postgres")
    assert found is not None
    return found


def world(seen: views.Volume | None = None, **changes: Any) -> Observed:
    control = Control(direct=True, sites=(views.Site("east", "alive"),), volume=seen)
    base = Observed(here="east", control=control, workload=Workload(exists=True, ready=1))
    return dataclasses.replace(base, **changes)


def told(observed: Observed) -> dict[str, tuple[str, str]]:
    found = conditions.conditions(sacs.sac(), observed, None)
    return {one.type: (one.status, one.reason) for one in found}


def test_a_captured_volume_is_told_with_what_only_control_would_know_left_unknown() -> None:
    seen = agent_views.volume(said(), "east")
    assert told(world(seen)) == {
        "Ready": ("True", "Running"),
        "Captured": ("True", "Capturing"),
        "InSync": ("False", "NoOtherCluster"),
        "PrimaryElected": ("True", "Elected"),
        "ParityHealthy": ("Unknown", "NoStorageNodes"),
        "ChainVerified": ("Unknown", "NoControl"),
        "Recoverable": ("Unknown", "NoControl"),
    }
    status = phases.status(sacs.sac(), world(seen), None, "2026-01-01T00:00:00Z")
    assert (status["phase"], status["primary"], status["epoch"], status["position"]) == (
        "Degraded",
        "east",
        1,
        "1.42",
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"state": "scanning"}, ("False", "BaseScan")),
        ({"state": "fenced", "error": {"message": "led elsewhere"}}, ("False", "NotCapturing")),
        ({"state": "failed", "error": {"message": "the disk is full"}}, ("False", "NotCapturing")),
        ({"probe": "watch", "why_not_bpf": "no BTF"}, ("False", "FallbackPolling")),
        ({"gaps": {"open": True, "total": 1}}, ("False", "GapOpen")),
    ],
)
def test_what_is_wrong_with_capture_is_told(changes: dict[str, Any], expected: tuple[str, str]) -> None:
    assert told(world(agent_views.volume(said(**changes), "east")))["Captured"] == expected


def test_why_capture_was_refused_is_told_with_its_remedy() -> None:
    refused = errors.Corrupt("its tree is missing", reason="no-tree-state", hint="Give the claim back.")
    [found] = [
        one
        for one in conditions.conditions(sacs.sac(), world(not_attached=refused), None)
        if one.type == "Captured"
    ]
    assert (found.status, found.reason) == ("False", "AttachRefused")
    assert found.message == "its tree is missing. Give the claim back."


def test_an_agent_that_does_not_answer_leaves_everything_unknown() -> None:
    silent = Control(
        direct=True, failure=errors.Unreachable("it does not answer", reason="agent-unreachable")
    )
    found = told(world(control=silent))
    assert {found[kind] for kind in conditions.TYPES[1:]} == {("Unknown", "AgentUnreachable")}


@pytest.mark.parametrize(
    ("waiting", "effective", "met"),
    [
        ([], "site", True),
        ([{"call": "fsync", "pid": 1, "since_us": 9_500_000, "level": "site"}], "site", True),
        ([{"call": "fsync", "pid": 1, "since_us": 8_000_000, "level": "site"}], "site", False),
        ([], "observe", False),
    ],
)
def test_a_level_is_met_while_nobody_waits_for_long(waiting: Any, effective: str, met: bool) -> None:
    one = said(barriers={"total": 1, "waiting": waiting}, effective_durability=effective)
    level = agent_views.volume(one, "east").level
    assert level is not None
    assert level.met is met


def test_another_site_counts_once_it_confirmed_something() -> None:
    lag = {"position": "1.40", "frames": 2, "bytes": 10, "ms": 3}
    one = said(replicas={"west": lag, "north": lag}, confirmed={"west": "1.40"})
    seen = agent_views.volume(one, "east")
    assert [(site.site, site.role, site.journalled) for site in seen.sites] == [
        ("east", "lead", "1.42"),
        ("west", "follow", "1.40"),
    ]


def test_nonsense_of_an_agent_is_no_conclusion() -> None:
    with pytest.raises(errors.Corrupt):
        said(barriers={"waiting": "many"})


@pytest.mark.parametrize(
    ("status", "address"),
    [
        ({"phase": "Running", "podIP": "10.1.2.3"}, "10.1.2.3"),
        ({"phase": "Running", "podIP": "fd00::1"}, "[fd00::1]"),
        ({"phase": "Running"}, None),
        ({"phase": "Pending", "podIP": "10.1.2.3"}, None),
        ({"phase": "Failed", "podIP": "10.1.2.3"}, None),
    ],
)
def test_a_pod_is_asked_only_where_it_runs(status: dict[str, str], address: str | None) -> None:
    assert pod_address({"metadata": {}, "status": status}) == address
    ending = {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": status}
    assert pod_address(ending) is None
