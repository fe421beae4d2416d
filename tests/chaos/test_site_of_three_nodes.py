"""Two sites of three brokers each: any one of them dies, comes back empty, or with an altered disk, and what is written
goes on being written, confirmed and whole.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.deployments import Deployment, until

from diffkeeper_control import node_care, stream_health

pytestmark = [pytest.mark.disaster, pytest.mark.timeout(300)]

WRITER = [sys.executable, str(Path(__file__).parents[1] / "support" / "line_writer.py"), "{path}"]
ORIGIN = "dk-lines-east"


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    started = Deployment(tmp_path)
    started.told = ["--nodes", "3"]
    (tmp_path / "data").mkdir()
    # So much that the stream has more than one block: what its last one loses, a broker gets back by itself.
    (tmp_path / "data" / "ballast").write_bytes(random.Random(1).randbytes(12 << 20))
    try:
        await started.up("east,west")
        await started.run("lines", "east", tmp_path / "data", WRITER)
        yield started
    finally:
        await started.stop()


async def test_a_site_survives_the_death_the_loss_and_the_damage_of_any_one_broker(
    deployment: Deployment,
) -> None:
    seed = int(os.environ.get("DK_SEED") or random.randrange(1 << 32))
    print(f"DK_SEED={seed}")
    chance = random.Random(seed)
    lines = Lines(deployment)
    await lines.go_on()

    killed = leader_of(deployment, "east")
    os.kill(pid_of(await deployment.site("east"), killed), signal.SIGKILL)
    found = await until(lambda: deployment.site("east"), is_degraded, "the death is told")
    assert killed in found["detail"]
    await lines.go_on()
    await until(lambda: deployment.site("east"), is_alive, "the broker is started again")

    emptied = f"east-{chance.randint(1, 3)}"
    await deployment.post(f"/v1/nodes/{emptied}/stop", {"kill": True})
    await lines.go_on()
    shutil.rmtree(store(deployment, emptied))
    await deployment.post(f"/v1/nodes/{emptied}/start")
    await until(lambda: replica(deployment, "east", emptied), is_full, "the empty broker is made whole")
    await until(lambda: deployment.site("east"), is_alive, "nothing is left to heal")

    damaged = f"east-{chance.randint(1, 3)}"
    await deployment.post(f"/v1/nodes/{damaged}/stop", {"kill": True})
    flip_a_bit(store(deployment, damaged), chance)
    await deployment.post(f"/v1/nodes/{damaged}/start")
    found = await until(lambda: deployment.site("east"), lambda site: "lost" in site["detail"], "it is told")
    assert f"{damaged} lost" in found["detail"]
    await until(lambda: deployment.site("east"), is_alive, "the altered broker is made whole")
    assert list(store(deployment, damaged).parent.glob("store.damaged-*")), "what it had is kept"
    await lines.go_on()

    await until(lambda: replicas(deployment, "east"), all_full, "every broker is whole")
    await lines.are_all_there()


class Lines:
    """What the program was told is safe, against what the other site has."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment

    async def acknowledged(self) -> int:
        return (self._deployment.base / "lines.out").read_bytes().count(b"\n")

    async def go_on(self) -> None:
        before = await self.acknowledged()
        await until(self.acknowledged, lambda count: count > before + 20, "fsyncs return")

    async def are_all_there(self) -> None:
        acknowledged = await self.acknowledged()
        copy = self._deployment.dir / "sites" / "west" / "volumes" / "lines" / "lines"

        async def copied() -> int:
            return copy.read_bytes().count(b"\n")

        await until(copied, lambda count: count >= acknowledged, "the other site shows all of it")
        numbers = copy.read_text().split("\n")[:-1]
        assert numbers == [str(number + 1) for number in range(len(numbers))]


def is_alive(site: dict[str, Any]) -> bool:
    return bool(site["state"] == "alive")


def is_degraded(site: dict[str, Any]) -> bool:
    return bool(site["state"] == "degraded")


def pid_of(site: dict[str, Any], node: str) -> int:
    return int(next(process["pid"] for process in site["processes"] if process["node"] == node))


def store(deployment: Deployment, node: str) -> Path:
    site, _, number = node.partition("-")
    return deployment.dir / "sites" / site / f"nats-{number}" / "store"


def pages(deployment: Deployment, site: str) -> dict[str, Any]:
    """What each broker of a site that answers says of its streams."""
    found = {}
    for node, ports in deployment.note()["sites"][site]["nodes"].items():
        url = f"http://127.0.0.1:{ports['monitor_port']}{node_care.PAGE}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                found[node] = json.loads(answer.read())
        except OSError:
            continue  # it is down
    return found


def leader_of(deployment: Deployment, site: str) -> str:
    """The broker that leads the origin's stream."""
    for page in pages(deployment, site).values():
        for account in page.get("account_details", []):
            for stream in account.get("stream_detail", []):
                if stream["name"] == ORIGIN and stream["cluster"].get("leader"):
                    return str(stream["cluster"]["leader"]).removeprefix("dk-")
    raise AssertionError(f"{ORIGIN} has no leader")


async def replica(deployment: Deployment, site: str, node: str) -> tuple[Any, int]:
    """A broker's copy of the origin's stream, and how far the furthest is."""
    reports = {name: stream_health.read_report(page) for name, page in pages(deployment, site).items()}
    furthest = max(report[ORIGIN].last for report in reports.values() if ORIGIN in report)
    return reports.get(node, {}).get(ORIGIN), furthest


async def replicas(deployment: Deployment, site: str) -> list[tuple[Any, int]]:
    return [await replica(deployment, site, f"{site}-{number}") for number in (1, 2, 3)]


def all_full(seen: list[tuple[Any, int]]) -> bool:
    return all(is_full(one) for one in seen)


def is_full(seen: tuple[Any, int]) -> bool:
    copy, furthest = seen
    return copy is not None and not copy.lost and copy.last >= furthest - 50


def flip_a_bit(where: Path, chance: random.Random) -> None:
    block = min(where.glob(f"**/streams/{ORIGIN}/msgs/*.blk"))
    with block.open("r+b") as file:
        # In the first half: what stands behind it is dropped with it.
        at = chance.randrange(200, block.stat().st_size // 2)
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << chance.randrange(8)]))
