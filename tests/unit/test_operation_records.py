"""Which records of an operation wait for the disk: the one that hands out an epoch, and what a reign rests on."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from diffkeeper_control import failover, failover_requests
from diffkeeper_control.failover import Phase
from diffkeeper_control.operations import Operation, OperationStore

PLAN = failover.Plan(
    volume="orders",
    leader="east",
    target="west",
    old_epoch=1,
    epoch=2,
    planned=False,
    leader_dead=True,
    force=False,
    loss_accepted=True,
    start=True,
    grace_s=1.0,
    timeout_s=1.0,
)


def operation(phase: Phase) -> Operation:
    loss = failover_requests.Loss(
        frames=0, bytes=0, ms=0, age_ms=0, durability="remote", acknowledged_writes=0, text=""
    )
    return Operation(
        id="orders-2", machine=replace(failover.begin(PLAN), phase=phase), loss=loss, started_us=1
    )


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    real = os.fdatasync

    def count(descriptor: int) -> None:
        calls.append(descriptor)
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", count)
    return calls


@pytest.mark.parametrize("phase", [Phase.PREPARE, Phase.FENCE, Phase.PROMISE])
def test_the_record_that_hands_out_an_epoch_is_durable_whatever_phase_it_begins_in(
    tmp_path: Path, synced: list[int], phase: Phase
) -> None:
    OperationStore(tmp_path).save(operation(phase))
    assert len(synced) == 1


def test_what_a_reign_rests_on_and_the_end_are_durable_and_what_is_reached_again_is_not(
    tmp_path: Path, synced: list[int]
) -> None:
    store = OperationStore(tmp_path)
    store.save(operation(Phase.PREPARE))
    waited = []
    for phase in Phase:
        synced.clear()
        store.save(operation(phase))
        waited += [phase] if synced else []
    again = {Phase.PROMISE, Phase.CATCH_UP, Phase.PROMOTE, Phase.START, Phase.FOLLOW}
    assert set(waited) == set(Phase) - again
    synced.clear()
    store.sync_beside(store.save(operation(Phase.PROMISE)))
    assert len(synced) == 1
    store.sync_beside(store.save(operation(Phase.CATCH_UP)))
    assert len(synced) == 1
    assert OperationStore(tmp_path).get("orders-2").machine.phase is Phase.CATCH_UP
