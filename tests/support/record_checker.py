"""Judges what ``record_writer`` left behind: its histories, outside of the volume, against the files inside it. Pure.

It knows nothing of what was done to the deployment meanwhile. A list of what is wrong; an empty one is the good answer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.record_writer import SLOT_BYTES, SLOTS


@dataclass(frozen=True, slots=True)
class Operation:
    """One record and its slot. ``end_ns`` is None unless its fsync returned: then it is safe, else nobody knows.

    An fsync that raised leaves the operation unknown too: what it was about may be on disk.
    """

    number: int
    writer: str
    start_ns: int
    end_ns: int | None = None


def read_histories(folder: Path) -> list[Operation]:
    found: list[Operation] = []
    for path in sorted(entry for entry in folder.iterdir() if entry.name != "rest"):
        writer = path.name.rpartition("-")[2]
        starts: dict[int, int] = {}
        ends: dict[int, int] = {}
        # The last line may be torn by a kill; what it would have said is not known then.
        for line in path.read_text().split("\n")[:-1]:
            what, number, at_ns = line.split()
            if what in ("start", "ok"):
                (starts if what == "start" else ends)[int(number)] = int(at_ns)
        found += [Operation(number, writer, at, ends.get(number)) for number, at in starts.items()]
    return found


def judge(operations: Sequence[Operation], records: bytes, slots: bytes) -> list[str]:
    stand, wrong = _parse(records)
    wrong += _is_lost(operations, stand)
    wrong += _is_invented(operations, stand)
    wrong += _is_out_of_order(operations, stand)
    wrong += _are_mixed(stand)
    wrong += _slots_differ(operations, stand, slots)
    return wrong


def lost(operations: Iterable[Operation], records: bytes) -> list[Operation]:
    """What was acknowledged and does not stand."""
    stand, _ = _parse(records)
    return [one for one in operations if one.end_ns is not None and not _stands(one, stand)]


def longest_stall_ms(operations: Iterable[Operation], since_ns: int, until_ns: int) -> float:
    """The longest time within these two moments in which nothing was acknowledged."""
    ends = sorted(one.end_ns for one in operations if one.end_ns is not None)
    moments = [since_ns, *(at for at in ends if since_ns < at < until_ns), until_ns]
    return max(after - before for before, after in itertools.pairwise(moments)) / 1e6


def _parse(records: bytes) -> tuple[list[str], list[str]]:
    """The writer of each record, by number from 1; a torn record at the end was acknowledged to nobody."""
    stand: list[str] = []
    wrong: list[str] = []
    for line in records.split(b"\n")[:-1]:
        number, _, writer = line.decode(errors="replace").partition(" ")
        if number != str(len(stand) + 1):
            wrong.append(f"after record {len(stand)} stands {line!r}: a gap, or one twice")
        stand.append(writer)
    return stand, wrong[:10]


def _stands(one: Operation, stand: Sequence[str]) -> bool:
    return one.number <= len(stand) and stand[one.number - 1] == one.writer


def _is_lost(operations: Sequence[Operation], stand: Sequence[str]) -> list[str]:
    gone = [one for one in operations if one.end_ns is not None and not _stands(one, stand)]
    return [
        f"record {one.number} of {one.writer} was acknowledged; of {len(stand)} records that one is "
        + (f"by {stand[one.number - 1]}" if one.number <= len(stand) else "missing")
        for one in gone[:10]
    ]


def _is_invented(operations: Sequence[Operation], stand: Sequence[str]) -> list[str]:
    known = {(one.number, one.writer) for one in operations}
    found = [(number, writer) for number, writer in enumerate(stand, 1) if (number, writer) not in known]
    return [f"record {number} by {writer} was never written" for number, writer in found[:10]]


def _is_out_of_order(operations: Sequence[Operation], stand: Sequence[str]) -> list[str]:
    """What began after another was acknowledged stands behind it."""
    began = sorted((one for one in operations if _stands(one, stand)), key=lambda one: one.start_ns)
    ended = sorted((one.end_ns, one.number) for one in operations if one.end_ns is not None)
    wrong, highest, at = [], 0, 0
    for one in began:
        while at < len(ended) and ended[at][0] < one.start_ns:
            highest = max(highest, ended[at][1])
            at += 1
        if one.number <= highest:
            wrong.append(f"record {one.number} of {one.writer} began after {highest} was acknowledged")
    return wrong[:10]


def _are_mixed(stand: Sequence[str]) -> list[str]:
    """A writer that others have followed never has a word again: there is one at a time."""
    gone: set[str] = set()
    wrong = []
    for number, (before, writer) in enumerate(zip(["", *stand], stand, strict=False), 1):
        if writer == before:
            continue
        gone.add(before)
        if writer in gone:
            wrong.append(f"at record {number} writer {writer} goes on after another")
    return wrong[:10]


def _slots_differ(operations: Sequence[Operation], stand: Sequence[str], slots: bytes) -> list[str]:
    """Each slot holds the newest of its records. Only an operation that nobody was told of may have ended between the two."""
    told = {(one.number, one.writer) for one in operations if one.end_ns is not None}
    wrong = []
    for index in range(min(SLOTS, len(stand))):
        held = slots[index * SLOT_BYTES : (index + 1) * SLOT_BYTES].decode(errors="replace").strip("\0 \n")
        allowed = []
        for number in range(len(stand) - (len(stand) - index) % SLOTS, 0, -SLOTS):
            allowed.append(f"{number} {stand[number - 1]}")
            if (number, stand[number - 1]) in told:
                break
        else:
            allowed.append("")
        if held not in allowed:
            wrong.append(f"slot {index} holds {held!r}, not {' or '.join(map(repr, allowed))}")
    return wrong
