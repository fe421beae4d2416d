"""``python -m diffkeeper_repair.bench``: what coding segments costs beside pyeclib alone. JSON on stdout.

Ours is what the service does for a stripe: for encoding the segment's hash, the code, the digest of every shard and its
header; for decoding the headers of k shards, the code, the segment's hash. Two stripes are in flight,
so that one is hashed on a second core while another is coded. The baseline is pyeclib in a
loop with nothing checked. Rounds alternate, so that both meet the same noise; the best of each counts.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pyeclib.ec_iface import ECDriver

from diffkeeper import heap
from diffkeeper.domain import clocks, deltas, frames, positions, segments, stripes
from diffkeeper_repair import assembly, liberasurecode

GEOMETRIES = ("2+8", "4+2", "7+3", "10+4")
FRAME_BYTES = 1024 * 1024
_IN_FLIGHT = 2


def a_segment(seed: int, size: int = segments.TARGET_BYTES) -> segments.Segment:
    """Frames of a mebibyte that do not compress, up to the size of a full segment."""
    rng = random.Random(seed)
    wires: list[bytes] = []
    tip = frames.ORIGIN_TIP
    stamp = clocks.from_micros(1)
    while (
        segments.fits(len(wires), sum(map(len, wires)), FRAME_BYTES)
        and sum(map(len, wires)) < size - FRAME_BYTES
    ):
        columns = deltas.Columns()
        columns.add(deltas.write(2, 0, rng.randbytes(FRAME_BYTES - 512)))
        frame = frames.seal(
            frames.pack(columns, frames.Compressor()),
            volume="bench",
            origin="here",
            position=positions.Position(1, len(wires) + 1),
            parent=tip.position,
            parent_hash=tip.hash,
            first=stamp,
            last=stamp,
        )
        wires.append(frame.wire)
        tip = frames.Tip(frame.position, frame.hash)
    return segments.Segment("bench", "here", 1, tuple(wires))


def measure(geometry: stripes.Geometry, made: Sequence[segments.Segment], rounds: int) -> dict[str, Any]:
    data = [segments.encode(segment) for segment in made]
    size = sum(map(len, data))
    driver = ECDriver(k=geometry.data, m=geometry.parity, ec_type=liberasurecode.EC_TYPE)
    coded = [assembly.code_bytes(segment, one, geometry) for segment, one in zip(made, data, strict=True)]
    # The last k shards: as much parity as there is, the worst case of a decode.
    indexes = range(geometry.shards - geometry.data, geometry.shards)
    kept = [[one.shard(index, 1)[1] for index in indexes] for one in coded]
    bare_kept = [driver.encode(one)[-geometry.data :] for one in data]

    def encode_ours(pool: ThreadPoolExecutor) -> None:
        def one(place: int) -> int:
            made_now = assembly.code_bytes(made[place], data[place], geometry)
            return sum(len(made_now.shard(index, 1)[1]) for index in range(geometry.shards))

        list(pool.map(one, range(len(data))))

    def decode_ours(pool: ThreadPoolExecutor) -> None:
        def one(place: int) -> int:
            shards = [assembly.open_header(shard, "") for shard in kept[place]]
            return len(assembly.assemble(shards[0].header.key.stripe, shards).data)

        list(pool.map(one, range(len(data))))

    def encode_bare(_pool: ThreadPoolExecutor) -> None:
        for one in data:
            driver.encode(one)

    def decode_bare(_pool: ThreadPoolExecutor) -> None:
        for one in bare_kept:
            driver.decode(one)

    with ThreadPoolExecutor(_IN_FLIGHT) as pool:
        encode = _alternate(encode_ours, encode_bare, pool, rounds)
        decode = _alternate(decode_ours, decode_bare, pool, rounds)
    stored = sum(len(one.shard(index, 1)[1]) for one in coded for index in range(geometry.shards))
    content = sum(len(wire) for segment in made for wire in segment.wires)
    return {
        "geometry": str(geometry),
        "bytes": size,
        "encode": _rates(encode, size),
        "decode": _rates(decode, size),
        "overhead": stored / (content * geometry.overhead) - 1,
    }


def _alternate(
    ours: Callable[[ThreadPoolExecutor], None],
    bare: Callable[[ThreadPoolExecutor], None],
    pool: ThreadPoolExecutor,
    rounds: int,
) -> dict[str, tuple[float, float]]:
    """For each the least wall and processor seconds of its rounds."""
    taken: dict[str, list[tuple[float, float]]] = {"ours": [], "bare": []}
    for _ in range(rounds):
        for name, work in (("bare", bare), ("ours", ours)):
            wall, processor = time.perf_counter(), _processor_s()
            work(pool)
            taken[name].append((time.perf_counter() - wall, _processor_s() - processor))
    return {name: (min(w for w, _ in times), min(p for _, p in times)) for name, times in taken.items()}


def _processor_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _rates(taken: dict[str, tuple[float, float]], size: int) -> dict[str, float]:
    (wall, processor), (bare_wall, bare_processor) = taken["ours"], taken["bare"]
    return {
        "bytes_per_s": size / wall,
        "bare_bytes_per_s": size / bare_wall,
        "ratio": bare_wall / wall,
        "processor_s": processor,
        "bare_processor_s": bare_processor,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="diffkeeper-repair-bench", description=__doc__)
    parser.add_argument("--geometry", action="append", metavar="K+M")
    parser.add_argument("--segments", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    heap.hold()
    made = [a_segment(seed) for seed in range(options.segments)]
    found = [measure(stripes.parse(text), made, options.rounds) for text in options.geometry or GEOMETRIES]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
