"""What a killed agent's successor finds of its marks, whatever became of the end of the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffkeeper.domain import frames, positions
from diffkeeper_capture import resume_journal
from diffkeeper_capture.resume_journal import Mark, Memory, ResumeJournal

RING = "ring-1"


def mark(number: int) -> Mark:
    tip = frames.Tip(positions.Position(1, number), bytes([number]) * 32)
    return Mark(RING, 1, number * 100, tip, 0, 0, Memory(number, 0, False, False, [(2, 7, 1, 0)]))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    journal = ResumeJournal(tmp_path / "resume.journal")
    journal.begin(mark(1))
    journal.note(mark(2))
    journal.note(mark(3))
    journal.close()
    return tmp_path / "resume.journal"


def last(path: Path) -> Mark | None:
    found = resume_journal.read(path, RING)
    return None if found is None else found[0]


def test_the_last_mark_is_found_with_all_memories_up_to_it(path: Path) -> None:
    found = resume_journal.read(path, RING)
    assert found is not None
    assert (found[0], [memory.made_ns for memory in found[1]]) == (mark(3), [1, 2, 3])
    assert resume_journal.read(path, "another ring") is None


def test_a_file_cut_off_anywhere_gives_the_last_whole_mark(path: Path) -> None:
    whole = path.read_bytes()
    seen = set()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        found = last(path)
        seen.add(None if found is None else found.at)
    assert seen == {None, 100, 200}


@pytest.mark.parametrize("zeros", [1, 7, 8, 9, 4096])
def test_zeros_that_a_power_cut_left_are_no_marks(path: Path, zeros: int) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(zeros))
    assert last(path) == mark(3)
    path.write_bytes(bytes(len(whole)))
    assert last(path) is None


def test_whoever_goes_on_writes_behind_the_last_whole_mark(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(4096))
    journal = ResumeJournal(path)
    journal.go_on()
    journal.note(mark(4))
    journal.close()
    assert last(path) == mark(4)
