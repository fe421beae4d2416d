"""The bench that loses a storage node and rebuilds it, on real nodes, small."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffkeeper.domain import stripes
from diffkeeper_repair import bench_rebuild

pytestmark = pytest.mark.disaster


async def test_what_was_lost_is_rebuilt_and_a_writer_goes_on_meanwhile(tmp_path: Path) -> None:
    found = await bench_rebuild.measure(tmp_path, stripes.parse("1+1"), 8, 0.5)
    rebuilt, foreground = found["rebuild"], found["foreground"]
    assert rebuilt["bytes"] >= 7_000_000 and rebuilt["bytes_per_s"] > 0 and rebuilt["disk_bytes_per_s"] > 0
    assert len(foreground["quiet_ms"]) == len(foreground["mending_ms"]) == 50
    assert all(taken > 0 for taken in foreground["quiet_ms"] + foreground["mending_ms"])
