"""What a measurement says: figures with their baseline and target, and how they are shown."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dkctl import exits, output
from dkctl.output import Column

COLUMNS = [
    Column("FIGURE", "name"),
    Column("VALUE", "value"),
    Column("BASELINE", "baseline"),
    Column("TARGET", "target"),
    Column("RESULT", "result"),
    Column("NOTE", "note"),
]


@dataclass(frozen=True, slots=True)
class Figure:
    """``at_most`` or ``at_least`` is the target, if any; ``baseline`` the same without DiffKeeper."""

    name: str
    value: float
    unit: str
    baseline: float | None = None
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""

    @property
    def result(self) -> str | None:
        """``reached``, ``short``, or None without a target."""
        if self.at_most is not None:
            return "reached" if self.value <= self.at_most else "short"
        if self.at_least is not None:
            return "reached" if self.value >= self.at_least else "short"
        return None

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "baseline": self.baseline,
            "at_most": self.at_most,
            "at_least": self.at_least,
            "result": self.result,
            "note": self.note,
        }

    def row(self) -> dict[str, Any]:
        if self.at_most is not None:
            target: str | None = f"<= {show(self.at_most, self.unit)}"
        else:
            target = None if self.at_least is None else f">= {show(self.at_least, self.unit)}"
        return {
            "name": self.name,
            "value": show(self.value, self.unit),
            "baseline": None if self.baseline is None else show(self.baseline, self.unit),
            "target": target,
            "result": self.result,
            "note": self.note,
        }


def show(value: float, unit: str) -> str:
    """Three digits that matter, and the unit."""
    digits = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f} {unit}".rstrip()


def percentile(samples: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: a value that was measured, never one between two."""
    assert samples, "a percentile needs a sample"
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


@dataclass(frozen=True, slots=True)
class Report:
    """What one bench found. ``faults`` are broken promises: a lost record, a replica that differs."""

    bench: str
    figures: Sequence[Figure]
    faults: Sequence[str] = ()
    notes: Sequence[str] = ()


def answer(report: Report) -> output.Answer:
    """Faults make the exit code 1; a figure that falls short is told, and is no fault."""
    found = report.figures
    judged = [figure for figure in found if figure.result is not None]
    short = [figure.name for figure in judged if figure.result == "short"]
    verdict = f"{len(judged) - len(short)} of {len(judged)} targets reached"
    if short:
        verdict += f"; short: {', '.join(short)}"
    if report.faults:
        verdict = f"Needs attention: {'; '.join(report.faults)}. {verdict}"
    data = {
        "bench": report.bench,
        "machine": {
            "cpus": os.cpu_count(),
            "kernel": platform.release(),
            "python": platform.python_version(),
        },
        "figures": [figure.to_dict() for figure in found],
        "faults": list(report.faults),
        "notes": list(report.notes),
    }
    notes = [{"note": note} for note in report.notes]
    return output.Answer(
        f"{verdict}.",
        data,
        tables=[
            output.Table(COLUMNS, [figure.row() for figure in found]),
            output.Table([Column("NOTES", "note")], notes),
        ],
        items=[figure.to_dict() for figure in found],
        names=[figure.name for figure in found],
        exit=exits.Exit.ATTENTION if report.faults else exits.Exit.DONE,
    )
