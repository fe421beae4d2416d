"""What dkctl makes of the answers of the repair service."""

from __future__ import annotations

from typing import Any, cast

from diffkeeper.domain import positions
from dkctl import client, exits, lost_files, output
from dkctl.bench import erasure
from dkctl.commands import health, nodes, rebuild, rescue, scrub

LOST = {
    "segment": "ab" * 16,
    "first_us": 1_700_000_000_000_000,
    "last_us": 1_700_000_001_000_000,
    "words": "orders from east, positions 1.1 to 1.9",
}
DAMAGE = {
    "item": "orders.x.2-2.1.0",
    "node": "node-01",
    "cause": "wrong-digest",
    "state": "quarantined",
    "detail": "flipped",
    "found_us": 1_700_000_000_000_000,
}


def an_answer(**changes: Any) -> dict[str, Any]:
    volume = {
        "volume": "orders",
        "geometry": "2+2",
        "segments": 3,
        "bytes": 5000,
        "spare": 2,
        "lost": [],
        "lost_segments": 0,
        "rebuilding": 0,
        "waiting": 0,
        "homeless": 0,
        "streams": [{"origin": "east", "sealed": 10, "seen": 12}],
    }
    return {
        "ok": True,
        "geometry": "2+2",
        "words": "survives much",
        "verdict": "All stands.",
        "volumes": [volume | changes.pop("volume", {})],
        "damages": [],
    } | changes


def test_health_shows_what_may_be_lost_and_what_is_not_sealed() -> None:
    shown = output.render(health.of_health(an_answer()), "table")
    assert "any 2" in shown and "2 frames" in shown and "All stands." in shown
    assert health.of_health(an_answer()).exit is exits.Exit.DONE


def test_health_names_what_is_lost_and_damaged_and_asks_for_attention() -> None:
    answer = health.of_health(
        an_answer(ok=False, volume={"spare": 0, "lost": [LOST], "lost_segments": 1}, damages=[DAMAGE])
    )
    shown = output.render(answer, "table")
    assert answer.exit is exits.Exit.ATTENTION
    assert "positions 1.1 to 1.9" in shown and "none" in shown and "node-01" in shown


def test_a_scrub_that_finds_damage_asks_for_attention() -> None:
    done = {"found": 1, "stripes_total": 3, "bytes_done": 4096, "damages": [DAMAGE]}
    assert scrub.of_scrub(done).exit is exits.Exit.ATTENTION
    assert scrub.of_scrub(done | {"found": 0, "damages": []}).exit is exits.Exit.DONE


def test_the_tour_shows_how_long_it_still_takes() -> None:
    tour = {
        "tour": 4,
        "running": True,
        "stripes_done": 1,
        "stripes_total": 3,
        "bytes_done": 10,
        "bytes_per_s": 1024,
        "remaining_s": 61.0,
    }
    shown = output.render(scrub.of_progress({"scrub": tour, "last_tour": {"ended_us": None}}), "table")
    assert "1m01s" in shown and "1.0 KiB/s" in shown and "1 of 3" in shown


def test_a_rebuild_that_could_not_do_all_is_partly_done() -> None:
    done = {
        "shards_written": 2,
        "bytes_written": 99,
        "stripes_total": 2,
        "homeless": 1,
        "failed": ["x: too few"],
    }
    answer = rebuild.of_rebuild(done | {"health": an_answer()})
    assert answer.exit is exits.Exit.PARTLY
    assert "x: too few" in output.render(answer, "table")


def test_nodes_that_are_not_well_are_named() -> None:
    node = {
        "node": "node-01",
        "domain": "east",
        "state": "away",
        "shards": 3,
        "stored_bytes": 9,
        "damaged": 0,
    }
    status = {"geometry": "2+2", "words": "survives much", "nodes": [node | {"away_since_us": 1}]}
    answer = nodes.of_nodes(status, {"nodes": [{"node": "node-01", "stopped": True, "pid": None}]})
    assert answer.exit is exits.Exit.ATTENTION
    assert "Not well: node-01" in answer.verdict and "stopped" in output.render(answer, "table")


def a_rescue(**changes: Any) -> dict[str, Any]:
    volume = {
        "volume": "orders",
        "whole": True,
        "position": "1.9",
        "frames": 9,
        "segments": 1,
        "lost": [],
        "holes": [],
        "log": "/x",
        "tree": {"path": "/back/orders/tree"},
    }
    return {"sources": ["a", "b"], "unusable": [], "damaged": [], "volumes": [volume | changes]}


