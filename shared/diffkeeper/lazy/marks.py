"""What of a tree is filled: a bit a unit and, for each file, where its planned content was cut off.

Two copies. One is changed in place before an event is allowed; it survives any death of the filler, because it lies
in the page cache, and counts only for the boot in which it was written. The other is replaced by ``keep`` once the
bytes it speaks of are on disk; it is what a power cut leaves.
"""

from __future__ import annotations

import mmap
import os
import struct
from array import array
from collections.abc import Iterable
from pathlib import Path

from blake3 import blake3

from diffkeeper import atomic_files
from diffkeeper.lazy.plans import UNIT, Plan

_CUT = struct.Struct("<Q")


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class Marks:
    """Not for threads, but reading a bit needs no lock."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self._folder, self._plan = folder, plan
        self._first = plan.first_units()
        self.units = self._first[-1]
        self._bit_bytes = -(-self.units // 8)
        size = max(1, self._bit_bytes + _CUT.size * len(plan.files))
        boot = boot_id()
        # After a power cut a block may be on disk that the marks do not know of: the filler's, or the program's.
        self.is_after_power_cut = plan.boot != boot
        path = folder / f"marks.{boot}"
        if not path.exists():
            temporary = folder / "marks-new"
            temporary.write_bytes(self._kept(size))
            temporary.rename(path)
            for old in folder.glob("marks.*"):
                if old != path:
                    old.unlink()
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._map = mmap.mmap(fd, size)
        finally:
            os.close(fd)

    def close(self) -> None:
        self._map.close()

    def cut(self, nth: int) -> int:
        """Beyond this offset nothing of the plan is wanted in the file any more: it was once that short."""
        (cut,) = _CUT.unpack_from(self._map, self._bit_bytes + nth * _CUT.size)
        return int(cut)

    def set_cut(self, nth: int, size: int) -> None:
        _CUT.pack_into(self._map, self._bit_bytes + nth * _CUT.size, size)
        self.set(nth, range(-(-size // UNIT), self._plan.files[nth].units))

    def is_set(self, nth: int, unit: int) -> bool:
        at = self._first[nth] + unit
        return bool(self._map[at >> 3] >> (at & 7) & 1)

    def set(self, nth: int, units: Iterable[int]) -> None:
        first = self._first[nth]
        for unit in units:
            at = first + unit
            self._map[at >> 3] |= 1 << (at & 7)

    def missing(self, nth: int, units: range) -> list[int]:
        return [unit for unit in units if not self.is_set(nth, unit)]

    def is_whole(self, nth: int) -> bool:
        first, end = self._first[nth], self._first[nth + 1]
        while first < end and first & 7:
            if not self._map[first >> 3] >> (first & 7) & 1:
                return False
            first += 1
        while end > first and end & 7:
            end -= 1
            if not self._map[end >> 3] >> (end & 7) & 1:
                return False
        return first >= end or self._map[first >> 3 : end >> 3].count(b"\xff") == (end - first) >> 3

    def missing_units(self) -> int:
        return self.units - int.from_bytes(self._map[: self._bit_bytes], "little").bit_count()

    def snapshot(self) -> bytes:
        return self._map[:]

    def keep(self, snapshot: bytes) -> None:
        """Make a snapshot what a power cut leaves; what it says is filled has to be on disk already."""
        atomic_files.write_bytes(self._folder / "kept", blake3(snapshot).digest() + snapshot)

    def _kept(self, size: int) -> bytes:
        try:
            raw = (self._folder / "kept").read_bytes()
        except FileNotFoundError:
            return self._fresh(size)
        if len(raw) != 32 + size or raw[:32] != blake3(raw[32:]).digest():
            return self._fresh(size)
        return raw[32:]

    def _fresh(self, size: int) -> bytes:
        """Nothing but holes is filled."""
        bits = bytearray(size)
        for nth, file in enumerate(self._plan.files):
            first = self._first[nth]
            wanted = {unit for start, end in file.runs for unit in range(start // UNIT, -(-end // UNIT))}
            for unit in range(file.units):
                if unit not in wanted:
                    bits[first + unit >> 3] |= 1 << (first + unit & 7)
        cuts = array("Q", (file.size for file in self._plan.files)).tobytes()
        bits[self._bit_bytes : self._bit_bytes + len(cuts)] = cuts
        return bytes(bits)
