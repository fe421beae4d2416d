"""When standing still is an alarm: behind, and no further than ten seconds ago."""

from __future__ import annotations

from dataclasses import replace

from diffkeeper.domain import positions
from diffkeeper_capture.stalls import STALLED_S, Facts, StallWatch

S = 1_000_000
WELL = Facts(
    produced=100,
    consumed=100,
    is_probe_silent=False,
    source_us=None,
    pending_s=0.0,
    captured=positions.Position(1, 5),
    stored=positions.Position(1, 5),
    confirmed={"west": positions.Position(1, 5)},
)


def reasons(watch: StallWatch, facts: Facts, at_s: float) -> set[str]:
    return {alarm.reason for alarm in watch.look(facts, int(at_s * S))}


def test_what_is_behind_without_progress_for_ten_seconds_is_told_until_it_moves() -> None:
    behind = {
        "probe-silent": replace(WELL, is_probe_silent=True),
        "ring-unread": replace(WELL, produced=200),
        "stream-still": replace(WELL, captured=positions.Position(1, 6)),
        "mirror-still": replace(WELL, confirmed={"west": positions.Position(1, 4)}),
    }
    for reason, facts in behind.items():
        watch = StallWatch()
        assert reasons(watch, facts, 0) == set()
        assert reasons(watch, facts, STALLED_S - 1) == set()
        assert reasons(watch, facts, STALLED_S) == {reason}
        assert reasons(watch, WELL, STALLED_S + 1) == set()
        assert reasons(watch, facts, STALLED_S + 2) == set(), "it begins anew"


def test_progress_is_no_stall_however_far_behind() -> None:
    watch = StallWatch()
    for second in range(40):
        facts = replace(
            WELL,
            produced=10_000 + second,
            consumed=second,
            captured=positions.Position(1, 1000 + second),
            stored=positions.Position(1, 500 + second),
            confirmed={"west": positions.Position(1, 100 + second)},
        )
        assert reasons(watch, facts, second) == set()


def test_an_unseen_change_is_as_old_as_the_change_not_as_its_discovery() -> None:
    watch = StallWatch()
    assert reasons(watch, replace(WELL, source_us=5 * S), 14) == set()
    assert reasons(watch, replace(WELL, source_us=5 * S), 15) == {"source-unseen"}
    assert watch.alarms[0].since_us == 5 * S


def test_one_of_two_mirrors_that_stands_still_is_named() -> None:
    watch = StallWatch()
    for second in (0, 20):
        confirmed = {"west": positions.Position(1, 5), "south": positions.Position(1, 2)}
        watch.look(replace(WELL, confirmed=confirmed), second * S)
    assert [(alarm.reason, alarm.site) for alarm in watch.alarms] == [("mirror-still", "south")]
