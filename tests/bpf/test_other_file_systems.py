"""The volume on other file systems than the machine's own: overlays, memory, and overlays above the volume."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.bpf.following import Following
from tests.bpf.recording import Watched

from diffkeeper_capture.bpf_probe import BpfProbe

pytestmark = pytest.mark.bpf

LIBC = ctypes.CDLL(None, use_errno=True)
_slots = itertools.count(10_001)
DETACH = 2
WAYS = ["moves", "links", "mapped", "mapped_late", "copies", "allocations", "nameless", "appends_at_once"]


def mount(kind: str, at: Path, options: str) -> None:
    at.mkdir()
    if LIBC.mount(kind.encode(), str(at).encode(), kind.encode(), 0, options.encode()):
        pytest.skip(f"{kind} cannot be mounted here: {os.strerror(ctypes.get_errno())}")


def unmount(at: Path) -> None:
    assert LIBC.umount2(str(at).encode(), DETACH) == 0


@pytest.fixture
def overlay(tmp_path: Path) -> Iterator[Path]:
    """An overlay of two directories, with something in the lower one."""
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower" / "below").write_bytes(b"from below" * 1000)
    options = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    mount("overlay", tmp_path / "overlay", options)
    yield tmp_path / "overlay"
    unmount(tmp_path / "overlay")


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    mount("tmpfs", tmp_path / "memory", "size=256m")
    yield tmp_path / "memory"
    unmount(tmp_path / "memory")


def followed(probe: BpfProbe, root: Path, tmp_path: Path) -> Iterator[Following]:
    slot = next(_slots)
    fd = os.open(root, os.O_RDONLY)
    probe.drain(lambda record, payload: None)
    probe.watch(slot, fd)
    os.close(fd)
    following = Following(Watched(probe, root, slot), tmp_path)
    try:
        yield following
    finally:
        following.close()
        probe.unwatch(slot)


@pytest.mark.parametrize("way", WAYS)
def test_a_volume_in_memory_is_followed(probe: BpfProbe, memory: Path, tmp_path: Path, way: str) -> None:
    root = memory / "volume"
    root.mkdir()
    for following in followed(probe, root, tmp_path):
        following.run("ways.py", way)
        following.check()


@pytest.mark.parametrize("way", WAYS)
def test_a_volume_on_an_overlay_is_followed(probe: BpfProbe, overlay: Path, tmp_path: Path, way: str) -> None:
    root = overlay / "volume"
    root.mkdir()
    for following in followed(probe, root, tmp_path):
        following.run("ways.py", way)
        following.check()


def test_what_an_overlay_copies_up_is_followed(probe: BpfProbe, overlay: Path, tmp_path: Path) -> None:
    for following in followed(probe, overlay, tmp_path):
        with open(overlay / "below", "r+b") as file:
            file.seek(30)
            file.write(b"changed")
        following.check()
        os.rename(overlay / "below", overlay / "above")
        following.check()


def test_writes_through_an_overlay_above_the_volume_are_followed(volume: Watched, tmp_path: Path) -> None:
    """A container whose upper directory is in the volume: the kernel writes there, no call of anybody."""
    root = volume.root
    for name in ("lower", "upper", "work"):
        (root / name).mkdir()
    following = Following(volume, tmp_path)
    options = f"lowerdir={root}/lower,upperdir={root}/upper,workdir={root}/work"
    mount("overlay", tmp_path / "view", options)
    try:
        file = tmp_path / "view" / "a"
        file.write_bytes(b"by the kernel" * 1000)
        following.check()
        with open(file, "r+b") as opened:
            opened.seek(5000)
            opened.write(b"again")
            with mmap.mmap(opened.fileno(), 0) as area:
                area[9000:9004] = b"this"
        following.check()
        assert (root / "upper" / "a").read_bytes()[5000:5005] == b"again"
    finally:
        following.close()
        unmount(tmp_path / "view")
