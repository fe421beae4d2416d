"""A process that is nothing but the agent's end of the gate: killed and started again by the disaster tests.

Usage: ``gate_agent.py SOCKET WORD_FILE ROOT``. A barrier is reached once WORD_FILE exists: a test decides.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from diffkeeper.domain import errors, frames
from diffkeeper.domain.receipts import Level, Receipt
from diffkeeper_capture.gate import Call, Gate
from diffkeeper_capture.gate_socket import Admitted, GateSocket, Program
from diffkeeper_capture.sync_calls import Root


class BarriersOnAWord:
    def __init__(self, word: Path) -> None:
        self._word = word

    async def cut_barrier(self, calls: Sequence[Call]) -> frames.Tip:
        return frames.ORIGIN_TIP

    async def reach(self, tip: frames.Tip, level: Level) -> Receipt:
        while not self._word.exists():  # noqa: ASYNC110
            await asyncio.sleep(0.005)  # a file of another process: there is no event to wait for
        return Receipt("v", tip.position, tip.hash, level, (), 0)


async def main(path: str, word: str, root: str) -> None:
    gate = Gate("v", BarriersOnAWord(Path(word)), level=Level.SITE)

    def admit(program: Program) -> Admitted:
        if program.volume != "v":
            raise errors.NotFound(f"there is no volume {program.volume!r}", hint="dkctl status lists them")
        return Admitted(gate, Root.of(root, program.seen_at))

    gate_socket = GateSocket(Path(path), admit)
    gate_socket.open()
    print("ready", flush=True)
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(gate.run())
        while True:
            await asyncio.sleep(0.02)
            line = f"{gate.total} {gate.batches} {len(gate.waiting())}"
            Path(path + ".seen").write_text(line)
            assert not serving.done()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
