"""The ladder of retention: every write for a while, then every barrier, then one point in each step of time,
and at the end nothing. Pure.

Which points are kept depends on nothing but the points, their age and the policy, so that applying a policy
again changes nothing, and a point that was kept by a tag stays until the tag goes.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from typing import NamedTuple

import msgspec

from diffkeeper.domain import errors

_MICROS = 1_000_000
_MOST_STEPS = 8


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Up to an age of ``until_s``, one point (the last) in every ``every_s``."""

    until_s: int
    every_s: int


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Ages in seconds; None means for ever, and then what comes after it means nothing."""

    every_write_s: int | None = None
    every_barrier_s: int | None = None
    steps: tuple[Step, ...] = ()

    @property
    def keeps_all(self) -> bool:
        return self.every_write_s is None


KEEP_ALL = Policy()
_DAY_S = 86_400
# What "for ever" is where an age has to be told.
EVER_S = 36_500 * _DAY_S
# Of a volume for which nobody chose another. Generous: what is asked for is rarely older than a week, and a point a day
# of all times costs little. Nothing that is younger than a week is ever folded by it.
DEFAULT = Policy(
    every_write_s=7 * _DAY_S,
    every_barrier_s=30 * _DAY_S,
    steps=(Step(until_s=365 * _DAY_S, every_s=3600), Step(until_s=EVER_S, every_s=_DAY_S)),
)


class Candidate(NamedTuple):
    sequence: int
    at_us: int
    is_barrier: bool


def check(policy: Policy) -> Policy:
    """Raises Refused for a ladder whose rungs do not follow each other."""
    ages = [policy.every_write_s, policy.every_barrier_s, *(step.until_s for step in policy.steps)]
    told = [age for age in ages if age is not None]
    rising = all(one <= other for one, other in itertools.pairwise(told))
    if len(policy.steps) > _MOST_STEPS or any(age < 0 for age in told) or not rising:
        raise errors.Refused(
            "each rung of a policy reaches at least as far back as the one before it",
            reason="bad-policy",
            hint="for example every write for 1d, every barrier for 7d, one an hour for 30d",
        )
    if any(step.every_s < 1 for step in policy.steps):
        raise errors.Refused("a step takes at least a second", reason="bad-policy")
    return policy


def kept(points: Sequence[Candidate], policy: Policy, now_us: int, pinned: Collection[int] = ()) -> list[int]:
    """The sequences that stay, in order. ``points`` are in order too; the last of them always stays."""
    if policy.keeps_all:
        return [point.sequence for point in points]
    stay: list[int] = []
    for nth, point in enumerate(points):
        after = points[nth + 1] if nth + 1 < len(points) else None
        if after is None or point.sequence in pinned or _stays(point, points, nth, policy, now_us):
            stay.append(point.sequence)
    return stay


def _stays(point: Candidate, points: Sequence[Candidate], nth: int, policy: Policy, now_us: int) -> bool:
    age_us = now_us - point.at_us
    assert policy.every_write_s is not None, "asked of policies that drop something"
    if age_us <= policy.every_write_s * _MICROS:
        return True
    if policy.every_barrier_s is None or age_us <= policy.every_barrier_s * _MICROS:
        return point.is_barrier
    for step in policy.steps:
        if age_us <= step.until_s * _MICROS:
            width = step.every_s * _MICROS
            # The last of its step: steps stand still in time, so it stays the last.
            return points[nth + 1].at_us // width != point.at_us // width
    return False
