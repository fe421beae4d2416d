"""A history process killed at random moments while it follows, folds and prunes: afterwards every moment that
is still kept is the replay of the log, and the next run goes on.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.support import histories
from tests.support.history_rigs import VOLUME, Rig, make_small

from diffkeeper.domain import clocks
from diffkeeper_replicator import pruning, volume_history

ROUNDS = 5


@pytest.mark.disaster
def test_history_killed_while_it_folds_serves_nothing_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    rng = random.Random(seed)
    monkeypatch.setattr(volume_history, "REPLAY_MAX_COST", volume_history.REPLAY_MAX_COST)
    monkeypatch.setattr(pruning, "ARCHIVE_BYTES", pruning.ARCHIVE_BYTES)
    make_small()
    log = histories.made_frames(seed, 900)
    now_us = clocks.to_micros(log[-1].header.last)
    rig = Rig(tmp_path)
    try:
        part = len(log) // ROUNDS
        for nth in range(ROUNDS):
            rig.append(log[nth * part : (nth + 1) * part])
            rig.histories.close()
            _run_and_kill(tmp_path, now_us, rng)
            rig.histories = rig._opened()
            rig.history.grow()
            kept = [sequence for sequence, _, _ in rig.history.index.kept(0, 1 << 60)]
            assert kept[-1] == (nth + 1) * part
            some = {kept[0], kept[-1], *rng.sample(kept, min(4, len(kept)))}
            for sequence, expected in histories.replays_at(log, some):
                state = rig.history.state_at(log[sequence - 1].position)
                assert histories.snapshot(state) == expected, (seed, sequence)
            done = pruning.Pruner(rig.history).prune(now_us)
            rig.journal.drop_upto(done["archived"])
    finally:
        rig.close()
    assert (tmp_path / VOLUME / "history").is_dir()


def _run_and_kill(folder: Path, now_us: int, rng: random.Random) -> None:
    """Killed after its first sign of life and a moment of any length."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.history_rigs", str(folder), str(now_us)],
        stdout=subprocess.PIPE,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(entry for entry in [os.getcwd(), *sys.path] if entry),
        },
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"growing\n"
        time.sleep(rng.random() * 0.6)  # the moment of the kill, not a wait for anything
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
