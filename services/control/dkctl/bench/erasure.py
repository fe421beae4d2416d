"""Coding segments into shards and back, beside pyeclib with nothing checked; filling a wiped storage node again, beside
the disk; and what a writer feels of that. Measured by the repair service's own code.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from diffkeeper.domain import errors
from dkctl.bench.figures import Figure, Report, percentile

MODULE = "diffkeeper_repair.bench"
# Hashing included, on a second core.
AT_LEAST = 0.8
OVERHEAD_AT_MOST = 0.01
REBUILD_MODULE = "diffkeeper_repair.bench_rebuild"
# Bytes a second, or this part of what the disk itself gives.
REBUILD_AT_LEAST = 200e6
REBUILD_OF_DISK = 0.7
# Of the quiet p99, while rebuilding within the budget.
P99_AT_MOST = 1.1


def measure(
    geometries: Sequence[str],
    segments: int,
    rounds: int,
    rebuild: Path | None,
    node_mb: int,
    say: Callable[[str], None],
) -> Report:
    """``rebuild`` is the folder for storage nodes of ``node_mb`` each; without it only coding is measured."""
    say(f"coding {segments} segments of 8 MiB, {rounds} rounds ...")
    arguments = ["--segments", str(segments), "--rounds", str(rounds)]
    arguments += [part for geometry in geometries for part in ("--geometry", geometry)]
    coded = _run(MODULE, arguments)
    rebuilt = []
    if rebuild is not None:
        say(f"filling storage nodes of {node_mb} MB, losing one, rebuilding it ...")
        rebuilt.append(_run(REBUILD_MODULE, ["--node-mb", str(node_mb), "--work", str(rebuild)]))
    return report(coded, rebuilt)


def _run(module: str, arguments: Sequence[str]) -> Any:
    done = subprocess.run([sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise errors.DiffKeeperError(f"{module} ended with code {done.returncode}", reason="bench-failed")
    return json.loads(done.stdout)


def report(found: Sequence[dict[str, Any]], rebuilt: Sequence[dict[str, Any]] = ()) -> Report:
    figures: list[Figure] = []
    for one in found:
        figures += _figures(one)
    for one in rebuilt:
        figures += _rebuild_figures(one)
    return Report(
        "erasure",
        figures,
        notes=["the ratio is to pyeclib alone in the same run; neither zfec nor par2 is compared"],
    )


def _rebuild_figures(one: dict[str, Any]) -> list[Figure]:
    rebuilt, foreground = one["rebuild"], one["foreground"]
    disk, megabytes = rebuilt["disk_bytes_per_s"], rebuilt["bytes"] / 1e6
    quiet, busy = percentile(foreground["quiet_ms"], 99), percentile(foreground["mending_ms"], 99)
    return [
        Figure(
            f"rebuild {one['geometry']}, a node of {megabytes:.0f} MB",
            rebuilt["bytes_per_s"] / 1e6,
            "MB/s",
            baseline=disk / 1e6,
            at_least=min(REBUILD_AT_LEAST, REBUILD_OF_DISK * disk) / 1e6,
            note=f"{rebuilt['processor_s']:.2f} s of processor, {rebuilt['nodes_processor_s']:.2f} s of the nodes",
        ),
        Figure(
            "append p99 while rebuilding",
            busy,
            "ms",
            baseline=quiet,
            at_most=P99_AT_MOST * quiet,
            note=f"within a budget of {foreground['budget_bytes_per_s'] / 1e6:.0f} MB/s, "
            f"{foreground['mended_bytes'] / 1e6:.0f} MB were mended meanwhile",
        ),
    ]


def _figures(one: dict[str, Any]) -> list[Figure]:
    geometry = one["geometry"]
    figures = []
    for what in ("encode", "decode"):
        rates = one[what]
        figures += [
            Figure(
                f"{what} {geometry}",
                rates["bytes_per_s"] / 1e6,
                "MB/s",
                baseline=rates["bare_bytes_per_s"] / 1e6,
                note=f"{rates['processor_s']:.2f} s of processor, {rates['bare_processor_s']:.2f} s without checks",
            ),
            Figure(f"{what} {geometry}, of the bare rate", rates["ratio"], "", at_least=AT_LEAST),
        ]
    figures.append(
        Figure(f"bytes {geometry}, above n/k", one["overhead"] * 100, "%", at_most=OVERHEAD_AT_MOST * 100)
    )
    return figures
