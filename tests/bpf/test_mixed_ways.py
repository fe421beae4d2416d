"""All ways of writing at once, from a seed, by several programs: round for round the replica is the source.

``DK_SEED=N`` repeats a run (as far as processes race alike), ``DK_ROUNDS=N`` makes it longer; ``make soak`` goes on
for hours.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from tests.bpf.mixing import Mixing
from tests.bpf.recording import Watched

pytestmark = pytest.mark.bpf

ROUNDS = int(os.environ.get("DK_ROUNDS", "70"))


@pytest.mark.parametrize("mixers", [1, 2, 3])
def test_the_replica_is_the_source_after_each_round(volume: Watched, tmp_path: Path, mixers: int) -> None:
    first = int(os.environ.get("DK_SEED", random.randrange(1 << 30)))
    # Names that io_uring changes are found by comparing. Beside other programs that name the same files at the same
    # instant that is not yet right every time; `make soak` has it (RING_NAMES=1).
    mixing = Mixing(volume, tmp_path, mixers, names_by_ring=mixers == 1)
    try:
        for seed in range(first, first + ROUNDS):
            print(f"seed {seed}")
            mixing.round(seed)
    finally:
        mixing.close()
