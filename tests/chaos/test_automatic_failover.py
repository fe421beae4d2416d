"""Three sites with leases: a site that dies or is paused is succeeded by itself, once; a coordinator that is killed while it
does so goes on; and without a majority nobody is.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.deployments import Deployment, until

from diffkeeper.domain import errors
from diffkeeper_control import processes

pytestmark = [pytest.mark.disaster, pytest.mark.timeout(300)]

WRITER = [sys.executable, str(Path(__file__).parents[1] / "support" / "line_writer.py"), "{path}"]
SITES = ("east", "west", "north")
# Long enough that a busy machine does not look like a dead one.
TTL_MS = 2500


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    started = Deployment(tmp_path)
    started.told = ["--auto-failover", "--lease-ttl-ms", str(TTL_MS)]
    (tmp_path / "data").mkdir()
    try:
        await started.up("east,west,north")
        await started.run("lines", "east", tmp_path / "data", WRITER)
        yield started
    finally:
        for pid in started.processes():
            os.kill(pid, signal.SIGCONT)
        await started.stop()


async def test_a_dead_and_a_paused_leader_are_succeeded_once_and_nothing_acknowledged_is_lost(
    deployment: Deployment,
) -> None:
    seed = int(os.environ.get("DK_SEED") or random.randrange(1 << 32))
    print(f"DK_SEED={seed}")
    chance = random.Random(seed)
    lines = Lines(deployment)
    await is_ready(deployment)
    await lines.go_on()

    await deployment.post("/v1/sites/east/stop", {"kill": True})
    # The coordinator dies somewhere on the way, once or twice, and its successor goes on.
    for _ in range(chance.randint(1, 2)):
        await asyncio.sleep(chance.uniform(0, 2 * TTL_MS / 1000))
        deployment.kill_control()
        await deployment.up()
    found = await until(lambda: deployment.volume("lines"), runs_away_from("east"), "another site leads")
    await lines.go_on()
    [operation] = [one for one in await operations(deployment) if one["state"] == "done"]
    assert operation["cause"] == "automatic" and operation["timings_ms"]["detect"] >= TTL_MS

    await deployment.post("/v1/sites/east/start")
    await is_ready(deployment)
    paused = found["leader"]
    before = found["program"]["pid"]
    stopped = pause(deployment, paused)
    found = await until(lambda: deployment.volume("lines"), runs_away_from(paused), "the paused is succeeded")
    await lines.go_on()
    reigns = found["chain"]
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    # It wakes, and is not the leader any more: its program is ended, and it follows.
    await until(
        lambda: deployment.volume("lines"),
        lambda one: any(site["site"] == paused and site["role"] == "follow" for site in one["sites"]),
        "the one that was paused follows",
    )
    await until(lambda: identity(before), lambda process: process is None, "its program has ended")
    await lines.go_on()
    assert (await deployment.volume("lines"))["chain"] == reigns, "nobody took over twice"
    await lines.are_in_order()


async def test_without_a_majority_nobody_takes_over_and_with_one_again_somebody_does(
    deployment: Deployment,
) -> None:
    lines = Lines(deployment)
    await is_ready(deployment)
    await lines.go_on()
    for node in ("link-west", "link-north"):
        await deployment.post(f"/v1/nodes/{node}/stop", {"kill": True})
    # Nobody can renew, and nobody concludes anything from that.
    await asyncio.sleep(2 * TTL_MS / 1000)
    found = await deployment.volume("lines")
    assert found["leader"] == "east" and not await operations(deployment)
    assert found["automatic"]["state"] == "not-now" and found["lease"]["held"] is False
    with pytest.raises(errors.Refused) as caught:
        await deployment.post("/v1/volumes/lines/failover", {"to": "east"})
    assert caught.value.reason == "already-leads"

    for node in ("link-west", "link-north"):
        await deployment.post(f"/v1/nodes/{node}/start")
    await until(lambda: deployment.volume("lines"), lambda one: one["lease"]["held"], "it is renewed again")
    await is_ready(deployment)
    found = await deployment.volume("lines")
    assert [reign["site"] for reign in found["chain"]] == ["east"], "nobody took over meanwhile"
    await lines.go_on()
    await deployment.post("/v1/sites/east/stop", {"kill": True})
    await until(lambda: deployment.volume("lines"), runs_away_from("east"), "another site leads")
    await lines.go_on()
    await lines.are_in_order()


class Lines:
    """The file that the program writes, wherever it is led."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment

    async def written(self) -> int:
        path = Path((await self._deployment.volume("lines"))["path"]) / "lines"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    async def go_on(self) -> None:
        before = await self.written()
        await until(self.written, lambda count: count > before + 20, "lines are written")

    async def are_in_order(self) -> None:
        """Every line that a reader was told is safe stands once, in its place."""
        path = Path((await self._deployment.volume("lines"))["path"]) / "lines"
        numbers = path.read_text().split("\n")[:-1]
        assert numbers == [str(number + 1) for number in range(len(numbers))]
        told = (self._deployment.base / "lines.out").read_text().split()
        assert len(numbers) >= len(told), "what the first leader's program was told is safe"


async def is_ready(deployment: Deployment) -> dict[str, Any]:
    found: dict[str, Any] = await until(
        lambda: deployment.volume("lines"),
        lambda one: one["automatic"]["state"] == "ready" and bool((one["program"] or {}).get("running")),
        "another site could take over",
    )
    return found


def runs_away_from(site: str) -> Any:
    def does(volume: dict[str, Any]) -> bool:
        running = bool((volume["program"] or {}).get("running"))
        return volume["leader"] != site and volume["operation"] is None and running

    return does


async def operations(deployment: Deployment) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await deployment.get("/v1/operations?volume=lines"))["operations"]
    return found


def pause(deployment: Deployment, site: str) -> list[int]:
    """SIGSTOP to everything of a site and to the programs there, as a machine that hangs."""
    pids = list(deployment.processes(f"sites/{site}"))
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    return pids


async def identity(pid: int) -> processes.ProcessId | None:
    return processes.identify(pid)
