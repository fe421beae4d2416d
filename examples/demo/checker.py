"""Judges what was found by what the client wrote down; knows neither who broke what nor how it was mended.

Each acknowledged order must be there exactly once, as it was sent, and after every order that had been
acknowledged before it was first sent. An order whose fate the client does not know may be there; one that
was refused must not.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from examples.demo import records

DATABASE = "orders.db"


@dataclass(frozen=True, slots=True)
class Row:
    seq: int
    id: str
    hash: str


@dataclass(frozen=True, slots=True)
class Told:
    """What the client knows about one order after all its attempts."""

    id: str
    outcome: str
    hash: str
    first_start_us: int
    ok_end_us: int  # of the first acknowledgement; 0 without one


@dataclass(frozen=True, slots=True)
class Judgement:
    acknowledged: int
    found: int  # acknowledged and there
    lost: tuple[str, ...]
    duplicated: tuple[str, ...]
    altered: tuple[str, ...]  # there, but not what was sent
    misplaced: tuple[str, ...]  # before an order that was acknowledged earlier
    refused_but_there: tuple[str, ...]
    unknown: int
    unknown_but_there: int
    invented: tuple[str, ...]  # there, and never sent
    integrity: str

    @property
    def ok(self) -> bool:
        wrong = (
            self.lost,
            self.duplicated,
            self.altered,
            self.misplaced,
            self.refused_but_there,
            self.invented,
        )
        return not any(wrong) and self.integrity == "ok" and self.acknowledged > 0


def told(attempts: Iterable[records.Attempt]) -> dict[str, Told]:
    orders: dict[str, Told] = {}
    for attempt in attempts:
        before = orders.get(attempt.id)
        outcomes = {attempt.outcome, before.outcome if before else records.FAIL}
        ok_end = attempt.end_us if attempt.outcome == records.OK else 0
        orders[attempt.id] = Told(
            attempt.id,
            next(outcome for outcome in (records.OK, records.UNKNOWN, records.FAIL) if outcome in outcomes),
            attempt.hash,
            min(attempt.start_us, before.first_start_us) if before else attempt.start_us,
            (before.ok_end_us if before and before.ok_end_us else ok_end),
        )
    return orders


def judge(orders: dict[str, Told], rows: list[Row], integrity: str) -> Judgement:
    there = Counter(row.id for row in rows)
    by_outcome: dict[str, list[Told]] = {records.OK: [], records.UNKNOWN: [], records.FAIL: []}
    for order in orders.values():
        by_outcome[order.outcome].append(order)
    acknowledged = by_outcome[records.OK]
    return Judgement(
        acknowledged=len(acknowledged),
        found=sum(order.id in there for order in acknowledged),
        lost=tuple(order.id for order in acknowledged if order.id not in there),
        duplicated=tuple(order_id for order_id, times in there.items() if times > 1),
        altered=tuple(row.id for row in rows if row.id in orders and row.hash != orders[row.id].hash),
        misplaced=_misplaced(orders, rows),
        refused_but_there=tuple(order.id for order in by_outcome[records.FAIL] if order.id in there),
        unknown=len(by_outcome[records.UNKNOWN]),
        unknown_but_there=sum(order.id in there for order in by_outcome[records.UNKNOWN]),
        invented=tuple(order_id for order_id in there if order_id not in orders),
        integrity=integrity,
    )


def _misplaced(orders: dict[str, Told], rows: list[Row]) -> tuple[str, ...]:
    """Orders acknowledged before an order was first sent that nevertheless stands before them."""
    found, latest_start = [], 0
    for row in sorted(rows, key=lambda row: row.seq):
        order = orders.get(row.id)
        if order is None:
            continue
        if order.ok_end_us and order.ok_end_us < latest_start:
            found.append(order.id)
        latest_start = max(latest_start, order.first_start_us)
    return tuple(found)


def read_database(directory: Path, work: Path | None = None) -> tuple[list[Row], str]:
    """The orders in a state directory, and what ``PRAGMA integrity_check`` says.

    Works on a copy (below ``work``, or the temporary directory): to look must change nothing. The service
    must be idle while it is made.
    """
    with tempfile.TemporaryDirectory(prefix="dk-check-", dir=work) as scratch:
        for suffix in ("", "-wal"):
            source = directory / (DATABASE + suffix)
            if source.exists():
                shutil.copyfile(source, Path(scratch, source.name))
        with contextlib.closing(sqlite3.connect(Path(scratch, DATABASE))) as database:
            integrity = "; ".join(str(line[0]) for line in database.execute("PRAGMA integrity_check"))
            return [
                Row(seq, order_id, records.digest(order_id, item, qty))
                for seq, order_id, item, qty in database.execute("SELECT seq, id, item, qty FROM orders")
            ], integrity


def check(record: Path, directory: Path) -> Judgement:
    return judge(told(records.read(record)), *read_database(directory, record.parent))
