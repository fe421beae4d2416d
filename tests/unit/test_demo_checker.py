"""The checker must find each kind of wrong, or the demo's exit code says nothing."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from examples.demo import checker, records
from examples.demo.records import FAIL, OK, UNKNOWN, Attempt
from examples.orders import orders


def attempt(order_id: str, start: int, end: int, outcome: str = OK) -> Attempt:
    return Attempt(order_id, records.digest(order_id, "tea", 1), start, end, outcome, "")


def row(seq: int, order_id: str, item: str = "tea") -> checker.Row:
    return checker.Row(seq, order_id, records.digest(order_id, item, 1))


def judge(attempts: list[Attempt], rows: list[checker.Row], integrity: str = "ok") -> checker.Judgement:
    return checker.judge(checker.told(attempts), rows, integrity)


HISTORY = [attempt("a", 1, 2), attempt("b", 3, 4), attempt("c", 5, 6, UNKNOWN), attempt("d", 5, 6, FAIL)]


def test_all_acknowledged_orders_once_and_in_order_is_well() -> None:
    found = judge(HISTORY, [row(1, "a"), row(2, "b")])
    assert found.ok
    assert (found.acknowledged, found.found, found.unknown, found.unknown_but_there) == (2, 2, 1, 0)


def test_an_unknown_order_may_be_there() -> None:
    found = judge(HISTORY, [row(1, "a"), row(2, "b"), row(3, "c")])
    assert found.ok
    assert found.unknown_but_there == 1


@pytest.mark.parametrize(
    ("rows", "kind", "names"),
    [
        ([row(1, "a")], "lost", ("b",)),
        ([row(1, "a"), row(2, "b"), row(3, "a")], "duplicated", ("a",)),
        ([row(1, "a"), row(2, "b", "coffee")], "altered", ("b",)),
        ([row(1, "b"), row(2, "a")], "misplaced", ("a",)),
        ([row(1, "a"), row(2, "b"), row(3, "d")], "refused_but_there", ("d",)),
        ([row(1, "a"), row(2, "b"), row(3, "z")], "invented", ("z",)),
    ],
)
def test_each_kind_of_wrong_is_found(rows: list[checker.Row], kind: str, names: tuple[str, ...]) -> None:
    found = judge(HISTORY, rows)
    assert not found.ok
    assert getattr(found, kind) == names


def test_a_damaged_database_is_not_well() -> None:
    assert not judge(HISTORY, [row(1, "a"), row(2, "b")], "row 1 missing from index").ok


def test_a_run_that_acknowledged_nothing_proves_nothing() -> None:
    assert not judge([], []).ok


def test_orders_in_flight_at_the_same_time_may_stand_either_way() -> None:
    assert judge([attempt("a", 1, 5), attempt("b", 2, 3)], [row(1, "b"), row(2, "a")]).ok
    assert judge([attempt("a", 1, 5), attempt("b", 2, 3)], [row(1, "a"), row(2, "b")]).ok


def test_an_order_that_was_retried_counts_from_its_first_attempt_and_as_acknowledged() -> None:
    history = [attempt("a", 1, 2, UNKNOWN), attempt("b", 3, 4), attempt("a", 5, 6)]
    found = judge(history, [row(1, "a"), row(2, "b")])
    assert found.ok
    assert found.acknowledged == 2


def test_a_database_is_read_with_its_write_ahead_log_and_left_untouched(tmp_path: Path) -> None:
    store = orders.Store(tmp_path)
    connection = store.connect()
    store.place(connection, {"id": "a", "item": "tea", "qty": 1})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    rows, integrity = checker.read_database(tmp_path)
    assert (rows, integrity) == ([row(1, "a")], "ok")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    connection.close()
    store.close()


def test_integrity_check_speaks_of_real_damage(tmp_path: Path) -> None:
    store = orders.Store(tmp_path)
    connection = store.connect()
    for number in range(200):
        store.place(connection, {"id": f"order-{number}", "item": "tea", "qty": 1})
    connection.close()
    store.close()
    database = tmp_path / orders.DATABASE
    raw = bytearray(database.read_bytes())
    # Wipe the page of an index: the header stays, so that the file still opens.
    raw[8192:12288] = bytes(4096)
    database.write_bytes(raw)
    try:
        _, integrity = checker.read_database(tmp_path)
    except sqlite3.DatabaseError:
        return
    assert integrity != "ok"


def test_what_the_client_wrote_down_is_what_the_checker_reads(tmp_path: Path) -> None:
    path = tmp_path / "client.jsonl"
    path.write_text("".join(records.line(one) for one in HISTORY))
    assert list(records.read(path)) == HISTORY
