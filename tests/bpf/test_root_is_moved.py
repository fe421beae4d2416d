"""The volume's own directory moved, removed, replaced or hidden: a fault, never a delete of what it held."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.bpf.following import Following
from tests.bpf.recording import Watched

from diffkeeper.domain import errors
from diffkeeper.domain.deltas import Op

pytestmark = pytest.mark.bpf

LIBC = ctypes.CDLL(None, use_errno=True)


def moved(root: Path) -> None:
    root.rename(root.parent / "away")


def replaced(root: Path) -> None:
    root.rename(root.parent / "away")
    root.mkdir()


def exchanged(root: Path) -> None:
    other = root.parent / "other"
    other.mkdir()
    assert LIBC.renameat2(-100, os.fsencode(root), -100, os.fsencode(other), 2) == 0


def hidden(root: Path) -> None:
    (root.parent / "above").mkdir()
    if LIBC.mount(os.fsencode(root.parent / "above"), os.fsencode(root), None, 0x1000, None):
        pytest.skip("nothing can be mounted here")


def look(following: Following) -> None:
    """As the agent does: it drains, and looks at the root once a second."""
    following.barrier()
    following.observer.reader.check_root()


@pytest.mark.parametrize("fault", [moved, replaced, exchanged, hidden])
def test_a_root_that_is_not_there_is_a_fault_and_deletes_nothing(
    volume: Watched, tmp_path: Path, fault: Callable[[Path], None]
) -> None:
    (volume.root / "d").mkdir()
    (volume.root / "d" / "a").write_bytes(b"kept")
    following = Following(volume, tmp_path)
    try:
        fault(volume.root)
        with pytest.raises(errors.Misconfigured) as refusal:
            look(following)
        assert refusal.value.reason == "root-missing"
        removals = [delta for delta in following.sink.deltas if delta.op in (Op.UNLINK, Op.RMDIR, Op.RENAME)]
        assert removals == []
    finally:
        following.close()
        LIBC.umount2(os.fsencode(volume.root), 2)


def test_a_root_that_is_back_before_anybody_looked_goes_on(volume: Watched, tmp_path: Path) -> None:
    (volume.root / "a").write_bytes(b"kept")
    following = Following(volume, tmp_path)
    try:
        volume.root.rename(tmp_path / "away")
        (tmp_path / "away" / "b").write_bytes(b"written meanwhile")
        (tmp_path / "away").rename(volume.root)
        following.check()
    finally:
        following.close()
