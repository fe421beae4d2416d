"""FAULTS 15, 16, 18: three sites with leases on a network of their own; cables are cut whole, one way and again and
again, a site is paused, another killed, and two operators want two leaders. One writer at a time, and
nothing acknowledged is lost.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from tests.chaos import site_rounds
from tests.support.fault_injector import Fault

pytestmark = [pytest.mark.disaster, pytest.mark.bpf, pytest.mark.timeout(600)]

# Each begins where the one before has left the volume; the order is drawn.
WAYS = {
    "part-from-all": "leader",
    "mute": "leader",
    "deaf": "leader",
    "flapping": "leader",
    "pause-site": "leader",
    "kill-site": "follower",
    "two-failovers": "leader",
}


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
async def test_whatever_cables_are_cut_there_is_one_writer_and_nothing_acknowledged_is_lost(
    tmp_path: Path,
) -> None:
    seed = int(os.environ.get("DK_SEED") or random.randrange(1 << 32))
    print(f"DK_SEED={seed}")
    chance = random.Random(seed)
    faults = [
        # Some shorter than the lease, so that nobody is succeeded, and some longer.
        Fault(name, whom, chance.uniform(1.0, 8.0), chance.randrange(1 << 32))
        for name, whom in chance.sample(sorted(WAYS.items()), len(WAYS))
    ]
    async with site_rounds.running(tmp_path) as rounds:
        for fault in faults:
            await rounds.round(fault)
        wrong = await rounds.judge()
        print(await rounds.table())
    assert not wrong, "\n".join(wrong)
