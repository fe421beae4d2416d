"""Who may reign: holders stop before observers take over, whatever any wall clock says."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffkeeper.domain import errors, leases
from diffkeeper.leases.memory_lease_store import MemoryLeases, MemoryLeaseStore
from diffkeeper_capture.lease_keeper import STALL_S, LeaseKeeper

EAST = leases.Lease("orders", 1, "east", 600)
WEST = leases.Lease("orders", 2, "west", 600)


class Rig:
    """A keeper at east over a memory store, with a clock that a test moves."""

    def __init__(self) -> None:
        self.shared = MemoryLeases()
        self.store = MemoryLeaseStore(self.shared)
        self.now = 1000.0
        self.stored, self.behind = 0, False
        self.changes = 0
        self.keeper = LeaseKeeper(
            self.store, EAST, lambda: (self.stored, self.behind), self._changed, lambda: self.now
        )

    def _changed(self) -> None:
        self.changes += 1

    async def granted(self) -> Rig:
        await self.store.prepare("orders")
        await self.store.write(EAST, 0)
        return self

    async def take_over(self) -> None:
        held = await self.store.read("orders")
        assert held is not None
        await self.store.write(WEST, held.revision)


async def test_a_lease_is_held_for_two_thirds_of_its_time_after_the_sending_of_a_renewal() -> None:
    rig = await Rig().granted()
    assert not rig.keeper.held
    await rig.keeper.renew()
    assert rig.keeper.held and rig.changes == 1
    rig.now += 0.399
    assert rig.keeper.held
    rig.now += 0.002
    assert not rig.keeper.held
    await rig.keeper.renew()
    assert rig.keeper.held and rig.changes == 2


async def test_a_lease_that_was_given_to_another_is_lost_at_the_next_renewal() -> None:
    rig = await Rig().granted()
    await rig.keeper.renew()
    await rig.take_over()
    with pytest.raises(errors.Fenced) as caught:
        await rig.keeper.renew()
    assert caught.value.reason == "lease-lost" and caught.value.facts["site"] == "west"
    assert not rig.keeper.held


async def test_without_a_majority_a_lease_runs_out_and_is_renewed_when_there_is_one_again() -> None:
    rig = await Rig().granted()
    await rig.keeper.renew()
    rig.shared.has_majority = False
    for _ in range(4):
        rig.now += 0.15
        await rig.keeper.renew()
    assert not rig.keeper.held and "majority" in rig.keeper.status()["trouble"]
    rig.shared.has_majority = True
    await rig.keeper.renew()
    assert rig.keeper.held and rig.keeper.status()["trouble"] == ""


async def test_a_leader_that_cannot_store_lets_its_lease_run_out() -> None:
    rig = await Rig().granted()
    rig.stored, rig.behind = 7, True
    await rig.keeper.renew()
    rig.now += STALL_S + 1
    await rig.keeper.renew()
    assert not rig.keeper.held and "stream takes nothing" in rig.keeper.status()["trouble"]
    rig.stored = 8
    await rig.keeper.renew()
    assert rig.keeper.held


async def test_a_lease_of_an_older_epoch_is_waited_for() -> None:
    rig = Rig()
    await rig.store.prepare("orders")
    await rig.store.write(replace(EAST, epoch=0), 0)
    await rig.keeper.renew()
    assert not rig.keeper.held and "epoch 0" in rig.keeper.status()["trouble"]


async def test_a_renewal_whose_answer_was_lost_is_no_loss_of_the_lease() -> None:
    rig = await Rig().granted()
    await rig.keeper.renew()
    held = await rig.store.read("orders")
    assert held is not None
    # It was stored, and nobody heard so.
    await rig.store.write(leases.renewed(held.lease), held.revision)
    await rig.keeper.renew()
    await rig.keeper.renew()
    assert rig.keeper.held


def test_an_observer_counts_only_time_in_which_nothing_changed() -> None:
    first, second = leases.Held(EAST, 7), leases.Held(leases.renewed(EAST), 8)
    watch = leases.saw(None, first, 10.0)
    assert not leases.saw(watch, first, 10.599).expired(10.599)
    assert leases.saw(watch, first, 10.601).expired(10.601)
    assert not leases.saw(watch, second, 10.6).expired(10.6)
    # A question without an answer ends the watch.
    assert not leases.saw(None, first, 99.0).expired(99.5)


@given(
    pauses=st.lists(st.floats(0.0, 2.0), min_size=1, max_size=30),
    looks=st.lists(st.floats(0.0, 0.7), min_size=1, max_size=60),
    delays=st.lists(st.floats(0.0, 0.4), min_size=1, max_size=30),
)
def test_nobody_takes_over_while_the_lease_is_held(
    pauses: list[float], looks: list[float], delays: list[float]
) -> None:
    """Renewals take their time, and holder and observer are paused at will."""
    asyncio.run(_never_two(pauses, looks, delays))


async def _never_two(pauses: list[float], looks: list[float], delays: list[float]) -> None:
    store = (await Rig().granted()).store
    # What the world does, in its order: renewals are sent, arrive later, and the observer looks.
    events: list[tuple[float, str, float]] = []
    at = 0.0
    for number, pause in enumerate(pauses):
        sent_at = at + pause
        at = sent_at + delays[number % len(delays)]
        events.append((at, "renew", sent_at))
    at = 0.0
    for look in looks:
        at += look
        events.append((at, "look", at))
    held_until = float("-inf")
    watch: leases.Watch | None = None
    for moment, what, sent_at in sorted(events):
        held = await store.read("orders")
        assert held is not None
        if what == "renew":
            await store.write(leases.renewed(held.lease), held.revision)
            held_until = sent_at + leases.hold_ms(EAST.ttl_ms) / 1000
            continue
        watch = leases.saw(watch, held, moment)
        if watch.expired(moment):
            assert moment >= held_until, "two would hold it"
            return


def test_times_that_make_no_sense_are_refused() -> None:
    for ttl_ms in (0, 199, 600_001):
        with pytest.raises(errors.Refused):
            leases.check_ttl(ttl_ms)
