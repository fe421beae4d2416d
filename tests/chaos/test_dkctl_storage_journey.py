"""Storage nodes from the command line: up, seal, lose nodes, look, mend, and rescue on an empty machine."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support import replays
from tests.support.deployments import environment

pytestmark = pytest.mark.disaster


class Journey:
    def __init__(self, base: Path) -> None:
        self.base = base
        self.dir = base / "deployment"

    def dkctl(self, *argv: str, codes: tuple[int, ...] = (0,), where: bool = True) -> Any:
        """The JSON answer of a command; fails when it ends with another code than these."""
        line = [
            sys.executable,
            "-m",
            "dkctl.main",
            *argv,
            "--json",
            *(["--dir", str(self.dir)] if where else []),
        ]
        done = subprocess.run(
            line, env=environment(), capture_output=True, text=True, check=False, timeout=100
        )
        assert done.returncode in codes, (argv, done.returncode, done.stderr, done.stdout)
        return json.loads(done.stdout) if done.stdout else None


@pytest.fixture
def journey(tmp_path: Path) -> Iterator[Journey]:
    made = Journey(tmp_path)
    try:
        yield made
    finally:
        made.dkctl("down")


def test_a_volume_outlives_most_of_its_storage_nodes(journey: Journey) -> None:
    rng = random.Random(6)
    source = journey.base / "source"
    source.mkdir()
    for number in range(4):
        (source / f"file-{number}").write_bytes(rng.randbytes(40_000))
    journey.dkctl("up", "--detach", "--storage-nodes", "5", "--parity", "2+3")
    journey.dkctl("attach", "orders", "--site", "east", "--path", str(source), "--probe", "watch")
    (source / "later").write_text("written later")
    journey.dkctl("sync", "orders")
    found = journey.dkctl("health", "--seal")
    assert found["ok"] and found["spare"] == 3
    assert "any 3 of 5 nodes" in found["words"]

    nodes = [node["node"] for node in journey.dkctl("nodes")["nodes"]]
    lost = rng.sample(nodes, 3)
    journey.dkctl("nodes", "stop", lost[0], "--kill")
    journey.dkctl("nodes", "stop", lost[1])
    found = journey.dkctl("health", codes=(0, 1))
    journey.dkctl("nodes", "start", lost[1])
    journey.dkctl("nodes", "start", lost[0])
    replaced = journey.dkctl("nodes", "replace", lost[2])
    assert list((journey.dir / "storage").glob(f"{lost[2]}.replaced-*")), replaced
    journey.dkctl("rebuild", codes=(0, 1))
    assert journey.dkctl("scrub", codes=(0, 1))["stripes_total"] >= 1
    journey.dkctl("rebuild", codes=(0, 1))
    assert journey.dkctl("health")["spare"] == 3

    journey.dkctl("detach", "orders")
    journey.dkctl("down")
    # An empty machine, and the disks of any two nodes.
    disks = journey.base / "disks"
    for name in rng.sample(nodes, 2):
        shutil.copytree(journey.dir / "storage" / name, disks / name)
    back = journey.base / "back"
    report = journey.dkctl("rescue", "--from", str(disks), "--to", str(back), where=False)
    assert report["volumes"][0]["whole"], report
    assert replays.snapshot(back / "orders" / "tree") == replays.snapshot(source)
    one = journey.dkctl(
        "rescue", "--from", str(disks / name), "--to", str(journey.base / "one"), codes=(1,), where=False
    )
    assert one["volumes"][0]["lost"]
    journey.dkctl("rescue", "--from", str(disks), "--to", str(back), codes=(6,), where=False)
