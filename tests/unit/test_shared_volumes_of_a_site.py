"""The shared volumes of two sites as tasks, with a log in memory: roles that change while a volume is being opened, and
directories that become one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from diffkeeper.log.memory_event_log import MemoryBroker, MemoryEventLog
from diffkeeper_replicator.merging_service.shared_role import SharedRole
from diffkeeper_replicator.merging_service.shared_volumes import SharedVolumes

SITES = ("east", "west")


@pytest.fixture
async def sites(tmp_path: Path) -> AsyncIterator[dict[str, SharedVolumes]]:
    broker = MemoryBroker()
    made = {
        site: SharedVolumes(
            tmp_path / f"{site}-own", MemoryEventLog(broker, site), lambda: time.time_ns() // 1000
        )
        for site in SITES
    }
    for site in SITES:
        (tmp_path / site).mkdir()
        made[site].resume()
    yield made
    for one in made.values():
        await one.close()


def role(tmp_path: Path, site: str, sites: tuple[str, ...] = SITES) -> SharedRole:
    # Nothing captures here, so everything is looked at now and then.
    return SharedRole(path=str(tmp_path / site), member=f"desk--{site}", sites=sites, captured=False)


async def until_same(tmp_path: Path, name: str, content: str) -> None:
    deadline = time.monotonic() + 60
    while not all((tmp_path / site / name).exists() for site in SITES) or any(
        (tmp_path / site / name).read_text() != content for site in SITES
    ):
        assert time.monotonic() < deadline, f"{name} is not the same at both sites"
        await asyncio.sleep(0.05)


async def test_a_role_that_changes_while_the_volume_is_opened_leaves_nothing_held(
    sites: dict[str, SharedVolumes], tmp_path: Path
) -> None:
    (tmp_path / "east" / "notes.txt").write_text("one\n")
    for known in (("east",), ("east", "north"), SITES):
        await sites["east"].put_role("desk", role(tmp_path, "east", known))
        await asyncio.sleep(0)
    several = (("west",), ("west", "north"), SITES)
    await asyncio.gather(
        *(sites["west"].put_role("desk", role(tmp_path, "west", known)) for known in several)
    )
    await until_same(tmp_path, "notes.txt", "one\n")
    (tmp_path / "west" / "notes.txt").write_text("one\ntwo\n")
    await until_same(tmp_path, "notes.txt", "one\ntwo\n")
    assert sites["east"].get("desk").troubles == {}
    assert (await sites["east"].get("desk").status())["state"] == "merging"


async def test_a_site_takes_up_its_volumes_again(sites: dict[str, SharedVolumes], tmp_path: Path) -> None:
    for site in SITES:
        await sites[site].put_role("desk", role(tmp_path, site))
    (tmp_path / "east" / "a.txt").write_text("a\n")
    await until_same(tmp_path, "a.txt", "a\n")
    await sites["west"].close()
    (tmp_path / "west" / "b.txt").write_text("b\n")
    sites["west"].resume()
    await until_same(tmp_path, "b.txt", "b\n")
