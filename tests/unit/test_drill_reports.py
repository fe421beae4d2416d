"""When a drill counts as passed, and how its program is started."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from diffkeeper.domain import errors
from diffkeeper_control import drill_programs, drill_reports, registry
from diffkeeper_control.drill_reports import Asked, Report


@dataclass
class Measured:
    steps_ms: dict[str, float]
    known_ms: dict[str, float]
    behind_ms: float | None = 0.0
    error: errors.DiffKeeperError | None = None

    def judged(self, asked: Asked) -> Report:
        return drill_reports.judge(
            "orders",
            asked,
            steps_ms=self.steps_ms,
            known_ms=self.known_ms,
            taken_from="orders-2",
            behind_ms=self.behind_ms,
            behind_frames=0,
            position="1.4",
            clone_ms=3.0,
            error=self.error,
            output="",
            started_us=1,
            took_ms=500.0,
        )


HELD = {"catch_up": 5.0, "program": 100.0}
SEEN = {"promise": 10.0, "promote": 20.0, "attach": 30.0, "handover": 900.0, "start": 400.0}


def test_steps_that_a_drill_leaves_out_are_taken_from_the_last_failover() -> None:
    report = Measured(HELD, SEEN).judged(Asked(to="west", rto_ms=165.0, rpo_ms=0.0))
    assert report.ok and report.recovery_ms == 165.0
    assert report.steps_ms == {"promise": 10.0, "promote": 20.0, "attach": 30.0, **HELD}
    assert report.taken_from == "orders-2"
    assert Measured(HELD, {}).judged(Asked(to="west")).taken_from is None


@pytest.mark.parametrize(
    ("asked", "measured", "word"),
    [
        (Asked(to="west", rto_ms=164.0), Measured(HELD, SEEN), "recovery took 165 ms"),
        (Asked(to="west", rpo_ms=10.0), Measured(HELD, {}, behind_ms=11.0), "11 ms behind"),
        (Asked(to="west", rpo_ms=10.0), Measured(HELD, {}, behind_ms=None), "nobody could say"),
        (Asked(to="west"), Measured({}, {}, error=errors.TimedOut("it did not work")), "it did not work"),
    ],
)
def test_missed_objective_fails_the_drill_and_is_named(asked: Asked, measured: Measured, word: str) -> None:
    report = measured.judged(asked)
    assert not report.ok and word in report.verdict


def test_report_survives_its_file() -> None:
    report = Measured(HELD, SEEN, error=errors.Refused("no", reason="x", path=Path("/a"))).judged(
        Asked(to="west", check="true")
    )
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report


@pytest.mark.parametrize("every_s", [0.5, 9.9, 1e12, float("nan")])
def test_schedule_that_makes_no_sense_is_refused(every_s: float) -> None:
    with pytest.raises(errors.Refused):
        drill_reports.check_every(every_s)


def volume(argv: list[str], **changes: Any) -> registry.Volume:
    made = registry.created(
        "v", "east", "/srv/v", mode="exclusive", durability="remote", policy="block", probe="auto", now_us=1
    )
    command = registry.Command(argv=argv, env={"PATH": "/bin"}, cwd="/")
    changes = {"paths": {"east": "/srv/v", "west": "/replica"}, "command": command} | changes
    return msgspec.structs.replace(made, **changes)


def test_program_of_a_drill_has_the_clone_and_a_port_of_its_own_and_knows_what_it_is() -> None:
    door = registry.Door(
        host="127.0.0.1",
        port=80,
        protocol="http",
        hold_max=1,
        hold_ms=1,
        drain_ms=1,
        ports={"east": 1, "west": 2},
    )
    found = drill_programs.rehearse(
        volume(["serve", "{path}", "{port}"], door=door), "west", Path("/clone"), 999
    )
    assert found.argv == ["serve", "/clone", "999"] and found.port == 999
    assert (found.env["DIFFKEEPER_DRILL"], found.env["DIFFKEEPER_PATH"]) == ("1", "/clone")
    assert found.env["DIFFKEEPER_PORT"] == "999"
    assert "DIFFKEEPER_GATE" not in found.env, "a drill is none of the site's own programs"


def test_program_with_a_fixed_path_sees_the_clone_there() -> None:
    found = drill_programs.rehearse(volume(["serve"]), "west", Path("/clone"), 999)
    assert found.argv[0] == "unshare" and found.argv[-3:] == ["/clone", "/srv/v", "serve"]
    assert found.port is None and found.env["DIFFKEEPER_PATH"] == "/srv/v"
