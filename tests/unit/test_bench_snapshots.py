"""The programs beside which the history is measured keep and give back what they were given."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from dkctl.bench import snapshots

CONTENTS = {"1.1": 1, "1.2": 2, "1.3": 3}
BYTES = 200_000


def lay(at: str, into: Path) -> None:
    (into / "below").mkdir(parents=True)
    (into / "same").write_bytes(random.Random(0).randbytes(BYTES))
    (into / "below" / "other").write_bytes(random.Random(CONTENTS[at]).randbytes(BYTES))


@pytest.mark.parametrize("name", snapshots.TOOLS)
def test_only_what_differs_between_the_moments_is_counted(name: str, tmp_path: Path) -> None:
    if name in snapshots.missing():
        pytest.skip(f"{name} is not installed")
    kept = snapshots.measure(name, tmp_path / "work", list(CONTENTS), lay)
    assert 2 * BYTES <= kept.grown < 3 * BYTES
    assert kept.restore_s > 0
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("name", snapshots.TOOLS)
def test_the_newest_snapshot_is_what_comes_back(name: str, tmp_path: Path) -> None:
    if name in snapshots.missing():
        pytest.skip(f"{name} is not installed")
    repository, tree, back = tmp_path / "repository", tmp_path / "tree", tmp_path / "back"
    repository.mkdir()
    tool = snapshots.tool(name, repository)
    tool.begin()
    lay("1.3", tree)
    tool.keep(tree, "0-1.3")
    back.mkdir()
    tool.bring_back(back)
    assert (back / "below" / "other").read_bytes() == (tree / "below" / "other").read_bytes()
