"""Three sites: the one that leads dies; the two that are left go on at ``remote``, also where one of them never got the
last of what the dead one wrote.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.deployments import Deployment, until

pytestmark = [pytest.mark.disaster, pytest.mark.timeout(300)]

WRITER = [sys.executable, str(Path(__file__).parents[1] / "support" / "line_writer.py"), "{path}"]


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    started = Deployment(tmp_path)
    (tmp_path / "data").mkdir()
    try:
        await started.up("east,west,north")
        yield started
    finally:
        await started.stop()


async def test_two_of_three_sites_go_on_at_remote_when_the_first_dies(deployment: Deployment) -> None:
    await deployment.run("lines", "east", deployment.base / "data", WRITER)
    said = deployment.base / "lines.out"

    async def acknowledged() -> int:
        return said.read_bytes().count(b"\n")

    await until(acknowledged, lambda lines: lines > 20, "lines are acknowledged")
    await until(lambda: deployment.volume("lines"), both_complete, "both replicas have the base")
    await deployment.post("/v1/sites/east/stop", {"kill": True})

    operation = await fail_over(deployment, "west")
    if operation["state"] == "failed":
        # The other one may have confirmed more, and then it must be the one that leads.
        assert operation["error"]["reason"] == "behind-another-site", operation
        operation = await fail_over(deployment, "north")
    assert operation["state"] == "done", operation
    lines = Path(operation["result"]["path"]) / "lines"
    numbers = lines.read_text().split("\n")[:-1]
    assert numbers == [str(number + 1) for number in range(len(numbers))]
    assert len(numbers) >= await acknowledged()

    await goes_on(lines)
    found = await deployment.volume("lines")
    assert found["durability"] == "remote"
    other = ({"west", "north"} - {found["leader"]}).pop()
    assert other in found["positions"]["confirmed"]


async def test_a_site_that_missed_the_end_of_a_dead_leader_gets_it_from_the_new_one(
    deployment: Deployment,
) -> None:
    await deployment.run("lines", "east", deployment.base / "data", WRITER)
    said = deployment.base / "lines.out"
    await until(lambda: deployment.volume("lines"), both_complete, "both replicas have the base")
    await deployment.post("/v1/sites/north/stop")
    await goes_on(said)
    # North's own mirror will never get what east wrote meanwhile: it comes back when east is dead.
    await deployment.post("/v1/sites/east/stop", {"kill": True})
    acknowledged = said.read_bytes().count(b"\n")
    await deployment.post("/v1/sites/north/start")
    operation = await fail_over(deployment, "west")
    assert operation["state"] == "done", operation
    lines = Path(operation["result"]["path"]) / "lines"
    await goes_on(lines)
    found = await deployment.volume("lines")
    assert "north" in found["positions"]["confirmed"] and found["level"]["met"] is True
    numbers = lines.read_text().split("\n")[:-1]
    assert numbers == [str(number + 1) for number in range(len(numbers))] and len(numbers) >= acknowledged


async def goes_on(lines: Path) -> None:
    """Fsyncs return, so the file that is written behind them grows."""

    async def written() -> int:
        return lines.read_bytes().count(b"\n")

    before = await written()
    await until(written, lambda count: count > before + 20, f"{lines} grows")


def both_complete(found: dict[str, Any]) -> bool:
    replicas = [site for site in found["sites"] if site["site"] != found["leader"]]
    return len(replicas) == 2 and all(replica["base_complete"] for replica in replicas)


async def fail_over(deployment: Deployment, to: str) -> dict[str, Any]:
    operation: dict[str, Any] = await deployment.post("/v1/volumes/lines/failover?wait_s=60", {"to": to})
    return operation
