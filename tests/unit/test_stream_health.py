"""What brokers say of their copies, and what follows from it."""

from __future__ import annotations

from diffkeeper_control import stream_health
from diffkeeper_control.stream_health import Replica

WHOLE = Replica(1, 3000, 3000)
HOLED = Replica(1, 3000, 1618)
BEHEADED = Replica(2074, 3000, 927)
MIRROR = Replica(1, 3000, 3000, "west")


def test_a_copy_is_whole_when_it_holds_every_number_up_to_its_end() -> None:
    assert WHOLE.lost == 0 and Replica(0, 0, 0).lost == 0
    assert (HOLED.lost, BEHEADED.lost) == (1382, 2073)


def test_one_damaged_broker_is_rebuilt_from_the_others() -> None:
    reports = {"e-1": {"dk-v-east": WHOLE}, "e-2": {"dk-v-east": HOLED}, "e-3": {"dk-v-east": WHOLE}}
    verdict = stream_health.judge(reports)
    assert verdict.rebuild == "e-2" and [damage.text() for damage in verdict.damages] == [
        "e-2 lost 1382 messages of dk-v-east"
    ]


def test_nothing_is_taken_away_unless_all_the_others_hold_everything() -> None:
    whole, holed = {"dk-v-east": WHOLE}, {"dk-v-east": HOLED}
    shorter = {"dk-v-east": Replica(1, 2000, 2000)}
    for reports in (
        {"e-1": whole, "e-2": holed, "e-3": None},
        {"e-1": whole, "e-2": holed, "e-3": holed},
        {"e-1": whole, "e-2": holed, "e-3": {}},
        {"e-1": shorter, "e-2": holed, "e-3": shorter},
        {"e": holed},
    ):
        verdict = stream_health.judge(reports)
        assert verdict.damages and verdict.rebuild is None and not verdict.recreate


def test_a_mirror_with_holes_at_most_brokers_is_made_anew() -> None:
    holed = Replica(1, 3000, 1618, "west")
    reports = {"e-1": {"dk-v-west": holed}, "e-2": {"dk-v-west": holed}, "e-3": {"dk-v-west": MIRROR}}
    assert stream_health.judge(reports).recreate == ("dk-v-west",)
    assert stream_health.judge({"e": {"dk-v-west": holed}}).recreate == ("dk-v-west",)


def test_all_well_says_nothing() -> None:
    assert stream_health.judge({"e-1": {"dk-v-east": WHOLE}, "e-2": None}) == stream_health.Verdict()


def test_a_broker_that_stands_still_behind_all_the_others_is_noticed() -> None:
    stuck, far = {"dk-v-east": Replica(1, 13, 13)}, {"dk-v-east": WHOLE}
    reports = {"e-1": stuck, "e-2": far, "e-3": far}
    assert stream_health.standing(reports, reports) == {"e-1"}
    assert stream_health.standing(reports, {"e-1": {"dk-v-east": Replica(1, 12, 12)}}) == set()
    assert stream_health.standing({"e-1": far, "e-2": far, "e-3": stuck}, {}) == set()
    assert stream_health.may_rebuild(reports, "e-1")
    assert not stream_health.may_rebuild({**reports, "e-3": None}, "e-1")


def test_a_broker_has_caught_up_when_it_is_as_far_as_the_slowest_other() -> None:
    far, near = {"dk-v-east": WHOLE}, {"dk-v-east": Replica(1, 2990, 2990)}
    assert stream_health.is_caught_up({"e-1": near, "e-2": far, "e-3": near}, "e-1")
    assert not stream_health.is_caught_up({"e-1": near, "e-2": far, "e-3": far}, "e-1")
    assert not stream_health.is_caught_up({"e-1": {}, "e-2": far, "e-3": far}, "e-1")
    assert not stream_health.is_caught_up({"e-1": None, "e-2": far, "e-3": far}, "e-1")


def test_only_streams_of_the_log_are_looked_at() -> None:
    def stream(name: str, deny_delete: bool, mirror: object = None) -> dict[str, object]:
        config = {"deny_delete": deny_delete, "mirror": mirror}
        return {"name": name, "config": config, "state": {"first_seq": 1, "last_seq": 9, "messages": 8}}

    external = {"name": "dk-v-west", "external": {"api": "$JS.west.API"}}
    found = stream_health.read_report(
        {
            "account_details": [
                {"stream_detail": [stream("dk-v-east", True), stream("dk-v-west", True, external)]},
                {"stream_detail": [stream("KV_dk-lease-v", True), stream("dk-other", False)]},
            ]
        }
    )
    assert found == {"dk-v-east": Replica(1, 9, 8), "dk-v-west": Replica(1, 9, 8, "west")}
