"""dkctl's commands of shared volumes: what is asked, what is shown, which exit code."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support import control_server
from tests.support.control_server import ControlServer

from dkctl import main

S = "/v1/shared/desk"
CONFLICT = "3f2a" + "00" * 14


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ControlServer]:
    with control_server.serve(tmp_path / "deployment") as server:
        monkeypatch.setenv("DIFFKEEPER_DIR", str(server.directory))
        yield server


def part(site: str, **changes: Any) -> dict[str, Any]:
    return {
        "site": site,
        "state": "merging",
        "files": 3,
        "records": 7,
        "taken": {"west": 5},
        "waiting": 0,
        "unpublished": 0,
        "member": f"desk--{site}",
        "path": "/srv/desk",
        "troubles": [],
        "left_out": [],
    } | changes


def conflict(**changes: Any) -> dict[str, Any]:
    return {
        "id": CONFLICT,
        "path": "data.bin",
        "kind": "opaque",
        "automatic": False,
        "site": "west",
        "at_us": 1_700_000_000_000_000,
        "ours_b64": base64.b64encode(b"east\x1b[2J").decode(),
        "theirs_b64": base64.b64encode(b"west").decode(),
        "resolved": None,
    } | changes


def test_status_of_a_shared_volume_shows_each_site(
    control: ControlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers[f"GET {S}"] = {"volume": "desk", "mode": "shared", "sites": [part("east"), part("west")]}
    assert main.invoke(["status", "desk"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("All is well: desk is shared by east, west.\n")
    assert "desk--west" in out and "west 5" in out


def test_status_of_a_shared_volume_says_what_is_held_up_and_left_out(
    control: ControlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    held = part("east", state="held-up", troubles=[{"log": "west", "message": "its log is damaged"}])
    left = part("west", left_out=[{"path": "out", "why": "it is a link that leads out of the volume"}])
    control.answers[f"GET {S}"] = {"volume": "desk", "mode": "shared", "sites": [held, left]}
    assert main.invoke(["status", "desk"]) == 1
    verdict = capsys.readouterr().out.splitlines()[0]
    assert "its log is damaged" in verdict and "west leaves out out" in verdict


BAD_RULES = {
    "count": 0,
    "trouble": {"message": "the rules in diffkeeper.yaml are not in force: line 3", "hint": "correct it"},
}


def test_status_and_conflicts_say_once_which_rules_are_not_in_force(
    control: ControlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    ignored = [{"path": "visits", "why": "it is no number"}]
    sites = [part("east", rules=BAD_RULES), part("west", rules=BAD_RULES, not_as_ruled=ignored)]
    control.answers[f"GET {S}"] = {"volume": "desk", "mode": "shared", "sites": sites}
    assert main.invoke(["status", "desk"]) == 1
    verdict = capsys.readouterr().out.splitlines()[0]
    assert verdict.count("line 3 (correct it)") == 1 and "east, west: the rules" in verdict
    assert "west: visits is not merged as its rule says: it is no number" in verdict
    control.answers[f"GET {S}/conflicts"] = {
        "volume": "desk",
        "site": "east",
        "conflicts": [],
        "rules": BAD_RULES,
    }
    assert main.invoke(["conflicts", "desk"]) == 1
    assert "line 3 (correct it)" in capsys.readouterr().out


def test_status_of_an_unknown_volume_is_still_not_found(
    control: ControlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.invoke(["status", "desk"]) == 5
    assert "/v1/volumes/desk" in capsys.readouterr().err


def test_conflicts_that_wait_ask_for_attention_and_print_no_control_characters(
    control: ControlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    merged = conflict(id="aa" * 16, path="notes.txt", automatic=True, resolved="merged")
    control.answers[f"GET {S}/conflicts"] = {
        "volume": "desk",
        "site": "east",
        "conflicts": [conflict(), merged],
    }
    assert main.invoke(["conflicts", "desk", "-o", "wide"]) == 1
    out = capsys.readouterr().out
    assert "data.bin" in out and "notes.txt" not in out and "\x1b" not in out
    assert main.invoke(["conflicts", "desk", "--all"]) == 1
    assert "notes.txt" in capsys.readouterr().out


def test_a_conflict_is_decided_by_the_beginning_of_its_name(control: ControlServer) -> None:
    control.answers[f"GET {S}/conflicts"] = {"volume": "desk", "site": "east", "conflicts": [conflict()]}
    control.answers[f"POST {S}/conflicts/{CONFLICT}"] = {
        "id": CONFLICT,
        "choice": "theirs",
        "path": "data.bin",
    }
    assert main.invoke(["conflicts", "desk", "--resolve", "3f2a", "--keep", "theirs"]) == 0
    assert control.bodies(f"POST {S}/conflicts/{CONFLICT}") == [{"choice": "theirs"}]


def test_a_decision_needs_both_its_options(control: ControlServer) -> None:
    assert main.invoke(["conflicts", "desk", "--resolve", "3f2a"]) == 2
    assert control.asked == []


def test_blame_shows_who_wrote_each_line(control: ControlServer, capsys: pytest.CaptureFixture[str]) -> None:
    control.answers[f"GET {S}/blame"] = {
        "volume": "desk",
        "site": "east",
        "path": "notes.txt",
        "merger": "text",
        "lines": [
            {"where": "1", "site": "east", "at_us": None},
            {"where": "2", "site": "west", "at_us": 1_700_000_000_000_000},
        ],
    }
    assert main.invoke(["blame", "desk", "notes.txt"]) == 0
    out = capsys.readouterr().out
    assert "merged as text" in out and "at first" in out and "2023-11-14" in out


def test_undo_says_whose_edits_were_taken_back_and_where(
    control: ControlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers[f"POST {S}/undo"] = {
        "volume": "desk",
        "site": "east",
        "path": "notes.txt",
        "merger": "text",
        "by": "west",
        "edits": 3,
        "former_edits": 1,
        "first_us": 1_700_000_000_000_000,
        "last_us": 1_700_000_001_000_000,
        "bytes_taken_out": 12,
        "bytes_put_back": 4,
        "dry_run": False,
    }
    assert main.invoke(["undo", "desk", "notes.txt", "--by", "west", "--since", "5m"]) == 0
    out = capsys.readouterr().out
    assert "3 edits of notes.txt by west were taken back at east: 12 bytes out, 4 bytes in" in out
    assert "1 from before it was merged as text stay" in out
    assert control.bodies(f"POST {S}/undo") == [
        {
            "path_b64": base64.b64encode(b"notes.txt").decode(),
            "by": "west",
            "since": "5m",
            "dry_run": False,
        }
    ]


def test_undo_asks_whose_edits(control: ControlServer) -> None:
    assert main.invoke(["undo", "desk", "notes.txt"]) == 2
    assert control.asked == []
