"""``dkctl check``: what a monitoring system is told, in its own form and with its own exit codes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.support import control_server
from tests.support.control_server import ControlServer, site, volume

from dkctl import main

STALLED = {"site": "west", "role": "follow", "state": "stalled", "base_complete": True}


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ControlServer]:
    with control_server.serve(tmp_path / "deployment") as server:
        monkeypatch.setenv("DIFFKEEPER_DIR", str(server.directory))
        tell(server)
        yield server


def tell(server: ControlServer, **changes: Any) -> None:
    sites = [site("east", leads=("orders",)), site("west")]
    server.answers["GET /v1/status"] = {"sites": sites, "volumes": [volume(**changes)], "operations": []}


def lag(ms: int) -> dict[str, Any]:
    return {"frames": 1, "bytes": 10, "ms": ms, "age_ms": 3}


@pytest.mark.parametrize(
    ("changes", "code", "word", "why"),
    [
        ({}, 0, "OK", "1 volumes are well"),
        ({"lag": lag(999)}, 0, "OK", ""),
        ({"lag": lag(1000)}, 1, "WARNING", "waiting to be shipped for 1000 ms"),
        ({"lag": lag(10_000)}, 2, "CRITICAL", "waiting to be shipped for 10000 ms"),
        ({"gaps": {"open": True}}, 1, "WARNING", "open gap"),
        ({"level": {"asked": "remote", "met": False}}, 1, "WARNING", "does not meet its level remote"),
        ({"state": "leaderless", "detail": "east is dead"}, 2, "CRITICAL", "leaderless (east is dead)"),
        ({"sites": [STALLED]}, 2, "CRITICAL", "no other site could take over orders now"),
        ({"positions": {"age_ms": 20_000}}, 1, "WARNING", "20.0 s old"),
    ],
)
def test_nagios_gets_one_line_and_its_own_exit_code(
    control: ControlServer,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    code: int,
    word: str,
    why: str,
) -> None:
    tell(control, **changes)
    assert main.invoke(["check", "--format", "nagios"]) == code
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    text, _, figures = out.partition(" | ")
    assert text.startswith(f"DIFFKEEPER {word} - ")
    assert why in text
    assert "'orders_lag'=" in figures
    assert "'orders_replicas'=" in figures


def test_nagios_is_told_unknown_when_control_does_not_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.invoke(["check", "--format", "nagios", "--dir", str(tmp_path)]) == 3
    assert capsys.readouterr().out.startswith("DIFFKEEPER UNKNOWN - ")
    assert main.invoke(["check", "--dir", str(tmp_path)]) == 5


def test_prometheus_gets_metrics_that_its_own_parser_reads(
    control: ControlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    tell(control, lag=lag(1500), sites=[STALLED])
    assert main.invoke(["check", "--format", "prometheus"]) == 0
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(capsys.readouterr().out)
        for sample in family.samples
    }
    assert samples["diffkeeper_site_alive", "east"] == 1
    assert samples["diffkeeper_volume_lag_seconds", "orders"] == 1.5
    assert samples["diffkeeper_volume_ready_replicas", "orders"] == 0
    assert samples["diffkeeper_alarms", "critical"] == 1
    assert samples["diffkeeper_alarms", "warning"] == 2


def test_people_get_a_line_a_finding_worst_first(
    control: ControlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.invoke(["check"]) == 0
    assert capsys.readouterr().out == ""
    tell(control, gaps={"open": True}, sites=[STALLED])
    assert main.invoke(["check"]) == 1
    words = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert words == ["CRITICAL", "WARNING", "WARNING"]


def test_one_volume_is_asked_for_alone(control: ControlServer, capsys: pytest.CaptureFixture[str]) -> None:
    control.answers["GET /v1/volumes/orders"] = volume(gaps={"open": True})
    assert main.invoke(["check", "orders", "--format", "prometheus"]) == 0
    out = capsys.readouterr().out
    assert 'diffkeeper_volume_open_gaps{volume="orders"} 1' in out
    assert "diffkeeper_site_alive" not in out


def test_limits_that_contradict_each_other_are_refused(control: ControlServer) -> None:
    assert main.invoke(["check", "--warn-lag", "50", "--critical-lag", "40"]) == 2
