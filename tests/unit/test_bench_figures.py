from __future__ import annotations

import json
from pathlib import Path

import pytest

from diffkeeper.domain import errors
from dkctl import exits, output
from dkctl.bench import capture, figures, lag, processes, writers
from dkctl.bench.figures import Figure


def test_percentile_is_a_value_that_was_measured() -> None:
    assert figures.percentile([4, 1, 3, 2], 50) == 2
    assert figures.percentile(range(1, 101), 99) == 99
    assert figures.percentile([7.5], 99) == 7.5


@pytest.mark.parametrize(
    ("figure", "result"),
    [
        (Figure("a", 10, "ms", at_most=10), "reached"),
        (Figure("a", 10.1, "ms", at_most=10), "short"),
        (Figure("a", 0.95, "", at_least=0.95), "reached"),
        (Figure("a", 0.94, "", at_least=0.95), "short"),
        (Figure("a", 1, "ms"), None),
    ],
)
def test_figure_says_whether_its_target_was_reached(figure: Figure, result: str | None) -> None:
    assert figure.result == result


def test_short_figure_is_named_and_is_no_fault() -> None:
    report = figures.Report("x", [Figure("fast", 1, "ms", at_most=2), Figure("slow", 3, "ms", at_most=2)])
    answer = figures.answer(report)
    assert answer.verdict == "1 of 2 targets reached; short: slow."
    assert answer.exit == exits.Exit.DONE


def test_broken_promise_comes_first_and_asks_for_attention() -> None:
    answer = figures.answer(figures.Report("x", [], faults=["3 records lost"]))
    assert answer.verdict.startswith("Needs attention: 3 records lost")
    assert answer.exit == exits.Exit.ATTENTION


def test_report_is_written_as_table_and_json() -> None:
    answer = figures.answer(
        figures.Report("x", [Figure("rate", 12345.6, "/s", 50.0, at_least=50_000)], notes=["by hand"])
    )
    table = output.render(answer, "table")
    assert ">= 50,000 /s" in table
    assert "by hand" in table
    (figure,) = json.loads(output.render(answer, "json"))["figures"]
    assert (figure["value"], figure["baseline"], figure["result"]) == (12345.6, 50.0, "short")


def test_blocks_are_halved_by_compression_and_differ() -> None:
    blocks = writers.blocks(64)
    assert len(set(blocks)) == 64
    assert all(len(block) == writers.BLOCK_BYTES for block in blocks)
    assert all(not any(block[writers.BLOCK_BYTES // 2 :]) for block in blocks)


def test_paced_writer_writes_every_block_at_its_pace(tmp_path: Path) -> None:
    done = writers.write_paced(tmp_path / "file", rate=2000, seconds=0.2)
    assert done.writes == 400
    assert done.seconds >= 0.19
    assert (tmp_path / "file").stat().st_size == 400 * writers.BLOCK_BYTES


def test_stamped_writes_arrive_each_with_a_lag(tmp_path: Path) -> None:
    file = tmp_path / "file"
    writers.write_stamped(file, rate=1000, seconds=0.05)
    lags_ms = lag.arrivals(file, 50, timeout_s=5)
    assert len(lags_ms) == 50
    assert min(lags_ms) > 0


def test_writes_that_do_not_arrive_end_in_an_error_that_counts_them(tmp_path: Path) -> None:
    file = tmp_path / "file"
    writers.write_stamped(file, rate=1000, seconds=0.01)
    with pytest.raises(errors.TimedOut, match="10 of 11"):
        lag.arrivals(file, 11, timeout_s=0.1)


def test_a_replica_with_one_other_byte_is_not_the_same(tmp_path: Path) -> None:
    for name in ("left", "right"):
        (tmp_path / name / "below").mkdir(parents=True)
        (tmp_path / name / "below" / "file").write_bytes(b"abc")
    assert capture.same(tmp_path / "left", tmp_path / "right")
    (tmp_path / "right" / "below" / "file").write_bytes(b"abd")
    assert not capture.same(tmp_path / "left", tmp_path / "right")


def test_usage_of_a_process_is_read_from_proc() -> None:
    import os

    usage = processes.usage(os.getpid())
    assert usage.peak_bytes >= usage.resident_bytes > 1_000_000
    assert usage.cpu_s > 0
