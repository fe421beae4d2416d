"""The disk of the spool fails an fsync: nothing is promised from there on, and capture begins anew from the log."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support import failing_disks
from tests.support.brokers import Brokers
from tests.support.capture_rig import CaptureRig, digest

from diffkeeper import pins
from diffkeeper_capture.bpf_probe import BpfProbe

pytestmark = pytest.mark.disaster

WHY_NOT = BpfProbe.why_not()
WRITER = """
import os, sys
f = os.open(sys.argv[1] + "/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
for n in range(int(sys.argv[2])):
    os.write(f, f"record {n} ".encode() + os.urandom(50_000).hex().encode() + b"\\n")
    os.fsync(f)
    print(n, flush=True)
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


async def test_no_receipt_after_an_fsync_that_failed_until_capture_began_anew(rig: CaptureRig) -> None:
    with failing_disks.mounted(rig.base, rig.gate.parent) as disk:
        await rig.start_agent()
        await rig.attach()
        await rig.until_capturing()
        program = rig.run("python3", "-c", WRITER, str(rig.volume), "60")
        assert program.stdout is not None
        for _ in range(10):
            await asyncio.to_thread(program.stdout.readline)
        disk.fail()

        async def failed() -> bool:
            return "spool-poisoned" in rig.agent_log()

        await rig.until("an fsync of the spool fails", failed)
        acknowledged = 10
        await asyncio.sleep(0.5)
        if select.select([program.stdout], [], [], 0)[0]:
            acknowledged += os.read(program.stdout.fileno(), 65_536).count(b"\n")
        stream = b"".join(
            delta.data for frame in await rig.stream() for delta in frame.columns() if delta.op == 2
        )
        assert all(f"record {number} ".encode() in stream for number in range(acknowledged))
        disk.work()
        _out, said = await asyncio.to_thread(program.communicate, None, 90)
        assert program.returncode == 0, said
        await rig.call("POST", "/v1/volumes/v/sync", {"level": "site"})
        assert await rig.replayed() == digest(rig.volume)
        assert "captured again after its disk had failed" in rig.agent_log()
        await rig.kill_agent()
        pins.remove(rig.gate.parent)
