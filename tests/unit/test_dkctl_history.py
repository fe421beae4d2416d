"""The commands about the past: what they refuse before asking, what they ask, what they show."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support import control_server
from tests.support.control_server import ControlServer

from diffkeeper import changes
from diffkeeper.domain import errors
from dkctl import main
from dkctl.commands import log as log_command

H = "/v1/volumes/orders/history"
AT_US = 1_700_000_000_000_000


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ControlServer]:
    with control_server.serve(tmp_path / "deployment") as server:
        monkeypatch.setenv("DIFFKEEPER_DIR", str(server.directory))
        with open("/dev/null") as nowhere:
            monkeypatch.setattr(sys, "stdin", nowhere)
            yield server


def stream(*run: changes.Change, end: bool = True) -> bytes:
    head = {"volume": "orders", "position": "1.7", "at_us": AT_US, "names": 2, "files": 1, "bytes": 5}
    records = [("head", head), *run, *([("end", {})] if end else [])]
    return b"".join(map(changes.encode, records))


FILE = [
    ("mkdir", b"d"),
    ("create", b"d/f"),
    ("write", b"d/f", 0, b"hello"),
    ("truncate", b"d/f", 5),
]


def digest(data: bytes) -> bytes:
    from blake3 import blake3

    return bytes(blake3(data).digest())


@pytest.mark.parametrize(
    "line",
    [
        ["cat", "orders", "f", "--at", "yesterday"],
        ["restore", "orders", "--at", "2026-11-22T10:00:00", "--to", "x"],
        ["diff", "orders", "5", "latest"],
        ["restore", "orders"],
        ["bisect", "orders", "--from", "1.1"],
        ["rollback", "orders"],
        ["log", "orders", "--min-size", "much"],
        ["history", "orders", "--thin", "hourly"],
    ],
)
def test_what_is_no_moment_is_refused_before_anything_is_asked(
    control: ControlServer, line: list[str]
) -> None:
    assert main.invoke(line) == 2
    assert control.asked == []


def test_a_restore_is_written_and_verified(
    control: ControlServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers[f"GET {H}/restore"] = stream(*FILE, ("digest", b"d/f", digest(b"hello")))
    assert main.invoke(["restore", "orders", "--to", str(tmp_path / "to"), "--json"]) == 0
    assert (tmp_path / "to/d/f").read_bytes() == b"hello"
    assert json.loads(capsys.readouterr().out)["position"] == "1.7"
    assert [path.name for path in tmp_path.glob(".*")] == [], "no note is left"


def test_a_restore_that_broke_off_goes_on_where_it_was(control: ControlServer, tmp_path: Path) -> None:
    whole = [*FILE, ("digest", b"d/f", digest(b"hello")), ("create", b"g"), ("write", b"g", 0, b"more")]
    control.answers[f"GET {H}/restore"] = stream(*whole, end=False)
    line = ["restore", "orders", "--at", "5m", "--to", str(tmp_path / "to")]
    assert main.invoke(line) == 3
    rest = [("mkdir", b"d"), ("create", b"d/f"), *whole[-2:], ("digest", b"g", digest(b"more"))]
    control.answers[f"GET {H}/restore"] = stream(*rest)
    assert main.invoke(line) == 0
    assert (tmp_path / "to/d/f").read_bytes() == b"hello"
    assert (tmp_path / "to/g").read_bytes() == b"more"


def test_what_an_earlier_run_restored_is_verified_too(control: ControlServer, tmp_path: Path) -> None:
    whole = [*FILE, ("digest", b"d/f", digest(b"hello"))]
    control.answers[f"GET {H}/restore"] = stream(*whole, end=False)
    line = ["restore", "orders", "--to", str(tmp_path / "to")]
    assert main.invoke(line) == 3
    (tmp_path / "to/d/f").write_bytes(b"jello")
    control.answers[f"GET {H}/restore"] = stream(("mkdir", b"d"), ("create", b"d/f"))
    assert main.invoke(line) == 3
    assert list(tmp_path.glob(".to.dkctl-restore")), "it is not taken for done"


def test_a_restore_never_touches_what_is_there(control: ControlServer, tmp_path: Path) -> None:
    there = tmp_path / "to"
    there.mkdir()
    (there / "mine").write_text("precious")
    control.answers[f"GET {H}/restore"] = stream(*FILE, ("digest", b"d/f", digest(b"hello")))
    assert main.invoke(["restore", "orders", "--to", str(there)]) == 6
    assert control.asked == []
    assert main.invoke(["restore", "orders", "--to", str(there), "--force"]) == 0
    assert (tmp_path / "to.before-restore-1/mine").read_text() == "precious"
    assert not (there / "mine").exists()


def test_a_damaged_chunk_in_the_middle_ends_a_restore_with_its_name(
    control: ControlServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failure = errors.Corrupt("chunk abc is good nowhere", reason="chunk-damaged", hint="dkctl history")
    control.answers[f"GET {H}/restore"] = stream(*FILE, ("fail", failure.to_dict()), end=False)
    assert main.invoke(["restore", "orders", "--to", str(tmp_path / "to")]) == 3
    assert "chunk abc is good nowhere" in capsys.readouterr().err


def test_cat_prints_the_bytes_and_nothing_else(
    control: ControlServer, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    control.answers[f"GET {H}/content"] = b"\xff\x00raw"
    assert main.invoke(["cat", "orders", "f"]) == 0
    assert capfdbinary.readouterr().out == b"\xff\x00raw"


def test_a_position_that_is_not_kept_has_exit_code_5_and_names_the_nearest(
    control: ControlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers[f"GET {H}/content"] = errors.NotFound(
        "position 1.9 is not kept", reason="not-kept", hint="the nearest kept: 1.7 and 1.12"
    )
    assert main.invoke(["cat", "orders", "f", "--at", "1.9"]) == 5
    assert "1.7 and 1.12" in capsys.readouterr().err


def found(**more: Any) -> dict[str, Any]:
    head = {"volume": "orders", "from": "1.1", "from_us": AT_US, "to": "1.7", "to_us": AT_US}
    counts = {"added": 0, "removed": 0, "changed": 1}
    return {**head, "counts": counts, "truncated": False, **more}


def test_a_diff_shows_text_tables_and_ranges_and_obeys_no_escape(
    control: ControlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    base = {"change": "changed", "kind": "file", "bytes": 4, "attributes": {"mode": [0o644, 0o600]}}
    row = {"change": "changed", "key": {"id": 1}, "columns": {"text": ["old", "new\x1b[2J"]}}
    table = {"table": "notes", "change": "changed", "added": 0, "removed": 0, "changed": 1, "rows": [row]}
    part = {"offset": 4096, "length": 3, "before": "000102", "after": "414243"}
    control.answers[f"GET {H}/diff"] = found(
        changes=[
            {
                **base,
                "path": "a.txt",
                "text": ["--- a/a.txt", "+++ b/a.txt", "@@ -1 +1 @@", "-x", "+y\x1b[31m"],
            },
            {**base, "path": "n.db", "sqlite": {"tables": [table]}},
            {**base, "path": "bin", "ranges": [part], "ranges_total": 1},
        ]
    )
    assert main.invoke(["diff", "orders", "1.1", "1.7"]) == 0
    out = capsys.readouterr().out
    assert "mode 0644 to 0600" in out
    assert "+ id=1: text='new" in out
    assert "41 42 43" in out
    assert "ABC" in out
    assert "\x1b" not in out
    assert main.invoke(["diff", "orders", "1.1", "1.7", "--stat", "--exit-code"]) == 1


def test_the_log_asks_with_its_filters_and_shows_what_changed(
    control: ControlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = {
        "position": "1.7",
        "count": 3,
        "bytes": 4096,
        "last_us": AT_US,
        "fidelity": "exact",
        "flags": ["barrier"],
        "paths": [{"path": "d/f", "ops": ["create", "write"], "deltas": 2, "bytes": 4000}],
        "paths_total": 4,
        "kept": False,
    }
    page = {
        "frames": [frame],
        "found": {"frames": 1, "deltas": 3, "bytes": 4096},
        "activity": None,
        "tags": {"t": "1.7"},
    }
    control.answers[f"GET {H}/log"] = page
    assert main.invoke(["log", "orders", "d/*", "--since", "5m", "--min-size", "4k"]) == 0
    out = capsys.readouterr().out
    assert "+d/f and 3 more" in out
    assert "barrier, tag:t, thinned" in out


def test_the_log_of_a_volume_without_a_history_is_that_of_its_frames(control: ControlServer) -> None:
    control.answers[f"GET {H}/log"] = errors.NotFound("none", reason="no-history")
    control.answers["GET /v1/volumes/orders/log"] = {
        "volume": "orders",
        "source": "stream:east",
        "frames": [],
    }
    assert main.invoke(["log", "orders"]) == 0
    assert main.invoke(["log", "orders", "d"]) == 5


def test_a_sparkline_shows_quiet_and_busy_times() -> None:
    activity = {
        "from_us": AT_US,
        "to_us": AT_US + 4_000_000,
        "step_us": 1_000_000,
        "bytes": [0, 1, 400, 10_000],
    }
    assert " ▁▂█ " in log_command.sparkline(activity)


def test_a_policy_is_told_with_its_effect_and_set_only_when_asked(
    control: ControlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    point = {"position": "1.1", "at_us": AT_US}
    policy = {
        "every_write_s": 86_400,
        "every_barrier_s": 604_800,
        "steps": [{"every_s": 3600, "until_s": 2_592_000}],
    }
    control.answers[f"GET {H}"] = {
        "volume": "orders",
        "first": point,
        "last": point,
        "points": {"kept": 100, "thinned": 0},
        "bytes": {"journal": 1024},
        "checkpoints": 1,
        "archives": 0,
        "policy": {"every_write_s": None, "every_barrier_s": None, "steps": []},
        "what_if": {"policy": policy, "kept": 40, "thinned": 60, "frees_bytes": 600},
        "damaged": [],
        "chunks": {"healed": 0, "lost": 0},
    }
    control.answers[f"PUT {H}/policy"] = {"policy": policy}
    line = ["history", "orders", "--every-write", "1d", "--every-barrier", "7d", "--thin", "1h:30d"]
    assert main.invoke(line) == 0
    out = capsys.readouterr().out
    assert "every write is kept for ever" in out
    assert "every write for 1d, then every barrier for 7d, then one each 1h for 30d" in out
    assert main.invoke([*line, "--set"]) == 6, "nobody could be asked"
    assert control.bodies(f"PUT {H}/policy") == []
    assert main.invoke([*line, "--set", "--yes"]) == 0
    assert control.bodies(f"PUT {H}/policy") == [policy]


@pytest.mark.parametrize("group", ["tag", "branch"])
def test_the_short_form_of_a_group_is_its_first_command(control: ControlServer, group: str) -> None:
    kind = {"tag": "tags", "branch": "branches"}[group]
    control.answers[f"PUT {H}/{kind}/good"] = {
        "name": "good",
        "position": "1.7",
        "at_us": AT_US,
        "path": "/b",
    }
    assert main.invoke([group, "orders", "good", "--at", "5m"]) == 0
    assert control.bodies(f"PUT {H}/{kind}/good") == [{"when": "5m"}]
