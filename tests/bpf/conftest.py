"""One probe for all tests of this folder: loading takes a quarter of a second."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.bpf.recording import Watched

from diffkeeper_capture import bpf_loader, bpf_probe

RING_BYTES = 32 * 1024 * 1024
_slots = itertools.count(1)


def skip_without_rights() -> None:
    """Missing rights are a reason to skip; a missing object, library or kernel function is a failure."""
    if not bpf_loader.has_rights(Path("/proc/self/status").read_text()):
        pytest.skip("these tests load BPF programs: run as root, or with CAP_BPF and CAP_PERFMON")
    assert bpf_probe.BpfProbe.why_not() is None


@pytest.fixture(scope="session")
def probe() -> Iterator[bpf_probe.BpfProbe]:
    skip_without_rights()
    loaded = bpf_probe.BpfProbe(RING_BYTES)
    yield loaded
    loaded.close()


@pytest.fixture
def volume(probe: bpf_probe.BpfProbe, tmp_path: Path) -> Iterator[Watched]:
    root = tmp_path / "volume"
    root.mkdir()
    slot = next(_slots)
    fd = os.open(root, os.O_RDONLY)
    probe.drain(lambda record, payload: None)
    probe.watch(slot, fd)
    os.close(fd)
    try:
        yield Watched(probe, root, slot)
    finally:
        probe.unwatch(slot)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory beside the volume, on the same file system."""
    folder = tmp_path / "outside"
    folder.mkdir()
    return folder
