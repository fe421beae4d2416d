"""How a reign ends in order: the program is stopped, everything is drained and safe, the tree is kept for
the next.

Up to the last frame everything can be broken off and capture goes on. The handover frame is the point of no
return: after it this site writes nothing more under its epoch, and a caller who asks again gets the same
answer.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from diffkeeper.domain import errors, frames
from diffkeeper.domain.receipts import Level
from diffkeeper_capture import ending_tree
from diffkeeper_capture import program as programs
from diffkeeper_capture.gate_socket import GateSocket
from diffkeeper_capture.volume_capture import VolumeCapture

# Processes that a stopped program left behind under the gate get this long to end by themselves.
LEFTOVER_S = 2.0
# Files changed this lately may change again within one tick of the file system's clock, and are not
# remembered.
SETTLE_S = 0.05

Answer = dict[str, Any]


async def hand_over(
    capture: VolumeCapture, gate_socket: GateSocket, successor: str, grace_s: float, timeout_s: float
) -> Answer:
    """Stop the program, end the epoch by a frame that names ``successor``, and wait until another site has
    it.

    Raises TimedOut: before the last frame the volume stays ours (its program stopped), after it the same
    call may be made again.
    """
    began = time.monotonic()
    took: dict[str, int] = {}

    def mark(step: str, since: float) -> float:
        now = time.monotonic()
        took[step] = round((now - since) * 1000)
        return now

    await stop_program(capture, gate_socket, grace_s)
    at = mark("stop", began)
    if not capture.is_ended:
        await capture.sync(Level.REMOTE, timeout_s)
        at = mark("drain", at)
        capture.end_epoch(frames.Flag.HANDOVER, successor)
    try:
        async with asyncio.timeout(timeout_s):
            # The tree changes no more, so it is kept while the other site confirms.
            answer, _ = await asyncio.gather(
                asyncio.to_thread(_keep_tree, capture),
                capture.durability.reach(capture.framer.tip, Level.REMOTE),
            )
    except TimeoutError as error:
        raise errors.TimedOut(
            f"the epoch ended at {capture.framer.tip.position} and no other site has confirmed that yet",
            reason="handover-unconfirmed",
            hint="ask again: the handover goes on",
        ) from error
    mark("confirm", at)
    return {**answer, "took_ms": {**took, "all": round((time.monotonic() - began) * 1000)}}


async def release(capture: VolumeCapture, timeout_s: float = 20.0) -> Answer:
    """End capture with everything in the site's stream; raises Refused while a program runs."""
    program = capture.program
    if program is not None and program.running:
        raise errors.Refused(
            f"process {program.pid} still runs on volume {capture.order.volume}",
            reason="program-running",
            hint="stop it first, or hand the volume over: dkctl failover",
            pid=program.pid,
        )
    if not capture.is_ended:
        await capture.sync(Level.SITE, timeout_s)
        await asyncio.sleep(SETTLE_S)
        await capture.sync(Level.SITE, timeout_s)
        capture.end_epoch(frames.Flag(0), "")
    async with asyncio.timeout(timeout_s):
        await capture.durability.reach(capture.framer.tip, Level.SITE)
    return _keep_tree(capture)


async def stop_program(capture: VolumeCapture, gate_socket: GateSocket, grace_s: float) -> None:
    """End the volume's program and what is left of it under the gate; raises TimedOut otherwise."""
    program = capture.program
    if program is None:
        return
    if program.running:
        await programs.stop(program, grace_s)
    deadline = time.monotonic() + LEFTOVER_S
    # Its wrapper says how it ended; then nothing may be left under the gate.
    while (  # noqa: ASYNC110
        program.running or gate_socket.has_processes(program)
    ) and time.monotonic() < deadline:
        await asyncio.sleep(programs.POLL_S)
    if gate_socket.has_processes(program):
        programs.kill_session(program.wrapper)
        deadline = time.monotonic() + LEFTOVER_S
        while gate_socket.has_processes(program):
            if time.monotonic() > deadline:
                raise errors.TimedOut(
                    f"processes started by {program.pid} live on under the gate; nothing was handed over",
                    reason="program-left-processes",
                    hint="stop them, then try again",
                    pid=program.pid,
                )
            await asyncio.sleep(programs.POLL_S)


def _keep_tree(capture: VolumeCapture) -> Answer:
    path = capture.files.ended_tree_state(capture.order.epoch)
    tip = capture.framer.tip
    ending_tree.keep(capture, path)
    return {"position": str(tip.position), "hash": tip.hash.hex(), "tree_state": str(path)}
