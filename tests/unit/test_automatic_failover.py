"""When a volume gets another leader by itself, and when it does not."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from diffkeeper.domain import errors, leases
from diffkeeper.leases.memory_lease_store import MemoryLeases, MemoryLeaseStore
from diffkeeper_control import automatic, registry
from diffkeeper_control.automatic import Others
from diffkeeper_control.lease_office import LeaseOffice
from diffkeeper_control.registry import State

VOLUME = registry.created(
    "orders", "east", "/data", mode="exclusive", durability="remote", policy="block", probe="auto", now_us=1
)
VOLUME = msgspec.structs.replace(VOLUME, paths={"east": "/data", "west": "/w", "north": "/n"})


def replica(site: str, journalled: str = "1.7", **changes: Any) -> dict[str, Any]:
    follows = {"role": "follow", "epoch": 1, "leader": "east", "path": VOLUME.paths[site]}
    return {**follows, "state": "following", "base_complete": True, "journalled": journalled, **changes}


def others(**changes: Any) -> Others:
    replicas = {"west": replica("west"), "north": replica("north"), **changes}
    return Others(frozenset({"west", "north"}), replicas)


def watched(epoch: int = 1, since: float = 0.0) -> leases.Watch:
    return leases.Watch(leases.Held(leases.Lease("orders", epoch, "east", 500, 3), 4), since)


def test_a_reign_is_over_when_its_lease_stood_still_for_all_its_time() -> None:
    assert not automatic.is_over(VOLUME, watched(), 0.4)
    assert automatic.is_over(VOLUME, watched(), 0.5)


def test_a_volume_that_is_being_moved_or_at_rest_is_left_alone() -> None:
    moving = msgspec.structs.replace(VOLUME, operation="orders-2", state=State.MOVING)
    assert not automatic.is_over(moving, watched(), 9.0)
    assert not automatic.is_over(msgspec.structs.replace(VOLUME, state=State.RELEASED), watched(), 9.0)


def test_a_failed_attempt_is_followed_by_another() -> None:
    failed = msgspec.structs.replace(VOLUME, state=State.FAILED)
    assert automatic.is_over(failed, watched(epoch=2), 9.0)
    assert [automatic.pause_s(count) for count in (0, 1, 2, 3, 99)] == [0.0, 1.0, 2.0, 4.0, 30.0]


def test_a_lease_of_an_older_reign_says_nothing_about_this_one() -> None:
    later = registry.with_reign(
        VOLUME,
        registry.Reign(site="west", epoch=2, parent=registry.Point(position="1.7", hash="00")),
        path="/w",
        resume=None,
    )
    assert not automatic.is_over(later, watched(epoch=1), 9.0)


@pytest.mark.parametrize(
    "changes", [{"durability": "site"}, {"durability": "observe"}, {"policy": "degrade"}]
)
def test_what_could_lose_an_acknowledged_write_is_never_automatic(changes: dict[str, str]) -> None:
    assert automatic.why_never(VOLUME) == ""
    assert "could be lost" in automatic.why_never(msgspec.structs.replace(VOLUME, **changes))


def test_all_other_sites_must_answer_because_one_of_them_alone_may_have_confirmed() -> None:
    assert automatic.why_not_now(VOLUME, others()) == ""
    assert "west does not answer" in automatic.why_not_now(VOLUME, others(west=None))
    stopped = Others(frozenset({"west"}), others().replicas)
    assert "north is stopped" in automatic.why_not_now(VOLUME, stopped)


def test_the_site_that_holds_most_takes_over_and_only_if_it_is_complete_and_follows() -> None:
    assert automatic.choose(VOLUME, others()) == "west"
    assert automatic.choose(VOLUME, others(north=replica("north", "1.8"))) == "north"
    ahead = replica("north", "1.10", base_complete=False)
    assert automatic.choose(VOLUME, others(north=ahead)) == "west"
    nobody = others(west=replica("west", state="failed"), north=replica("north", epoch=0))
    assert automatic.choose(VOLUME, nobody) is None
    assert automatic.why_not_now(VOLUME, nobody) == "no other site has a complete replica that follows"


async def test_an_epoch_is_granted_once_and_never_an_older_one() -> None:
    shared = MemoryLeases()
    one, other = (LeaseOffice(MemoryLeaseStore(shared), 500) for _ in range(2))
    await one.grant("orders", 1, "east")
    await one.grant("orders", 1, "east")
    await one.grant("orders", 2, "west")
    with pytest.raises(errors.Fenced) as caught:
        await other.grant("orders", 2, "north")
    assert caught.value.reason == "lease-held" and caught.value.facts["site"] == "west"
    with pytest.raises(errors.Fenced):
        await other.grant("orders", 1, "east")
    await other.grant("orders", 3, "north")


async def test_nothing_is_granted_without_a_majority() -> None:
    shared = MemoryLeases()
    shared.has_majority = False
    with pytest.raises(errors.Unreachable):
        await LeaseOffice(MemoryLeaseStore(shared), 500).grant("orders", 1, "east")


async def test_without_automatic_failover_there_are_no_leases() -> None:
    office = LeaseOffice(None, 500)
    await office.grant("orders", 1, "east")
    assert office.order() is None
