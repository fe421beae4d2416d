"""The history process of a replicator: a child that indexes, cuts checkpoints and answers for the past, so
that following is never disturbed by it.

Its parent writes one line of settings to its standard input and keeps that open; when it ends, so does this.
It answers HTTP on a loopback port that it prints first.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from diffkeeper import http
from diffkeeper_replicator import history_api
from diffkeeper_replicator.histories import Histories
from diffkeeper_replicator.peers import Peers

NICE = 10
THREADS = 4


class HistorySettings(msgspec.Struct, frozen=True, kw_only=True):
    site: str
    dir: str
    volumes_dir: str
    token: str
    peers: tuple[str, ...] = ()


def main() -> None:
    wanted = msgspec.json.decode(sys.stdin.buffer.readline(), type=HistorySettings)
    asyncio.run(serve(wanted))


async def serve(wanted: HistorySettings) -> None:
    histories = Histories(
        Path(wanted.dir), Path(wanted.volumes_dir), wanted.site, Peers(wanted.peers, wanted.token)
    )
    pool = ThreadPoolExecutor(THREADS, "history")
    # Niceness is a thread's own: what nobody waits for gives way, who asks does not wait behind the load of the machine.
    unhurried = ThreadPoolExecutor(1, "unhurried", initializer=os.nice, initargs=(NICE,))
    try:
        app = http.make_app(wanted.token)
        history_api.HistoryApi(histories, pool, unhurried, lambda: time.time_ns() // 1000).add_routes(app)
        async with http.serve(app, "127.0.0.1", 0) as port:
            print(port, flush=True)  # noqa: T201  the parent waits for it
            await _until_end_of_input()
    finally:
        for threads in (pool, unhurried):
            threads.shutdown(wait=True, cancel_futures=True)
        histories.close()


async def _until_end_of_input() -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def look() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            ended.set()

    loop.add_reader(0, look)
    await ended.wait()


if __name__ == "__main__":
    main()
