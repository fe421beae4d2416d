"""What is filled of a tree is known exactly: across workers, across boots, and when files are cut off."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffkeeper.domain import errors
from diffkeeper.lazy import inflight, plans
from diffkeeper.lazy.marks import Marks, boot_id
from diffkeeper.lazy.plans import UNIT, File, Plan


def plan_of(*sizes: int, runs: tuple[tuple[int, int], ...] | None = None, boot: str | None = None) -> Plan:
    files = tuple(
        File(
            b"f%d" % nth,
            nth,
            size,
            100 + nth,
            b"handle",
            ((0, size),) if runs is None and size else runs or (),
            0,
        )
        for nth, size in enumerate(sizes)
    )
    return Plan("orders", "1.1", boot or boot_id(), files)


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    plan = plan_of(0, 1, UNIT, 3 * UNIT + 5)
    plans.write(tmp_path / "plan", plan)
    assert plans.read(tmp_path / "plan") == plan
    raw = bytearray((tmp_path / "plan").read_bytes())
    raw[40] ^= 1
    (tmp_path / "plan").write_bytes(raw)
    with pytest.raises(errors.Corrupt):
        plans.read(tmp_path / "plan")


@given(st.binary(max_size=64))
def test_runs_that_do_not_rise_are_refused(packed: bytes) -> None:
    try:
        runs = plans.unpack_runs(packed)
    except ValueError:
        return
    assert plans.pack_runs(runs) == packed
    flat = [edge for run in runs for edge in run]
    assert flat == sorted(set(flat))


@given(st.lists(st.integers(0, 20 * UNIT), min_size=1, max_size=5), st.data())
def test_a_file_is_whole_when_each_of_its_units_is(sizes: list[int], data: st.DataObject) -> None:
    import tempfile

    plan = plan_of(*sizes)
    with tempfile.TemporaryDirectory() as name:
        marks = Marks(Path(name), plan)
        wanted = {(nth, unit) for nth, file in enumerate(plan.files) for unit in range(file.units)}
        done: set[tuple[int, int]] = set()
        for nth, unit in data.draw(st.permutations(sorted(wanted))):
            marks.set(nth, [unit])
            done.add((nth, unit))
            for other, file in enumerate(plan.files):
                whole = all((other, one) in done for one in range(file.units))
                assert marks.is_whole(other) == whole
            assert marks.missing_units() == len(wanted) - len(done)
        marks.close()


def test_holes_need_no_filling(tmp_path: Path) -> None:
    plan = plan_of(10 * UNIT, runs=((UNIT + 5, UNIT + 6), (5 * UNIT, 7 * UNIT)))
    marks = Marks(tmp_path, plan)
    assert marks.missing(0, range(10)) == [1, 5, 6]


def test_what_was_cut_off_is_not_wanted_any_more(tmp_path: Path) -> None:
    marks = Marks(tmp_path, plan_of(5 * UNIT))
    marks.set_cut(0, UNIT + 1)
    assert (marks.cut(0), marks.missing(0, range(5))) == (UNIT + 1, [0, 1])


def test_another_worker_knows_all_and_another_boot_what_was_kept(tmp_path: Path) -> None:
    plan = plan_of(5 * UNIT)
    marks = Marks(tmp_path, plan)
    marks.set(0, [1])
    marks.keep(marks.snapshot())
    marks.set(0, [2])
    marks.close()
    again = Marks(tmp_path, plan)
    assert (again.missing(0, range(5)), again.is_after_power_cut) == ([0, 3, 4], False)
    again.close()
    (tmp_path / f"marks.{boot_id()}").rename(tmp_path / "marks.another-boot")
    after = Marks(tmp_path, dataclasses.replace(plan, boot="another-boot"))
    assert (after.missing(0, range(5)), after.is_after_power_cut) == ([0, 2, 3, 4], True)
    assert [path.name for path in tmp_path.glob("marks.*")] == [f"marks.{boot_id()}"]


def test_events_that_a_worker_had_taken_are_known_to_the_next(tmp_path: Path) -> None:
    one = inflight.Inflight(tmp_path)
    first = one.note(7, 1234, 4096, 100)
    one.note(9, 99, 0, 0)
    one.clear(first)
    assert one.busy == 1
    other = inflight.Inflight(tmp_path)
    assert [event[1:] for event in other.left()] == [(9, 99, 0, 0)]
    other.forget_all()
    assert (list(other.left()), other.busy) == ([], 0)
