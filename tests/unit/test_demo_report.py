"""The demo's exit code follows from its report: every check must hold, and none may be missing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from examples.demo import checker, report

WELL = checker.judge({"a": checker.Told("a", "ok", "h", 1, 2)}, [checker.Row(1, "a", "h")], integrity="ok")


def verification(**changes: Any) -> dict[str, Any]:
    part = {"site": "east", "ok": True, "differences": [], "error": None, "compared": "all"}
    return {"ok": True, "verdict": "agree", "chains": [part], "replicas": [part], "source": part} | changes


def story(**changes: Any) -> report.Story:
    told = report.Story(
        probe="bpf",
        fidelity="exact",
        acknowledged_before_kill=1,
        kill_to_first_order_ms=5.0,
        verification=verification(),
        judgement=WELL,
    )
    for name, value in changes.items():
        setattr(told, name, value)
    return told


DIFFERS: dict[str, Any] = {
    "site": "west",
    "ok": False,
    "compared": "x",
    "differences": [{"path": "orders.db-shm"}],
    "error": None,
}
UNCOMPARED: dict[str, Any] = {
    "site": "west",
    "ok": None,
    "compared": "nothing",
    "differences": [],
    "error": None,
}


def test_a_story_in_which_everything_holds_is_ok() -> None:
    assert story().ok
    assert report.lines(story())[-1] == "All of it holds."


@pytest.mark.parametrize(
    "changes",
    [
        {"judgement": replace(WELL, lost=("a",))},
        {"judgement": replace(WELL, integrity="row missing")},
        {"acknowledged_before_kill": 0},
        {"kill_to_first_order_ms": None},
        {"verification": None},
        {"verification": verification(replicas=[])},
        {"verification": verification(replicas=[DIFFERS])},
        {"verification": verification(replicas=[UNCOMPARED])},
        {"verification": verification(chains=[DIFFERS])},
        {"verification": verification(source=DIFFERS)},
        {"verification": verification(source=UNCOMPARED)},
    ],
)
def test_a_story_in_which_something_does_not_hold_is_not_ok_and_says_so(changes: dict[str, Any]) -> None:
    told = story(**changes)
    assert not told.ok
    assert report.lines(told)[-1] == "NOT all of it holds."


def test_what_the_portable_probe_cannot_see_is_told_and_not_held_against_it() -> None:
    told = story(fidelity="scan", verification=verification(source=DIFFERS))
    assert told.ok
    assert any("by fidelity scan" in line and "orders.db-shm" in line for line in report.lines(told))
