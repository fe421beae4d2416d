"""What a lazily filled tree is to become: its files with their content's runs, written once before anything of it can
be seen, and how it is going.

``plan`` is BLAKE3 and msgpack. A file is cut into units of ``UNIT`` bytes; all units of all files are numbered
through, so that what is filled is one run of bits (``marks``).
"""

from __future__ import annotations

import itertools
import struct
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
from blake3 import blake3

from diffkeeper import atomic_files
from diffkeeper.domain import errors

UNIT = 64 * 1024
RUN = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True)
class File:
    """``runs`` are (start, end) where it has content, in order; the rest are holes."""

    path: bytes
    # What the source knows it by.
    key: int
    size: int
    inode: int
    handle: bytes
    runs: tuple[tuple[int, int], ...]
    mtime_ns: int

    @property
    def units(self) -> int:
        return -(-self.size // UNIT)


@dataclass(frozen=True, slots=True)
class Plan:
    volume: str
    position: str
    # In which the tree was made: in another one, what the page cache knew is lost.
    boot: str
    files: tuple[File, ...]

    def first_units(self) -> array[int]:
        """The number of each file's first unit, and at the end how many there are."""
        return array("Q", itertools.accumulate((file.units for file in self.files), initial=0))

    @property
    def bytes(self) -> int:
        return sum(end - start for file in self.files for start, end in file.runs)


def write(path: Path, plan: Plan) -> None:
    """Durable when this returns."""
    packed = msgpack.packb(
        {
            "v": 1,
            "volume": plan.volume,
            "position": plan.position,
            "boot": plan.boot,
            "files": [
                [f.path, f.key, f.size, f.inode, f.handle, pack_runs(f.runs), f.mtime_ns] for f in plan.files
            ],
        },
        use_bin_type=True,
    )
    atomic_files.write_bytes(path, blake3(packed).digest() + packed)


def read(path: Path) -> Plan:
    """Raises Corrupt."""
    raw = path.read_bytes()
    if raw[:32] != blake3(raw[32:]).digest():
        raise errors.Corrupt(
            f"{path} is not what was written; the tree stays closed",
            reason="plan-damaged",
            hint="restore again",
        )
    fields: dict[str, Any] = msgpack.unpackb(raw[32:], raw=False)
    if fields["v"] != 1:
        raise errors.Corrupt(f"{path} has version {fields['v']}", reason="plan-damaged")
    files = tuple(
        File(name, key, size, inode, handle, unpack_runs(runs), mtime)
        for name, key, size, inode, handle, runs, mtime in fields["files"]
    )
    return Plan(fields["volume"], fields["position"], fields["boot"], files)


def pack_runs(runs: Iterable[tuple[int, int]]) -> bytes:
    return b"".join(RUN.pack(*run) for run in runs)


def unpack_runs(packed: bytes) -> tuple[tuple[int, int], ...]:
    """Raises ValueError for what are no runs: rising, not empty, apart."""
    if len(packed) % RUN.size:
        raise ValueError("runs are pairs")
    runs = tuple((start, end) for start, end in RUN.iter_unpack(packed))
    last = -1
    for start, end in runs:
        if start <= last or end <= start:
            raise ValueError("runs rise and are not empty")
        last = end
    return runs
