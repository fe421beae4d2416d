"""Whether a failover may begin, and what it says could be lost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from diffkeeper.domain import errors
from diffkeeper_control import failover_requests, registry
from diffkeeper_control.failover_requests import Asked, LeaderState, Loss, Seen

COMPLETE = {
    "volume": "orders",
    "role": "follow",
    "epoch": 1,
    "leader": "east",
    "path": None,
    "base_complete": True,
    "state": "following",
}
# As it comes back: what it did before, and not yet what is wanted of it.
RETURNED = {**COMPLETE, "role": "lead", "leader": "west", "base_complete": False, "state": "leading"}
BEHIND = {"lag": {"frames": 3, "bytes": 4096, "ms": 12}}


def orders(durability: str = "remote", policy: str = "block") -> registry.Volume:
    made = registry.created(
        "orders",
        "east",
        "/srv/orders",
        mode="exclusive",
        durability=durability,
        policy=policy,
        probe="auto",
        now_us=1,
    )
    command = registry.Command(argv=["orders"], env={})
    return msgspec.structs.replace(made, command=command, held_since_us=7)


def loss(volume: registry.Volume, silent: list[str] | None = None) -> Loss:
    return failover_requests.bound_loss(volume, BEHIND, 400, silent or [])


def seen(volume: registry.Volume, leader: LeaderState, target: dict[str, Any] | None = COMPLETE) -> Seen:
    return Seen(["east", "west"], leader, loss(volume), target_running=True, target=target)


def refused(volume: registry.Volume, asked: Asked, what: Seen) -> errors.Refused:
    with pytest.raises(errors.Refused) as caught:
        failover_requests.accept(volume, asked, what, 2)
    return caught.value


WEST = Asked("west")


def test_failover_of_a_living_leader_is_planned() -> None:
    plan = failover_requests.accept(orders(), WEST, seen(orders(), LeaderState.ALIVE), 2)
    assert plan.planned
    assert plan.start
    assert plan.epoch == 2


def test_failover_to_the_leader_itself_is_refused() -> None:
    assert refused(orders(), Asked("east"), seen(orders(), LeaderState.ALIVE)).reason == "already-leads"


def test_failover_to_an_unknown_site_is_not_found() -> None:
    error = refused(orders(), Asked("north"), seen(orders(), LeaderState.ALIVE))
    assert (error.family, error.reason) == ("not-found", "unknown-site")


def test_second_failover_is_refused_and_names_the_first() -> None:
    moving = msgspec.structs.replace(orders(), operation="orders-2")
    error = refused(moving, WEST, seen(moving, LeaderState.ALIVE))
    assert (error.reason, error.facts) == ("failover-running", {"operation": "orders-2"})


def test_leader_that_may_be_alive_needs_force_and_the_loss_is_stated() -> None:
    error = refused(orders(), WEST, seen(orders(), LeaderState.UNREACHABLE))
    assert error.reason == "leader-unreachable"
    assert error.facts["acknowledged_writes"] == 0
    assert error.facts["age_ms"] == 400
    accepting = replace(WEST, accept_loss=True)
    assert (
        refused(orders(), accepting, seen(orders(), LeaderState.UNREACHABLE)).reason == "leader-unreachable"
    )
    plan = failover_requests.accept(
        orders(), replace(WEST, force=True), seen(orders(), LeaderState.UNREACHABLE), 2
    )
    assert (plan.planned, plan.leader_dead, plan.force) == (False, False, True)


def test_dead_leader_at_remote_needs_no_confirmation() -> None:
    plan = failover_requests.accept(orders(), WEST, seen(orders(), LeaderState.DEAD), 2)
    assert (plan.planned, plan.leader_dead, plan.loss_accepted) == (False, True, True)


@pytest.mark.parametrize("volume", [orders("site"), orders("observe"), orders("remote", "degrade")])
def test_dead_leader_whose_writes_may_be_lost_needs_confirmation(volume: registry.Volume) -> None:
    error = refused(volume, WEST, seen(volume, LeaderState.DEAD))
    assert error.reason == "needs-confirmation"
    assert error.facts["acknowledged_writes"] is None
    assert error.facts["frames"] == 3
    assert "3 frames" in error.facts["text"]
    for yes in (replace(WEST, accept_loss=True), replace(WEST, force=True)):
        assert failover_requests.accept(volume, yes, seen(volume, LeaderState.DEAD), 2).loss_accepted


def test_remote_loses_nothing_only_while_every_other_site_answers() -> None:
    assert loss(orders()).acknowledged_writes == 0
    silent = loss(orders(), ["north"])
    assert silent.acknowledged_writes is None
    assert "north" in silent.text


def test_loss_of_a_leader_never_heard_is_not_claimed_to_be_known() -> None:
    bound = failover_requests.bound_loss(orders("observe"), None, None, [])
    assert bound.frames is None
    assert "not known" in bound.text


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (None, "target-not-ready"),
        ({**COMPLETE, "base_complete": False}, "target-not-ready"),
        (RETURNED, "target-not-ready"),
        ({**RETURNED, "base_complete": True}, "target-not-ready"),
        ({**COMPLETE, "state": "failed", "error": "bad frame"}, "target-not-ready"),
        ({**COMPLETE, "state": "stalled"}, "target-not-ready"),
    ],
)
def test_target_that_is_not_complete_is_refused(target: dict[str, Any] | None, reason: str) -> None:
    for leader in (LeaderState.ALIVE, LeaderState.DEAD):
        what = seen(orders(), leader, target)
        assert refused(orders(), replace(WEST, force=True), what).reason == reason


def test_stopped_target_is_refused() -> None:
    what = replace(seen(orders(), LeaderState.DEAD), target_running=False)
    assert refused(orders(), WEST, what).reason == "site-stopped"


def test_program_that_did_not_run_is_not_started_by_moving_its_files() -> None:
    resting = msgspec.structs.replace(orders(), held_since_us=None)
    assert not failover_requests.accept(resting, WEST, seen(resting, LeaderState.ALIVE), 2).start
    unstarted = replace(WEST, start=False)
    assert not failover_requests.accept(orders(), unstarted, seen(orders(), LeaderState.ALIVE), 2).start


@pytest.mark.parametrize(
    ("target", "coming"),
    [
        (None, True),
        (RETURNED, True),
        ({**COMPLETE, "base_complete": False, "state": "waiting"}, True),
        ({**COMPLETE, "base_complete": False}, False),
        ({**COMPLETE, "state": "failed"}, False),
    ],
)
def test_only_a_target_that_becomes_ready_by_itself_is_waited_for(
    target: dict[str, Any] | None, coming: bool
) -> None:
    what = seen(orders(), LeaderState.DEAD, target)
    assert failover_requests.is_on_its_way(orders(), WEST, what) is coming
    assert not failover_requests.is_on_its_way(orders(), WEST, replace(what, target_running=False))