def test_a_rescue_says_what_it_could_not_give_back() -> None:
    assert rescue.of_rescue(a_rescue()).exit is exits.Exit.DONE
    partly = rescue.of_rescue(
        a_rescue(
            whole=False,
            lost=[LOST | {"first": "1.1", "last": "1.4", "why": "1 of 2"}],
            holes=[{"after": "1.4", "up_to": "1.6"}],
        )
    )
    assert partly.exit is exits.Exit.ATTENTION
    shown = output.render(partly, "table")
    assert "1.1 to 1.4" in shown and "after 1.4 up to 1.6" in shown
    failed = rescue.of_rescue(a_rescue(tree={"error": {"message": "no room"}}))
    assert failed.exit is exits.Exit.PARTLY and "no room" in output.render(failed, "table")
    nothing = {"sources": [], "unusable": [{"where": "/x", "why": "empty"}], "damaged": [], "volumes": []}
    assert rescue.of_rescue(nothing).exit is exits.Exit.ATTENTION


def test_the_bench_of_coding_judges_by_the_ratio() -> None:
    rates = {
        "bytes_per_s": 9e8,
        "bare_bytes_per_s": 1e9,
        "ratio": 0.9,
        "processor_s": 1.0,
        "bare_processor_s": 0.5,
    }
    slow = rates | {"ratio": 0.5}
    report = erasure.report([{"geometry": "2+8", "encode": rates, "decode": slow, "overhead": 0.002}])
    assert {figure.name: figure.result for figure in report.figures if figure.result} == {
        "encode 2+8, of the bare rate": "reached",
        "decode 2+8, of the bare rate": "short",
        "bytes 2+8, above n/k": "reached",
    }


def test_the_bench_of_rebuilding_judges_by_the_disk_and_by_what_a_writer_feels() -> None:
    rebuilt: dict[str, Any] = {"bytes": 256e6, "bytes_per_s": 150e6, "disk_bytes_per_s": 200e6}
    one: dict[str, Any] = {
        "geometry": "4+2",
        "rebuild": rebuilt | {"processor_s": 1.0, "nodes_processor_s": 1.0},
        "foreground": {
            "quiet_ms": [1.0] * 99 + [9.0],
            "mending_ms": [1.2] * 100,
            "mended_bytes": 9e7,
            "budget_bytes_per_s": 64e6,
        },
    }
    judged = {figure.name: figure.result for figure in erasure.report([], [one]).figures}
    assert judged == {"rebuild 4+2, a node of 256 MB": "reached", "append p99 while rebuilding": "short"}
    fast = one | {"rebuild": one["rebuild"] | {"disk_bytes_per_s": 900e6}}
    judged = {figure.name: figure.result for figure in erasure.report([], [fast]).figures}
    assert judged["rebuild 4+2, a node of 256 MB"] == "short"


class HistoryOfFrames:
    """As much of control as knows which frame changed what."""

    def __init__(self, frames: dict[str, list[str]]) -> None:
        self.frames = frames

    def history(self, volume: str, action: str, query: Any) -> dict[str, Any]:
        assert (volume, action) == ("orders", "log")
        after = positions.parse(dict(query)["after"])
        told = [
            {"position": position, "paths": [{"path": path} for path in paths], "paths_total": len(paths)}
            for position, paths in self.frames.items()
            if positions.parse(position) > after
        ]
        return {"frames": told[:2]}


def test_lost_segments_name_the_files_they_changed() -> None:
    one = LOST | {"first": "2.1", "last": "2.3"}
    found = an_answer(ok=False, volume={"spare": 0, "lost": [one], "lost_segments": 1})
    frames = {"1.9": ["before"], "2.1": ["a"], "2.2": ["a", "b"], "2.3": ["c", "d", "b"], "2.4": ["later"]}
    lost_files.add_to(found, cast(client.Control, HistoryOfFrames(frames)))
    (named,) = found["volumes"][0]["lost"]
    assert (sorted(named["files"]), named["files_total"]) == (["a", "b", "c", "d"], 4)
    assert "c, d, b and 1 more" in output.render(health.of_health(found), "table")
