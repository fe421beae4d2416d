"""WHEN: its grammar, and what it resolves to on a timeline of which only some points are kept."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffkeeper.domain import errors, moments, positions
from diffkeeper.domain.moments import Point

P = positions.Position
NOW = 1_700_000_000_000_000


@dataclass
class ListTimeline:
    """The obvious one: every question looks at every point."""

    points: list[Point]
    tags: dict[str, P] = field(default_factory=dict)

    def first(self) -> Point | None:
        return min(self.points, default=None, key=lambda point: point.position)

    def last(self) -> Point | None:
        return max(self.points, default=None, key=lambda point: point.position)

    def at(self, position: P) -> Point | None:
        return next((point for point in self.points if point.position == position), None)

    def below(self, position: P) -> Point | None:
        return max((p for p in self.points if p.position < position), default=None, key=lambda p: p.position)

    def above(self, position: P) -> Point | None:
        return min((p for p in self.points if p.position > position), default=None, key=lambda p: p.position)

    def until(self, unix_us: int) -> Point | None:
        return max((p for p in self.points if p.at_us <= unix_us), default=None, key=lambda p: p.position)

    def tag(self, name: str) -> P | None:
        return self.tags.get(name)

    def branch(self, name: str) -> P | None:
        return self.tags.get(f"branch {name}")


TIMELINE = ListTimeline(
    [Point(P(1, n), NOW - (100 - n) * 1_000_000) for n in (10, 11, 20, 30)]
    + [Point(P(2, 31), NOW - 5_000_000)],
    {"good": P(1, 20), "gone": P(1, 15), "branch test1": P(1, 11)},
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("latest", "2.31"),
        ("1.20", "1.20"),
        ("70s", "1.30"),
        ("1m20s", "1.20"),
        ("1.5m", "1.10"),
        ("2023-11-14T22:13:20Z", "2.31"),
        ("2023-11-14T23:12:00.5+01:00", "1.20"),
        ("tag:good", "1.20"),
        ("branch:test1", "1.11"),
        ("before:latest", "1.30"),
        ("before:1.30", "1.20"),
        ("before:1.25", "1.20"),
        ("before:tag:gone", "1.11"),
        ("before:before:latest", "1.20"),
        ("before:70s", "1.20"),
    ],
)
def test_when_resolves_to_a_kept_position(text: str, expected: str) -> None:
    assert str(moments.resolve(moments.parse(text), TIMELINE, NOW).position) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "5",
        "m",
        "5m3",
        "1.2.3",
        "-5m",
        "tag:",
        "tag:../x",
        "branch:a b",
        "before:",
        "2023-11-14T22:13:20",
        "2023-13-14T22:13:20Z",
        "before:" * 17 + "latest",
        "9" * 500,
    ],
)
def test_what_is_not_when_is_refused_with_the_grammar(text: str) -> None:
    with pytest.raises(errors.Refused) as refused:
        moments.parse(text)
    assert refused.value.reason == "bad-when"
    assert "RFC" in refused.value.hint or "latest" in refused.value.hint


def test_a_position_that_is_not_kept_is_answered_with_the_nearest_that_are() -> None:
    with pytest.raises(errors.NotFound) as missing:
        moments.resolve(moments.parse("1.25"), TIMELINE, NOW)
    assert (missing.value.facts["before"], missing.value.facts["after"]) == ("1.20", "1.30")
    assert "1.20 (2023-11-14T22:12:00.000000Z) and 1.30" in missing.value.hint


def test_a_time_before_everything_kept_is_answered_with_the_first_that_is() -> None:
    with pytest.raises(errors.NotFound) as missing:
        moments.resolve(moments.parse("1h"), TIMELINE, NOW)
    assert missing.value.facts["after"] == "1.10"


def test_before_the_first_kept_position_there_is_nothing() -> None:
    with pytest.raises(errors.NotFound) as missing:
        moments.resolve(moments.parse("before:1.10"), TIMELINE, NOW)
    assert missing.value.facts == {"before": "", "after": "1.10"} | {"after": "1.11"}


def test_an_empty_history_says_so() -> None:
    for text in ("latest", "5m", "1.1", "before:latest"):
        with pytest.raises(errors.NotFound) as missing:
            moments.resolve(moments.parse(text), ListTimeline([]), NOW)
        assert missing.value.reason == "no-history"


MOMENTS = st.recursive(
    st.one_of(
        st.just(moments.Latest()),
        st.builds(lambda e, s: moments.At(P(e, s)), st.integers(0, 99), st.integers(0, 10**17)),
        st.builds(moments.AtTime, st.integers(0, 4_000_000_000_000_000)),
        st.builds(moments.Ago, st.integers(0, 10**11)),
        st.builds(moments.Tagged, st.sampled_from(["a", "v1.2", "x-y_z"])),
        st.builds(moments.OfBranch, st.sampled_from(["a", "test1"])),
    ),
    lambda inner: st.builds(moments.Before, inner),
    max_leaves=4,
)


@given(MOMENTS)
def test_a_moment_reads_back_as_it_is_written(moment: moments.Moment) -> None:
    assert moments.parse(str(moment)) == moment
