"""The judge of the rounds, on histories written by hand."""

from __future__ import annotations

from tests.victims import operations, rounds
from tests.victims.operations import Operation, Outcome

OK, FAIL, UNKNOWN = Outcome.OK, Outcome.FAIL, Outcome.UNKNOWN


def op(key: str, at_us: int, outcome: Outcome = OK) -> Operation:
    """An operation that took 10 µs and ended at ``at_us``."""
    return Operation(key, f"digest of {key}", at_us - 10, at_us, outcome)


def holding(*keys: str) -> operations.Found:
    return {key: [f"digest of {key}"] for key in keys}


def test_everything_acknowledged_and_present_is_well() -> None:
    verdict = operations.judge([op("a", 100), op("b", 200), op("c", 300, FAIL)], holding("a", "b"))
    assert verdict.problems() == []
    assert (verdict.acknowledged, verdict.present) == (2, 2)


def test_one_acknowledged_key_missing_is_a_loss() -> None:
    verdict = operations.judge([op("a", 100), op("b", 200)], holding("a"))
    assert verdict.missing == ["b"]


def test_unknown_may_be_present_or_absent() -> None:
    for found in (holding("a"), holding("a", "b")):
        assert operations.judge([op("a", 100), op("b", 200, UNKNOWN)], found).problems() == []


def test_refused_altered_doubled_and_unsent_keys_are_told() -> None:
    found = {"a": ["other"], "b": ["digest of b"] * 2, "c": ["digest of c"], "x": ["digest of x"]}
    verdict = operations.judge([op("a", 100), op("b", 200), op("c", 300, FAIL)], found)
    assert (verdict.altered, verdict.doubled) == (["a"], ["b"])
    assert (verdict.refused_but_present, verdict.never_sent) == (["c"], ["x"])
    assert len(verdict.problems()) == 4


def test_loss_inside_the_reported_lag_is_allowed_and_before_it_is_not() -> None:
    history = [op("a", 100), op("b", 200), op("c", 300)]
    assert operations.judge(history, holding("a", "b"), safe_until_us=299).problems() == []
    assert operations.judge(history, holding("a", "b"), safe_until_us=299).lost_in_lag == ["c"]
    assert operations.judge(history, holding("a", "b"), safe_until_us=300).missing == ["c"]


def test_present_after_something_lost_is_no_crash_image_even_inside_the_lag() -> None:
    history = [op("a", 100), op("b", 200), op("c", 300)]
    assert operations.judge(history, holding("a", "c"), safe_until_us=0).out_of_order == ["c"]


def test_operations_that_overlapped_have_no_order() -> None:
    history = [Operation("a", "digest of a", 100, 200, OK), Operation("b", "digest of b", 150, 250, OK)]
    assert operations.judge(history, holding("b"), safe_until_us=0).problems() == []


def test_what_was_settled_must_stay_as_it_was_seen() -> None:
    history = operations.History()
    for one in (op("kept", 100), op("lost", 200), op("unknown", 300, UNKNOWN)):
        history.add(one)
    history.settle(holding("kept", "unknown"))
    assert operations.judge(history.all(), holding("kept", "unknown")).problems() == []
    assert operations.judge(history.all(), holding("kept")).missing == ["unknown"]
    assert operations.judge(history.all(), holding("kept", "unknown", "lost")).refused_but_present == ["lost"]


def test_a_report_vouches_for_its_instant_less_age_and_lag() -> None:
    report = rounds.Report(asked_us=10_000_000, answered_us=10_004_000, lag_ms=30.0, age_ms=200.0)
    assert report.safe_until_us == 10_000_000 - 230_000
