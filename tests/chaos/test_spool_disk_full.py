"""A file system with no room left: the spool takes nothing half, says so, and goes on when there is room."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import framing

from diffkeeper.domain import errors, frames, positions
from diffkeeper_capture import spool as spools

pytestmark = pytest.mark.disaster


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    where = tmp_path / "disk"
    where.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(where)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.decode().strip()}")
    yield where
    subprocess.run(["umount", str(where)], check=True)


def takes(spool: spools.Spool, frame: frames.Frame) -> bool:
    try:
        spool.append(frame)
    except errors.Transient as error:
        if error.reason != "spool-disk-full":
            raise
        return False
    return True


def test_a_full_disk_refuses_frames_whole_and_takes_them_when_there_is_room(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(600 * 1024))
    spool = spools.Spool.open(small_disk / "spool")
    sent = list(framing.chain(8, size=100_000))
    taken = 0
    while taken < len(sent) and takes(spool, sent[taken]):
        taken += 1
    assert 0 < taken < len(sent)
    assert not takes(spool, sent[taken])
    assert asyncio.run(spool.sync()) == sent[taken - 1].position
    os.unlink(ballast)
    for frame in sent[taken:]:
        spool.append(frame)
    spool.close()
    again = spools.Spool.open(small_disk / "spool")
    assert list(again.frames_after(positions.START)) == sent
    again.close()
