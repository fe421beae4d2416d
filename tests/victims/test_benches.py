"""Each bench runs to its end and gives its figures; how large they are is not judged after so short a run."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from dkctl.bench import trials


@pytest.mark.disaster
@pytest.mark.bpf
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["capture", "--seconds", "0.5", "--rate", "2000", "--no-postgres"],
            {"pwrite_added_median", "writes_carried", "bytes_carried", "agent_resident_peak"},
        ),
        (["lag", "--seconds", "0.5"], {"write_to_applied_p50", "write_to_applied_p99"}),
        (
            ["failover", "--size", "1", "--rounds", "1"],
            {"planned_promoted_1mb_p50", "forced_promoted_1mb_max", "forced_first_write_1mb_p99"},
        ),
        (
            ["failover", "--front-door", "--size", "1", "--moves", "2", "--requests", "20"],
            {"requests_1mb", "longest_stall_1mb_p99"},
        ),
    ],
    ids=["capture", "lag", "failover", "front-door"],
)
def test_bench_gives_its_figures_with_their_baselines(arguments: list[str], expected: set[str]) -> None:
    done = subprocess.run(
        [*trials.DKCTL, "bench", *arguments, "--json"],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = {one["name"]: one for one in json.loads(done.stdout)["figures"]}
    assert expected <= found.keys()
    assert any(figure["baseline"] for figure in found.values())
    assert all(
        figure["value"] > 0 for name, figure in found.items() if name in expected and "added" not in name
    )
