"""Writes that are durable by flag: they return when they have their receipt, as an fsync would."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.brokers import Brokers
from tests.support.capture_rig import CaptureRig, digest

from diffkeeper_capture.bpf_probe import BpfProbe

pytestmark = pytest.mark.disaster

WHY_NOT = BpfProbe.why_not()

WRITER = """
import os, sys, threading
how, root = sys.argv[1:3]
flags = {"O_DSYNC": os.O_DSYNC, "O_SYNC": os.O_SYNC, "RWF_DSYNC": 0}[how]
def write(name):
    f = os.open(f"{root}/{name}", os.O_WRONLY | os.O_CREAT | flags)
    for n in range(5):
        if how == "RWF_DSYNC":
            os.pwritev(f, [b"x" * 100], n * 100, os.RWF_DSYNC)
        else:
            os.write(f, b"x" * 100)
        os.write(1, f"{name} {n}\\n".encode())
threads = [threading.Thread(target=write, args=(f"f{number}",)) for number in range(int(sys.argv[3]))]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


@pytest.fixture
async def rig(tmp_path: Path, brokers: Brokers) -> AsyncIterator[CaptureRig]:
    if WHY_NOT is not None:
        pytest.skip(WHY_NOT)
    made = CaptureRig(tmp_path, brokers)
    await made.open()
    try:
        yield made
    finally:
        await made.close()
        print(made.agent_log() if (tmp_path / "agent.log").exists() else "")


async def held(rig: CaptureRig) -> bool:
    return any(call["call"] == "synchronous write" for call in (await rig.status())["barriers"]["waiting"])


@pytest.mark.parametrize(("how", "threads"), [("O_DSYNC", 1), ("O_SYNC", 3), ("RWF_DSYNC", 1)])
async def test_it_returns_only_with_its_receipt(rig: CaptureRig, how: str, threads: int) -> None:
    await rig.start_agent()
    await rig.attach(durability="remote")
    await rig.until_capturing()
    program = rig.run("python3", "-c", WRITER, how, str(rig.volume), str(threads))
    await rig.until("the write waits", lambda: held(rig))
    await asyncio.sleep(0.3)
    assert program.poll() is None and program.stdout is not None
    assert not select.select([program.stdout], [], [], 0)[0], "it says so after each write"
    west = asyncio.create_task(rig.confirm())
    out, err = await asyncio.to_thread(program.communicate, None, 60)
    assert (program.returncode, len(out.splitlines()), err) == (0, 5 * threads, "")
    assert await rig.replayed() == digest(rig.volume)
    west.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await west


async def test_it_goes_on_waiting_through_the_death_of_the_agent(rig: CaptureRig) -> None:
    await rig.start_agent()
    await rig.attach(durability="remote")
    await rig.until_capturing()
    program = rig.run("python3", "-c", WRITER, "O_DSYNC", str(rig.volume), "1")
    await rig.until("the write waits", lambda: held(rig))
    await rig.kill_agent()
    await rig.start_agent()
    await rig.attach(durability="remote")
    await rig.until("it waits again", lambda: held(rig))
    assert program.poll() is None
    west = asyncio.create_task(rig.confirm())
    out, _ = await asyncio.to_thread(program.communicate, None, 60)
    assert (program.returncode, len(out.splitlines())) == (0, 5)
    west.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await west


async def test_who_is_behind_no_gate_is_not_stopped(rig: CaptureRig) -> None:
    await rig.start_agent()
    await rig.attach(durability="remote")
    await rig.until_capturing()
    file = os.open(rig.volume / "own", os.O_WRONLY | os.O_CREAT | os.O_DSYNC)
    assert os.write(file, b"not held") == 8
    os.close(file)
