"""``python -m diffkeeper_repair.bench_foreground``: a writer that appends frames at a steady pace. Latencies as JSON on stdout.

The secret of the broker comes on stdin. Each append begins at its own time, whatever became of the one before, so that a
stall is felt by all that fall into it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time

from diffkeeper.domain import clocks, deltas, frames, positions, volumes
from diffkeeper.log import nats_event_log

RATE = 100
FRAME_BYTES = 16 * 1024
ORIGIN = volumes.Origin("foreground", "site")


def made_frames(count: int, tip: frames.Tip) -> list[frames.Frame]:
    rng, stamp, made = random.Random(1), clocks.from_micros(1), []
    for _ in range(count):
        columns = deltas.Columns()
        columns.add(deltas.write(2, 0, rng.randbytes(FRAME_BYTES)))
        frame = frames.seal(
            frames.pack(columns, frames.Compressor()),
            volume=ORIGIN.volume,
            origin=ORIGIN.site,
            position=positions.Position(1, tip.position.sequence + 1),
            parent=tip.position,
            parent_hash=tip.hash,
            first=stamp,
            last=stamp,
        )
        made.append(frame)
        tip = frames.Tip(frame.position, frame.hash)
    return made


async def run(url: str, secret: str, seconds: float) -> list[float]:
    log = await nats_event_log.NatsEventLog.connect(ORIGIN.site, [url], password=secret)
    try:
        await log.create_origin(ORIGIN)
        last = await log.last(ORIGIN)
        tip, at = frames.ORIGIN_TIP, 0
        if last is not None:
            frame = frames.open_frame(last.wire)
            tip, at = frames.Tip(frame.position, frame.hash), last.stream_sequence
        taken: list[float] = []
        began = time.perf_counter()

        async def append(number: int, frame: frames.Frame, due: float) -> None:
            await log.append(ORIGIN, frame, at + number)
            taken.append((time.perf_counter() - due) * 1000)

        async with asyncio.TaskGroup() as group:
            for number, frame in enumerate(made_frames(int(seconds * RATE), tip)):
                due = began + number / RATE
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                group.create_task(append(number, frame, due))
        return taken
    finally:
        await log.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="diffkeeper-foreground-bench", description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()
    json.dump(asyncio.run(run(options.url, sys.stdin.read().strip(), options.seconds)), sys.stdout)


if __name__ == "__main__":
    main()
