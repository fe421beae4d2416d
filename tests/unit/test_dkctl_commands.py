"""dkctl's commands against a server that speaks the admin API: what is asked, what is shown, which exit
code.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support import control_server
from tests.support.control_server import ControlServer, operation, site, volume

from diffkeeper.domain import errors
from dkctl import main

V = "/v1/volumes/orders"


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ControlServer]:
    with control_server.serve(tmp_path / "deployment") as server:
        monkeypatch.setenv("DIFFKEEPER_DIR", str(server.directory))
        # No terminal to ask on, whatever the tests are run from.
        with open("/dev/null") as nowhere:
            monkeypatch.setattr(sys, "stdin", nowhere)
            server.answers["GET /v1/status"] = {
                "sites": [site("east"), site("west")],
                "volumes": [volume()],
                "operations": [],
            }
            yield server


def test_status_of_a_healthy_deployment_is_a_verdict_and_exit_code_0(
    control: ControlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers["GET /v1/status"] = {
        "sites": [site("east", leads=("orders",)), site("west")],
        "volumes": [volume()],
        "operations": [],
    }
    assert main.invoke(["status"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("All is well: 2 sites alive, 1 volume.\n")
    assert "1 frames, 2.0 KiB, 7 ms" in out


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"state": "leaderless", "detail": "east is dead"}, "orders is leaderless (east is dead)"),
        ({"level": {"asked": "remote", "met": False}}, "orders does not meet its level remote"),
        ({"gaps": {"open": True}}, "orders has an open gap in its capture"),
        ({"sites": [{"site": "west", "role": "follow", "state": "stalled"}]}, "at west is stalled"),
    ],
)
def test_status_that_needs_attention_says_why_and_has_exit_code_1(
    control: ControlServer, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], finding: str
) -> None:
    control.answers[f"GET {V}"] = volume(**changes)
    assert main.invoke(["status", "orders"]) == 1
    verdict = capsys.readouterr().out.splitlines()[0]
    assert verdict.startswith("Needs attention: ")
    assert finding in verdict


def test_status_as_json_is_what_control_said(
    control: ControlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers[f"GET {V}"] = volume()
    assert main.invoke(["status", "orders", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == volume()


def test_status_shows_what_a_dead_leader_left_behind_without_alarm(
    control: ControlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {"site": "east", "epoch": 1, "path": "/srv/orders", "since_us": 1_700_000_000_000_000}
    control.answers[f"GET {V}"] = volume(orphans=[kept])
    assert main.invoke(["status", "orders"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split() == ["orders", "east", "1", "2023-11-14T22:13:20.000Z", "/srv/orders"]


def test_a_volume_that_is_unknown_has_exit_code_5(
    control: ControlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.invoke(["status", "other"]) == 5
    told = capsys.readouterr()
    assert told.out == ""
    assert "cause: unknown-volume" in told.err


def test_a_name_is_quoted_on_its_way_to_control(control: ControlServer) -> None:
    assert main.invoke(["sync", "../status?x"]) == 5
    assert control.asked[0][0] == "POST /v1/volumes/..%2Fstatus%3Fx/sync"


def test_a_wrong_token_has_exit_code_7(control: ControlServer) -> None:
    (control.directory / "token").write_text("another")
    assert main.invoke(["status"]) == 7


def test_no_deployment_has_exit_code_5_and_says_how_to_make_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.invoke(["status", "--dir", str(tmp_path / "none")]) == 5
    assert "try:   dkctl up --detach" in capsys.readouterr().err


def test_a_control_that_is_gone_has_exit_code_4(tmp_path: Path) -> None:
    with control_server.serve(tmp_path):
        pass
    assert main.invoke(["status", "--dir", str(tmp_path)]) == 4


def test_something_else_at_controls_address_has_exit_code_4(control: ControlServer) -> None:
    control.answers["GET /v1/status"] = b"<html>"
    assert main.invoke(["status"]) == 4


@pytest.mark.parametrize(
    "line",
    [
        ["no-such-command"],
        ["failover", "orders"],
        ["down", "--kill"],
        ["status", "-o", "xml"],
        ["log", "x", "-n", "0"],
    ],
)
def test_a_wrong_command_line_has_exit_code_2(control: ControlServer, line: list[str]) -> None:
    assert main.invoke(line) == 2
    assert control.asked == []


def test_sync_prints_the_receipt(control: ControlServer, capsys: pytest.CaptureFixture[str]) -> None:
    receipt = {
        "volume": "orders",
        "position": "1.42",
        "hash": "ab",
        "level": "remote",
        "holders": ["replica:west"],
    }
    control.answers[f"POST {V}/sync"] = receipt
    assert main.invoke(["sync", "orders", "--timeout", "3"]) == 0
    assert control.bodies(f"POST {V}/sync") == [{"level": "remote", "timeout_s": 3.0}]
    assert "up to position 1.42" in capsys.readouterr().out


def test_sync_that_is_not_met_in_time_has_exit_code_8(control: ControlServer) -> None:
    control.answers[f"POST {V}/sync"] = errors.TimedOut("not met", hint="dkctl status")
    assert main.invoke(["sync", "orders"]) == 8


def verification(**changes: Any) -> dict[str, Any]:
    return {
        "volume": "orders",
        "ok": True,
        "verdict": "The replica at west equals the log.",
        "chains": [{"site": "west", "ok": True, "frames": 42, "position": "1.42", "error": None}],
        "replicas": [{"site": "west", "ok": True, "compared": "tree", "position": "1.42", "differences": []}],
        "source": {"site": "east", "ok": None, "compared": "not quiet", "position": None, "differences": []},
    } | changes


def test_verify_of_equal_replicas_has_exit_code_0(
    control: ControlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers[f"POST {V}/verify"] = verification()
    assert main.invoke(["verify", "orders"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("The replica at west equals the log.\n")
    assert "not compared" in out


def test_verify_that_finds_differences_names_them_and_has_exit_code_1(
    control: ControlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    difference = {"path": "orders.db", "expected": "aa", "found": "bb"}
    replica = {
        "site": "west",
        "ok": False,
        "compared": "tree",
        "position": "1.42",
        "differences": [difference],
    }
    control.answers[f"POST {V}/verify"] = verification(ok=False, verdict="west differs.", replicas=[replica])
    assert main.invoke(["verify", "orders"]) == 1
    assert "west   orders.db   aa         bb" in capsys.readouterr().out


def test_log_shows_frames_and_refuses_what_is_no_position(
    control: ControlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = {
        "position": "1.2",
        "last_us": 1_700_000_000_123_456,
        "flags": ["barrier"],
        "count": 3,
        "bytes": 4096,
    }
    control.answers[f"GET {V}/log"] = {"volume": "orders", "source": "replicator:west", "frames": [frame]}
    assert main.invoke(["log", "orders", "--after", "1.1"]) == 0
    assert "2023-11-14T22:13:20.123Z" in capsys.readouterr().out
    assert main.invoke(["log", "orders", "--after", "yesterday"]) == 2


def test_a_planned_failover_without_a_terminal_wants_yes(
    control: ControlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers[f"GET {V}"] = volume()
    assert main.invoke(["failover", "orders", "--to", "west"]) == 6
    assert "--yes" in capsys.readouterr().err
    assert control.bodies(f"POST {V}/failover") == []


def test_a_planned_failover_follows_its_operation_and_shows_before_and_after(
    control: ControlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers[f"GET {V}"] = volume()
    control.answers[f"POST {V}/failover"] = operation(state="running", steps=[])
    control.answers["GET /v1/operations/op-1"] = [operation(state="running"), operation()]
    assert main.invoke(["failover", "orders", "--to", "west", "--yes"]) == 0
    body = control.bodies(f"POST {V}/failover")[0]
    assert body is not None
    assert (body["to"], body["force"], body["accept_loss"]) == ("west", False, False)
    told = capsys.readouterr()
    assert told.err.count("promise") == 1
    assert told.out.startswith("orders is led by west since position 2.43.\n")
    assert ["program", "pid", "77", "pid", "88"] in [line.split() for line in told.out.splitlines()]


def test_a_last_site_that_cannot_meet_remote_is_spoken_of(
    control: ControlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers[f"GET {V}"] = volume(leader_state="dead", state="leaderless")
    control.answers[f"POST {V}/failover"] = operation()
    control.answers["GET /v1/status"] = {
        "sites": [site("east", "stopped"), site("west")],
        "volumes": [volume(leader="west")],
    }
    assert main.invoke(["failover", "orders", "--to", "west", "--yes"]) == 0
    assert "each fsync at west waits" in capsys.readouterr().err
    control.answers["GET /v1/status"]["volumes"] = [volume(leader="west", durability="site")]
    assert main.invoke(["failover", "orders", "--to", "west", "--yes", "--durability", "site"]) == 0
    assert control.bodies(f"POST {V}/failover")[1]["durability"] == "site"  # type: ignore[index]
    assert "waits" not in capsys.readouterr().err


DEAD = {"leader_state": "dead", "state": "leaderless"}
AT_RISK = {
    "loss_bound": {"frames": 9, "acknowledged_writes": None, "text": "at most 9 frames, as known 1 s ago"}
}


def test_a_forced_failover_states_the_loss_and_yes_is_enough_when_nothing_acknowledged_is_lost(
    control: ControlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers[f"GET {V}"] = volume(**DEAD)
    control.answers[f"POST {V}/failover"] = operation(planned=False)
    assert main.invoke(["failover", "orders", "--to", "west", "--yes"]) == 0
    assert "nothing acknowledged can be lost" in capsys.readouterr().err
    body = control.bodies(f"POST {V}/failover")[0]
    assert body is not None
    assert body["accept_loss"] is True


def test_yes_does_not_accept_a_loss_of_acknowledged_writes(
    control: ControlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers[f"GET {V}"] = volume(**DEAD, **AT_RISK)
    assert main.invoke(["failover", "orders", "--to", "west", "--yes"]) == 6
    assert "at most 9 frames" in capsys.readouterr().err
    assert control.bodies(f"POST {V}/failover") == []
    control.answers[f"POST {V}/failover"] = operation(planned=False)
    assert main.invoke(["failover", "orders", "--to", "west", "--accept-loss"]) == 0


def test_a_leader_that_dies_between_question_and_request_is_asked_about_again(control: ControlServer) -> None:
    control.answers[f"GET {V}"] = volume()
    late = errors.Refused("the leader is dead", reason="needs-confirmation", hint="", text="at most 3 frames")
    control.answers[f"POST {V}/failover"] = [late, operation()]
    assert main.invoke(["failover", "orders", "--to", "west", "--yes"]) == 6
    assert len(control.bodies(f"POST {V}/failover")) == 1
    control.answers[f"POST {V}/failover"] = [late, operation()]
    assert main.invoke(["failover", "orders", "--to", "west", "--yes", "--accept-loss"]) == 0


@pytest.mark.parametrize("line", [["--to", "east"], ["--to", "west"]])
def test_what_control_will_refuse_is_not_asked_about(control: ControlServer, line: list[str]) -> None:
    control.answers[f"GET {V}"] = volume(leader_state="unreachable")
    control.answers[f"POST {V}/failover"] = errors.Refused("no", reason="refused-by-control", hint="")
    assert main.invoke(["failover", "orders", *line]) == 6
    assert len(control.bodies(f"POST {V}/failover")) == 1


def test_a_failover_whose_program_did_not_start_is_partly_done(
    control: ControlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers[f"GET {V}"] = volume()
    error = errors.NotFound("there is no program", reason="no-program", hint="").to_dict()
    control.answers[f"POST {V}/failover"] = operation(state="partial", error=error)
    assert main.invoke(["failover", "orders", "--to", "west", "--yes"]) == 9
    assert "did not start: there is no program" in capsys.readouterr().out


def test_a_failover_that_failed_has_the_exit_code_of_its_error(
    control: ControlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers[f"GET {V}"] = volume()
    error = errors.TimedOut("the replica did not catch up", reason="catch-up", hint="try again").to_dict()
    control.answers[f"POST {V}/failover"] = operation(state="rolled-back", phase="catch_up", error=error)
    assert main.invoke(["failover", "orders", "--to", "west", "--yes"]) == 8
    assert "where it was: the replica did not catch up" in capsys.readouterr().err


def test_a_switchover_refuses_when_the_leader_is_not_alive(control: ControlServer) -> None:
    control.answers[f"GET {V}"] = volume(**DEAD)
    assert main.invoke(["switchover", "orders", "--to", "west", "--yes"]) == 6
    assert control.bodies(f"POST {V}/failover") == []


def test_a_site_is_killed_by_name(control: ControlServer, capsys: pytest.CaptureFixture[str]) -> None:
    control.answers["POST /v1/sites/east/stop"] = site("east", "stopped", ("orders",))
    assert main.invoke(["down", "--site", "east", "--kill"]) == 0
    assert control.bodies("POST /v1/sites/east/stop") == [{"kill": True}]
    told = capsys.readouterr()
    assert told.out == "Site east was killed; it led orders.\n"
    assert "dkctl failover orders --to SITE" in told.err


def test_down_says_so_when_nothing_runs(control: ControlServer, capsys: pytest.CaptureFixture[str]) -> None:
    # Start time 0 is the kernel's own: process 1 is not the one that was noted.
    assert main.invoke(["down"]) == 0
    assert "Nothing of the deployment" in capsys.readouterr().out


def test_attach_waits_until_the_base_is_safe(
    control: ControlServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    behind = volume(ready=False, state="scanning")
    control.answers[f"POST {V}/attach"] = {"volume": behind, "created": True, "path": str(tmp_path / "d")}
    control.answers[f"GET {V}"] = [behind, volume()]
    assert main.invoke(["attach", "orders", "--site", "east", "--path", "d", "--durability", "site"]) == 0
    assert control.bodies(f"POST {V}/attach") == [
        {
            "site": "east",
            "path": str(tmp_path / "d"),
            "durability": "site",
            "policy": "block",
            "mode": "exclusive",
            "probe": "auto",
        }
    ]
    assert "what was there is safe" in capsys.readouterr().out


def test_attach_that_fails_while_it_scans_says_why(
    control: ControlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = volume(ready=False, state="failed", detail="the disk is full")
    control.answers[f"POST {V}/attach"] = {"volume": failed, "created": True, "path": "/x"}
    assert main.invoke(["attach", "orders", "--site", "east", "--path", "/x"]) == 3
    assert "the disk is full" in capsys.readouterr().err


def test_every_command_has_help_whose_first_paragraph_is_a_sentence() -> None:
    for name in main.COMMANDS:
        command = main.dkctl.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        assert command.help, name
        assert command.help.split("\n\n")[0].rstrip().endswith("."), name


def test_status_imports_neither_servers_nor_what_draws_on_terminals() -> None:
    code = "import sys, dkctl.main, dkctl.commands.status, dkctl.commands.failover; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not {"aiohttp", "nats", "rich", "msgpack", "asyncio", "diffkeeper_control"} & loaded
