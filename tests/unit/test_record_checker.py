"""The checker of the chaos suite: it finds each thing that must never happen, and nothing where all is well."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.support import record_checker, record_writer
from tests.support.record_checker import Operation

# Two reigns: of the last record of the first nobody was told.
WRITERS = ["aa"] * 20 + ["bb"] * 20
UNKNOWN = 20


def well() -> list[Operation]:
    return [
        Operation(number, writer, number * 10, None if number == UNKNOWN else number * 10 + 5)
        for number, writer in enumerate(WRITERS, 1)
    ]


def records(writers: list[str]) -> bytes:
    return b"".join(record_writer.record(number, writer) for number, writer in enumerate(writers, 1))


def slots(writers: list[str]) -> bytes:
    held = bytearray(record_writer.SLOTS * record_writer.SLOT_BYTES)
    for number, writer in enumerate(writers, 1):
        at = number % record_writer.SLOTS * record_writer.SLOT_BYTES
        held[at : at + record_writer.SLOT_BYTES] = record_writer.slot(number, writer)
    return bytes(held)


def judged(operations: list[Operation], writers: list[str]) -> list[str]:
    return record_checker.judge(operations, records(writers), slots(writers))


def test_where_all_is_well_nothing_is_said() -> None:
    assert judged(well(), WRITERS) == []


def test_a_torn_record_at_the_end_is_well() -> None:
    assert record_checker.judge(well(), records(WRITERS) + b"41 b", slots(WRITERS)) == []


def test_an_operation_that_nobody_was_told_of_may_be_missing() -> None:
    operations = [*well(), Operation(41, "bb", 410)]
    assert judged(operations, WRITERS) == []


def test_an_acknowledged_record_that_is_missing_is_lost() -> None:
    assert "record 40 of bb was acknowledged" in judged(well(), WRITERS[:39])[0]
    [gone] = record_checker.lost(well(), records(WRITERS[:39]))
    assert gone.number == 40


def test_an_acknowledged_record_in_whose_place_stands_another_is_lost() -> None:
    writers = [*WRITERS[:18], "bb", "bb", *WRITERS[20:]]
    operations = [*well(), Operation(19, "bb", 196, 197), Operation(20, "bb", 198, 199)]
    assert any("record 19 of aa was acknowledged" in said for said in judged(operations, writers))


def test_a_record_twice_and_a_gap_are_seen() -> None:
    twice = records(WRITERS) + record_writer.record(40, "bb")
    assert "one twice" in record_checker.judge(well(), twice, slots(WRITERS))[0]
    gap = records(WRITERS[:5]) + records(WRITERS)[len(records(WRITERS[:6])) :]
    assert "a gap" in record_checker.judge(well(), gap, slots(WRITERS))[0]


def test_a_record_that_nobody_wrote_is_seen() -> None:
    assert "record 41 by cc was never written" in judged(well(), [*WRITERS, "cc"])[0]


def test_two_writers_at_once_are_seen() -> None:
    writers = [*WRITERS, "aa"]
    operations = [*well(), Operation(41, "aa", 400, 409)]
    assert any("writer aa goes on after another" in said for said in judged(operations, writers))


def test_an_order_that_is_not_that_of_the_acknowledgements_is_seen() -> None:
    operations = [replace(one, start_ns=one.start_ns + 1000) if one.number == 3 else one for one in well()]
    assert any("record 3 of aa began after" in said for said in judged(operations, WRITERS))


def test_a_slot_with_an_old_record_is_seen_unless_nobody_was_told_of_the_newer() -> None:
    old = slots(WRITERS[:39])
    assert "slot 8 holds '24 bb', not '40 bb'" in record_checker.judge(well(), records(WRITERS), old)
    untold = [replace(one, end_ns=None) if one.number == 40 else one for one in well()]
    assert record_checker.judge(untold, records(WRITERS), old) == []


def test_the_longest_stall_lies_between_two_acknowledgements_or_at_an_edge() -> None:
    operations = [Operation(1, "aa", 0, 1_000_000), Operation(2, "aa", 0, 9_000_000)]
    assert record_checker.longest_stall_ms(operations, 0, 10_000_000) == 8
    assert record_checker.longest_stall_ms(operations, 0, 99_000_000) == 90


@pytest.mark.parametrize("torn", ["ok 2 3", "o", ""])
def test_a_torn_end_of_a_history_says_nothing(tmp_path: Path, torn: str) -> None:
    (tmp_path / "17-aa").write_text("start 1 10\nok 1 15\nrest 1 16\nstart 2 20\n" + torn)
    (tmp_path / "rest").touch()
    assert record_checker.read_histories(tmp_path) == [Operation(1, "aa", 10, 15), Operation(2, "aa", 20)]
