"""FAULTS 16: a writer that is paused, loses the volume, and wakes up: refused, kept as an orphan branch, following."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.deployments import Deployment, environment, until

pytestmark = [pytest.mark.disaster, pytest.mark.timeout(300)]

WRITER = [sys.executable, str(Path(__file__).parents[1] / "support" / "line_writer.py"), "{path}"]


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    started = Deployment(tmp_path)
    (tmp_path / "data").mkdir()
    try:
        await started.up("east,west")
        yield started
    finally:
        for pid in started.processes():
            os.kill(pid, signal.SIGCONT)
        await started.stop()


def dkctl(deployment: Deployment, *words: str, code: int = 0) -> Any:
    argv = [sys.executable, "-m", "dkctl.main", *words, "--dir", str(deployment.dir), "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, env=environment(), timeout=120)
    assert done.returncode == code, (words, done.returncode, done.stderr)
    return json.loads(done.stdout) if code in (0, 1) else done.stderr


def acknowledged(deployment: Deployment) -> int:
    whole = (deployment.base / "lines.out").read_text().rpartition("\n")[0]
    return int(whole.split("\n")[-1]) if whole else 0


def lines_in(folder: Path) -> int:
    """Lines are 1, 2, 3 ... without a gap."""
    numbers = (folder / "lines").read_text().split("\n")[:-1]
    assert numbers == [str(number + 1) for number in range(len(numbers))]
    return len(numbers)


def of_site(deployment: Deployment, word: str) -> list[int]:
    return [pid for pid, line in deployment.processes().items() if word in line]


def signalled(pids: list[int], number: signal.Signals) -> None:
    assert pids, "there is something to be signalled"
    for pid in pids:
        os.kill(pid, number)


async def test_a_paused_writer_that_wakes_up_is_refused_and_its_directory_follows(
    deployment: Deployment,
) -> None:
    data = deployment.base / "data"
    (data / "table").write_bytes(os.urandom(1 << 20))
    await deployment.run("lines", "east", data, WRITER)

    async def count() -> int:
        return acknowledged(deployment)

    await until(count, lambda number: number >= 20, "20 lines are acknowledged")
    table = (data / "table").stat().st_ino

    # First the broker of the writer's site stands still: what the program writes now gets no further than the spool.
    note = deployment.note()["sites"]["east"]["processes"]
    broker = [process["pid"] for name, process in note.items() if name.startswith("nats")]
    signalled(broker, signal.SIGSTOP)
    (data / "extra").write_bytes(b"beyond")
    others = [process["pid"] for name, process in note.items() if not name.startswith("nats")]
    paused = [*others, *of_site(deployment, "line_writer.py")]
    signalled(paused, signal.SIGSTOP)
    told = acknowledged(deployment)

    await until(
        lambda: deployment.volume("lines"),
        lambda found: found["leader_state"] == "unreachable",
        "control has noticed",
    )
    operation = await deployment.post(
        "/v1/volumes/lines/failover?wait_s=60",
        {"to": "west", "force": True, "accept_loss": True, "start": False},
        120.0,
    )
    assert operation["state"] == "done", operation
    west = Path(operation["result"]["path"])
    kept = lines_in(west)
    assert told <= kept, "every receipt is true"
    assert not (west / "extra").exists()

    signalled([*broker, *paused], signal.SIGCONT)

    def follows(found: dict[str, Any]) -> bool:
        east = next(site for site in found["sites"] if site["site"] == "east")
        return (east["role"], east["state"], found["reclaims"]["east"]["surrendered"]) == (
            "follow",
            "following",
            True,
        )

    found = await until(lambda: deployment.volume("lines"), follows, "the old writer's site follows", 120)
    assert (found["leader"], found["orphans"]) == ("west", [])
    assert acknowledged(deployment) <= kept, "no receipt was given for what the main line does not have"
    assert (lines_in(data), (data / "extra").exists()) == (kept, False)
    east = next(site for site in found["sites"] if site["site"] == "east")
    assert (east["path"], (data / "table").stat().st_ino) == (str(data), table), "no copy was made"
    deployment.programs[0].wait(20)  # it was ended: in order, or not

    # What it had beyond the handover is a branch.
    (branch,) = dkctl(deployment, "branch", "list", "lines")["orphans"]
    assert (branch["site"], branch["epoch"], branch["state"]) == ("east", 1, "kept")
    shown = dkctl(deployment, "diff", "lines", f"branch:{branch['name']}", "main", "--exit-code", code=1)
    assert ("extra", "added") in [(change["path"], change["kind"]) for change in shown["changes"]]
    taken = deployment.base / "taken"
    dkctl(deployment, "branch", "merge", "lines", branch["name"], "extra", "--to", str(taken))
    assert (taken / "extra").read_bytes() == b"beyond"
    # Nobody touched it since, so the main line can have it as well; once.
    dkctl(deployment, "branch", "merge", "lines", branch["name"], "extra", "--yes")
    assert (west / "extra").read_bytes() == b"beyond"
    refused = dkctl(deployment, "branch", "merge", "lines", branch["name"], "extra", "--yes", code=6)
    assert "changed-since" in refused

    # It follows for good, and the volume comes home without a copy.
    operation = await deployment.post("/v1/volumes/lines/failover?wait_s=60", {"to": "east"}, 120.0)
    assert (operation["state"], operation["result"]["path"]) == ("done", str(data))
    assert (data / "extra").read_bytes() == b"beyond"
    assert (data / "table").stat().st_ino == table
    assert "no-confirmation" in dkctl(deployment, "branch", "drop", "lines", branch["name"], code=6)
    dkctl(deployment, "branch", "drop", "lines", branch["name"], "--accept-loss")
    assert dkctl(deployment, "branch", "list", "lines")["orphans"] == []
