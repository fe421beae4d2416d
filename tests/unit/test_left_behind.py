"""What a fenced reign left in its agent's spool comes out whole, and as a replicator reads it."""

from __future__ import annotations

from pathlib import Path

from tests.support.made_logs import FrameChain

from diffkeeper.domain import frames, positions, trees
from diffkeeper.domain.deltas import write
from diffkeeper.tree_store import TreeStore
from diffkeeper_capture import left_behind
from diffkeeper_capture.spool import DEFAULT_MAX_BYTES, Spool
from diffkeeper_capture.volume_order import VolumeFiles
from diffkeeper_replicator import orphan_branches


async def _spooled(files: VolumeFiles, *run: frames.Frame) -> None:
    spool = Spool.open(files.spool)
    for frame in run:
        spool.append(frame)
    await spool.sync()
    spool.close()


async def test_frames_of_the_reign_beyond_the_parent_are_copied_out_and_stay_in_the_spool(
    tmp_path: Path,
) -> None:
    files = VolumeFiles(tmp_path)
    chain = FrameChain()
    old = [chain.frame([write(2, 0, b"old")]) for _ in range(2)]
    chain.epoch = 3
    ours = [chain.frame([write(2, 0, b"ours %d" % number)]) for number in range(3)]
    await _spooled(files, *old, *ours)
    kept = trees.TreeState("v", old[0].position, old[0].hash, 0, trees.Tree(), {})
    TreeStore.create(files.tree_store, kept).close()
    for _ in range(2):
        given = left_behind.export(files, 3, ours[0].position, DEFAULT_MAX_BYTES)
        assert given["frames"] == 2
        state = trees.decode(Path(given["tree_state"]).read_bytes())
        assert (state.position, state.frame_hash) == (old[0].position, old[0].hash)
        read = list(orphan_branches.read_frames(Path(given["tail"])))
        assert [frame.hash for frame in read] == [frame.hash for frame in ours[1:]]


def test_an_agent_that_never_captured_the_volume_left_nothing(tmp_path: Path) -> None:
    given = left_behind.export(VolumeFiles(tmp_path / "none"), 1, positions.START, DEFAULT_MAX_BYTES)
    assert given == {"tail": None, "frames": 0, "tree_state": None}
