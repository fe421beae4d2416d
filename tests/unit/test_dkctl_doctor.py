"""dkctl doctor on this very machine: every check answers, and the verdict follows from the answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dkctl import checks, main
from dkctl.checks import Finding, Outcome
from dkctl.commands import doctor


def test_every_check_answers_here_and_what_is_not_well_has_a_remedy(tmp_path: Path) -> None:
    findings = list(checks.all_checks(tmp_path / "not" / "there"))
    assert len(findings) == len(checks.CHECKS)
    for finding in findings:
        assert finding.found
        assert finding.outcome is Outcome.PASS or finding.remedy, finding


def test_the_answer_as_json_names_each_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main.invoke(["doctor", "--json", "--dir", str(tmp_path)])
    answer = json.loads(capsys.readouterr().out)
    assert code == (0 if answer["ok"] else 1)
    assert {check["check"] for check in answer["checks"]} >= {
        "kernel",
        "btf",
        "seccomp",
        "nats-server",
        "disk",
        "clock",
    }


@pytest.mark.parametrize(
    ("outcomes", "code", "verdict"),
    [
        ([Outcome.PASS, Outcome.PASS], 0, "A deployment works here."),
        ([Outcome.PASS, Outcome.WARN], 0, "A deployment works here, with limits: b."),
        ([Outcome.FAIL, Outcome.WARN], 1, "A deployment will not work here: a."),
    ],
)
def test_the_verdict_is_that_of_the_worst_check(outcomes: list[Outcome], code: int, verdict: str) -> None:
    answer = doctor.answer_of([Finding(name, one, "x") for name, one in zip("ab", outcomes, strict=True)])
    assert (answer.exit, answer.verdict) == (code, verdict)


def test_a_full_disk_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks.disk(tmp_path).outcome is not Outcome.FAIL
    monkeypatch.setattr(checks, "MIN_FREE_BYTES", 1 << 62)
    assert checks.disk(tmp_path).outcome is Outcome.FAIL


def test_a_missing_server_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    assert checks.nats_server(tmp_path).outcome is Outcome.FAIL
