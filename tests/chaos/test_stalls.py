"""A silent stall is told within ten seconds or so: a blind probe, and a mirror that stands still."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.brokers import Brokers
from tests.support.capture_rig import CaptureRig

from diffkeeper import pins
from diffkeeper_capture import libbpf
from diffkeeper_capture.bpf_loader import BpfMap
from diffkeeper_capture.bpf_probe import BpfProbe

pytestmark = pytest.mark.disaster

WHY_NOT = BpfProbe.why_not()
ROOT_KEY_BYTES = 16


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


def blind(rig: CaptureRig) -> None:
    """Take the volume's root out of the probe's map: from now on it sees nothing of it, and says so to nobody."""
    lib = libbpf.load()
    fd = lib.call.bpf_obj_get(os.fsencode(pins.prepare(rig.gate.parent) / "map-roots"))
    assert fd >= 0
    roots = BpfMap(lib, fd, "roots")
    for key in roots.keys(ROOT_KEY_BYTES):
        roots.remove(key)
    os.close(fd)


async def test_a_blind_probe_and_a_still_mirror_are_alarms(rig: CaptureRig) -> None:
    await rig.start_agent()
    await rig.attach(replicas=["west"])
    await rig.until_capturing()
    (rig.volume / "file").write_text("seen")
    await rig.call("POST", "/v1/volumes/v/sync", {"level": "site"})
    status = await rig.status()
    assert status["lag"]["frames"] > 0, "a site that was never heard has nothing"
    assert status["replicas"]["west"]["position"] == "0.0" and status["alarms"] == []
    blind(rig)
    await asyncio.sleep(0.2)  # later than what was captured, by the clock of files
    # By another process: the probe remembers of each where its last files were.
    subprocess.run(["sh", "-c", f"echo not seen > {rig.volume}/file"], check=True)  # noqa: ASYNC221

    async def told() -> bool:
        reasons = {alarm["reason"] for alarm in (await rig.status())["alarms"]}
        return reasons == {"source-unseen", "mirror-still"}

    await rig.until("both are told", told, within_s=60)
