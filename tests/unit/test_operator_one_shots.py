"""Switchover and Restore as decisions, and which of several operators acts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import sacs

from diffkeeper_operator import leadership, one_shots, views
from diffkeeper_operator.leadership import Move, Seen

AT = "2026-01-01T00:00:00Z"


def switchover(**changes: Any) -> one_shots.SwitchoverSpec:
    request = one_shots.read("Switchover", {"sac": "postgres", "to": "west"} | changes)
    assert isinstance(request, one_shots.SwitchoverSpec)
    return request


def operation(ident: str = "op-2", state: str = "running", to: str = "west", **more: Any) -> views.Operation:
    return views.read({"id": ident, "state": state, "to": to} | more, views.Operation)


def test_a_claim_keeps_what_was_asked_and_what_was_known_before() -> None:
    status = one_shots.claim(switchover(), sacs.sac(), "op-1", AT)
    assert status["phase"] == "Running"
    assert status["requested"]["to"] == "west"
    assert status["requested"]["lastOperation"] == "op-1"


def test_the_move_of_something_unknown_is_refused_before_anything_happens() -> None:
    status = one_shots.claim(switchover(), None, "", AT)
    assert (status["phase"], status["reason"]) == ("Refused", "unknown-sac")


def test_a_loss_is_accepted_only_by_who_types_the_name() -> None:
    assert one_shots.claim(switchover(acceptLoss="postgress"), sacs.sac(), "", AT)["reason"] == "wrong-name"
    assert not one_shots.failover_body(switchover())["accept_loss"]
    assert one_shots.failover_body(switchover(acceptLoss="postgres"))["accept_loss"]


def test_a_restore_of_no_moment_is_refused() -> None:
    request = one_shots.read("Restore", {"sac": "postgres", "at": "the day before"})
    assert one_shots.claim(request, sacs.sac(), "", AT)["phase"] == "Refused"


def test_an_operation_that_began_before_the_operator_died_is_found_again() -> None:
    status = one_shots.claim(switchover(), sacs.sac(), "op-1", AT)
    before, mine, later = operation("op-1"), operation("op-2"), operation("op-3", to="east")
    assert one_shots.adopted(status, [before]) is None
    assert one_shots.adopted(status, [before, later]) is None
    assert one_shots.adopted(status, [before, mine, later]) == mine


def test_an_operation_before_the_claim_is_never_taken_for_its_own() -> None:
    status = one_shots.claim(switchover(), sacs.sac(), "op-2", AT)
    assert one_shots.adopted(status, [operation("op-1"), operation("op-2")]) is None


@pytest.mark.parametrize(
    ("state", "phase"),
    [
        ("running", None),
        ("done", "Succeeded"),
        ("partial", "Succeeded"),
        ("failed", "Failed"),
        ("rolled-back", "Failed"),
    ],
)
def test_the_end_of_an_operation_is_the_end_of_the_switchover(state: str, phase: str | None) -> None:
    told = one_shots.of_operation(operation(state=state, epoch=2, result={"position": "2.1"}), AT)
    assert told.get("phase") == phase
    assert one_shots.is_over(told) is (phase is not None)
    assert ("completionTime" in told) is (phase is not None)


@given(st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", fullmatch=True))
def test_a_restore_of_any_name_makes_a_branch_that_may_be_called_so(name: str) -> None:
    from diffkeeper.domain import moments

    moments.check_name("branch", one_shots.branch_name(name))


# -- who acts


def held(by: str, version: str = "1", ttl: int = 15) -> dict[str, Any]:
    return {
        "metadata": {"resourceVersion": version},
        "spec": {"holderIdentity": by, "leaseDurationSeconds": ttl},
    }


def test_a_lease_of_nobody_is_taken_and_ones_own_is_renewed() -> None:
    assert leadership.move(None, "a", Seen("", 0), 0) is Move.TAKE
    assert leadership.move(held(""), "a", Seen("1", 0), 0) is Move.TAKE
    assert leadership.move(held("a"), "a", Seen("1", 0), 99) is Move.RENEW


def test_anothers_lease_is_taken_only_after_a_whole_silent_duration() -> None:
    first = leadership.seen(None, "1", 100.0)
    assert leadership.move(held("b"), "a", leadership.seen(first, "1", 114.0), 114.0) is Move.WAIT
    assert leadership.move(held("b"), "a", leadership.seen(first, "1", 115.0), 115.0) is Move.TAKE
    renewed = leadership.seen(first, "2", 114.0)
    assert leadership.move(held("b", "2"), "a", renewed, 120.0) is Move.WAIT


def test_a_lease_that_changes_hands_counts_it_and_carries_the_version_it_replaces() -> None:
    taken = leadership.lease("op", "ns", held("b", "7"), "a", 15.0, AT)
    assert taken["metadata"]["resourceVersion"] == "7"
    assert taken["spec"]["leaseTransitions"] == 1
    assert "resourceVersion" not in leadership.lease("op", "ns", None, "a", 15.0, AT)["metadata"]
