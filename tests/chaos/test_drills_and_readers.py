"""Drills and readers on clones of a follower: what they do is seen by nobody else, and nothing is left."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.deployments import Deployment, environment, until

from diffkeeper import nats_server
from diffkeeper.domain import errors
from dkctl.bench import failover as bench

pytestmark = [pytest.mark.disaster, pytest.mark.timeout(300)]


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    started = Deployment(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "appended").write_text("before\n")
    try:
        await started.up("east,west")
        port = nats_server.free_port("127.0.0.1")
        await started.run(
            "kept", "east", tmp_path / "data", bench.http_program(), front_door={"listen": str(port)}
        )
        await until(
            lambda: started.volume("kept"),
            lambda found: bool((found["front_door"]["now"] or {}).get("accepting")) and found["program"],
            "the program accepts connections",
        )
        yield started
    finally:
        await started.stop()


def clones(deployment: Deployment) -> list[str]:
    return sorted(path.name for path in deployment.dir.glob("sites/*/clones/*"))


async def drill(deployment: Deployment, **asked: Any) -> dict[str, Any]:
    body = {"to": "west", "timeout_s": 30} | asked
    report: dict[str, Any] = await deployment.post("/v1/volumes/kept/drill", body)
    assert clones(deployment) == [], "a drill leaves nothing"
    return report


def reader(deployment: Deployment, *command: str) -> subprocess.Popen[bytes]:
    line = ["read", "kept", "--dir", str(deployment.dir), "--site", "west", "--", *command]
    return subprocess.Popen(
        [sys.executable, "-m", "dkctl.main", *line],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )


async def test_drill_moves_nothing_and_says_what_a_failover_would_take(deployment: Deployment) -> None:
    before = await deployment.volume("kept")
    check = (
        'test "$(head -n 1 $DIFFKEEPER_PATH/appended)" = before && echo drilled >> $DIFFKEEPER_PATH/appended'
    )
    passed = await drill(deployment, check=check, rto_ms=60_000, rpo_ms=60_000)
    assert passed["ok"], passed
    assert passed["steps_ms"].keys() == {"catch_up", "program"}
    missed = await drill(deployment, rto_ms=0)
    assert not missed["ok"] and "the objective is 0 ms" in missed["verdict"]
    broken = await drill(deployment, check="false", timeout_s=0.2)
    assert not broken["ok"] and broken["error"]["reason"] == "not-up"
    with pytest.raises(errors.Refused) as refused:
        await drill(deployment, to="east")
    assert refused.value.reason == "already-leads"

    after = await deployment.volume("kept")
    assert (after["leader"], after["epoch"], after["program"]["pid"]) == (
        before["leader"],
        before["epoch"],
        before["program"]["pid"],
    )
    assert after["drill"]["last"]["verdict"] == broken["verdict"]
    assert (deployment.base / "data" / "appended").read_text() == "before\n"
    verified = await deployment.post("/v1/volumes/kept/verify")
    assert verified["ok"], verified


async def test_reader_has_a_clone_of_its_own_which_ends_with_it_even_when_killed(
    deployment: Deployment,
) -> None:
    with reader(
        deployment, "sh", "-c", 'cat "$1"/appended; echo mine > "$1"/appended; exit 7', "sh", "{path}"
    ) as read:
        out, err = await asyncio.to_thread(read.communicate)
    assert (read.returncode, out) == (7, b"before\n"), err
    assert b"kept at west, position 1." in err
    assert clones(deployment) == []
    replica = deployment.dir / "sites" / "west" / "volumes" / "kept" / "appended"
    assert replica.read_text() == "before\n"

    with reader(deployment, "sh", "-c", "echo $DIFFKEEPER_POSITION; exec sleep 600") as killed:
        assert killed.stdout is not None
        line = await asyncio.to_thread(killed.stdout.readline)
        assert line.startswith(b"1.") and len(clones(deployment)) == 2
        children = Path(f"/proc/{killed.pid}/task/{killed.pid}/children").read_text().split()
        killed.kill()
        for child in children:
            os.kill(int(child), signal.SIGKILL)

    async def left() -> list[str]:
        return clones(deployment)

    await until(left, lambda found: not found, "control takes the clone away")
