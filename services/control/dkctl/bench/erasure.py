"""Coding segments into shards and back, beside pyeclib with nothing checked; measured by the repair service's own code."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from diffkeeper.domain import errors
from dkctl.bench.figures import Figure, Report

MODULE = "diffkeeper_repair.bench"
# Hashing included, on a second core.
AT_LEAST = 0.8
OVERHEAD_AT_MOST = 0.01


def measure(geometries: Sequence[str], segments: int, rounds: int, say: Callable[[str], None]) -> Report:
    say(f"coding {segments} segments of 8 MiB, {rounds} rounds ...")
    argv = [sys.executable, "-m", MODULE, "--segments", str(segments), "--rounds", str(rounds)]
    argv += [part for geometry in geometries for part in ("--geometry", geometry)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise errors.DiffKeeperError(f"{MODULE} ended with code {done.returncode}", reason="bench-failed")
    return report(json.loads(done.stdout))


def report(found: Sequence[dict[str, Any]]) -> Report:
    figures: list[Figure] = []
    for one in found:
        figures += _figures(one)
    return Report(
        "erasure",
        figures,
        notes=["the ratio is to pyeclib alone in the same run; neither zfec nor par2 is compared"],
    )


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
