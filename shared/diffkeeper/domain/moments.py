"""WHEN: how people and programs name a moment of a volume, one grammar for the command line and the API.

``latest``, a position (``7.1042``), an RFC 3339 time with a zone, an age (``5m``, ``1h30m``), ``tag:NAME``,
``branch:NAME`` (where the branch begins), and ``before:`` with any of these. Parsing and resolving are pure:
what is kept is handed in as a ``Timeline``, and so is the time of day.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from diffkeeper.domain import errors, positions

TEXT_MAX_CHARS = 400
_MOST_BEFORE = 16
_TIME = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?(?P<zone>[Zz]|[+-]\d\d:\d\d)?",
)
_POSITION = re.compile(r"[0-9]{1,18}\.[0-9]{1,18}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_AGE = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)(us|ms|s|m|h|d|w)")
_MICROS = {
    "us": 1,
    "ms": 1000,
    "s": 1_000_000,
    "m": 60_000_000,
    "h": 3_600_000_000,
    "d": 86_400_000_000,
    "w": 7 * 86_400_000_000,
}


@dataclass(frozen=True, slots=True)
class Latest:
    def __str__(self) -> str:
        return "latest"


@dataclass(frozen=True, slots=True)
class At:
    position: positions.Position

    def __str__(self) -> str:
        return str(self.position)


@dataclass(frozen=True, slots=True)
class AtTime:
    unix_us: int

    def __str__(self) -> str:
        return _written(self.unix_us)


@dataclass(frozen=True, slots=True)
class Ago:
    micros: int

    def __str__(self) -> str:
        return f"{self.micros}us"


@dataclass(frozen=True, slots=True)
class Tagged:
    name: str

    def __str__(self) -> str:
        return f"tag:{self.name}"


@dataclass(frozen=True, slots=True)
class OfBranch:
    name: str

    def __str__(self) -> str:
        return f"branch:{self.name}"


@dataclass(frozen=True, slots=True)
class Before:
    moment: Moment

    def __str__(self) -> str:
        return f"before:{self.moment}"


Moment = Latest | At | AtTime | Ago | Tagged | OfBranch | Before


@dataclass(frozen=True, slots=True)
class Point:
    """A kept position: one can go back to it. ``at_us`` is when its last delta was captured."""

    position: positions.Position
    at_us: int


class Timeline(Protocol):
    """What is kept of one volume, in order of positions."""

    def first(self) -> Point | None: ...

    def last(self) -> Point | None: ...

    def at(self, position: positions.Position) -> Point | None:
        """The point at exactly this position."""

    def below(self, position: positions.Position) -> Point | None:
        """The last point before this position."""

    def above(self, position: positions.Position) -> Point | None:
        """The first point after this position."""

    def until(self, unix_us: int) -> Point | None:
        """The last point captured no later than this."""

    def tag(self, name: str) -> positions.Position | None: ...

    def branch(self, name: str) -> positions.Position | None: ...


def parse(text: str) -> Moment:
    """WHEN as written; raises Refused (``bad-when``) and says what would do."""
    if len(text) > TEXT_MAX_CHARS:
        raise _bad(text[:40] + "…", "it is too long")
    depth = 0
    rest = text.strip()
    while rest.startswith("before:"):
        depth += 1
        rest = rest.removeprefix("before:")
    if depth > _MOST_BEFORE:
        raise _bad(text, f"more than {_MOST_BEFORE} times before:")
    moment = _plain(rest, text)
    for _ in range(depth):
        moment = Before(moment)
    return moment


def check_name(what: str, name: str) -> str:
    """A tag's or branch's name as it may be written in WHEN; raises Refused."""
    if _NAME.fullmatch(name) is None:
        raise errors.Refused(
            f"{name!r} is not a name for a {what}",
            reason="bad-name",
            hint="letters, digits, dot, dash and underscore; at most 63; a letter or digit first",
        )
    return name


def parse_age(text: str) -> int:
    """``5m``, ``1h30m``, ``2d`` as microseconds; raises Refused."""
    micros, at = 0.0, 0
    while match := _AGE.match(text, at):
        micros += float(match[1]) * _MICROS[match[2]]
        at = match.end()
    if not text or at != len(text) or micros > 1 << 60:
        raise _bad(text, "it is not an age")
    return int(micros)


def resolve(moment: Moment, timeline: Timeline, now_us: int) -> Point:
    """The kept point that ``moment`` means. Raises NotFound, and names the nearest points that are kept."""
    match moment:
        case Latest():
            return _some(timeline.last())
        case At(position):
            return _at(timeline, position, str(moment))
        case AtTime(unix_us):
            return _until(timeline, unix_us)
        case Ago(micros):
            return _until(timeline, now_us - micros)
        case Tagged(name):
            return _at(timeline, _named(timeline.tag(name), "tag", name), str(moment))
        case OfBranch(name):
            return _at(timeline, _named(timeline.branch(name), "branch", name), str(moment))
        case Before(inner):
            return _before(timeline, _anchor(inner, timeline, now_us))


def _anchor(moment: Moment, timeline: Timeline, now_us: int) -> positions.Position:
    """The place before which one looks: it need not be kept itself."""
    match moment:
        case At(position):
            return position
        case Tagged(name):
            return _named(timeline.tag(name), "tag", name)
        case OfBranch(name):
            return _named(timeline.branch(name), "branch", name)
        case _:
            return resolve(moment, timeline, now_us).position


def _before(timeline: Timeline, position: positions.Position) -> Point:
    found = timeline.below(position)
    if found is None:
        raise _not_kept(timeline, f"nothing before {position} is kept", position)
    return found


def _at(timeline: Timeline, position: positions.Position, said: str) -> Point:
    _some(timeline.last())
    found = timeline.at(position)
    if found is None:
        where = str(position) if str(position) == said else f"{position} ({said})"
        raise _not_kept(timeline, f"position {where} is not kept", position)
    return found


def _until(timeline: Timeline, unix_us: int) -> Point:
    first = _some(timeline.first())
    found = timeline.until(unix_us)
    if found is None:
        raise errors.NotFound(
            f"what is kept begins at {first.position} ({_written(first.at_us)}), after {_written(unix_us)}",
            reason="not-kept",
            hint=f"the nearest kept position is {first.position}",
            after=str(first.position),
        )
    return found


def _some(point: Point | None) -> Point:
    if point is None:
        raise errors.NotFound(
            "no history of this volume is kept here yet",
            reason="no-history",
            hint="dkctl status shows whether a replica follows it",
        )
    return point


def _named(position: positions.Position | None, what: str, name: str) -> positions.Position:
    if position is None:
        raise errors.NotFound(
            f"there is no {what} {name!r}", reason=f"unknown-{what}", hint=f"dkctl {what} list shows them"
        )
    return position


def _not_kept(timeline: Timeline, said: str, position: positions.Position) -> errors.NotFound:
    below, above = timeline.below(position), timeline.above(position)
    near = [f"{point.position} ({_written(point.at_us)})" for point in (below, above) if point is not None]
    return errors.NotFound(
        said,
        reason="not-kept",
        hint=f"the nearest kept: {' and '.join(near)}" if near else "",
        before=str(below.position) if below is not None else "",
        after=str(above.position) if above is not None else "",
    )


def _plain(text: str, whole: str) -> Moment:
    if text == "latest":
        return Latest()
    if _POSITION.fullmatch(text):
        return At(positions.parse(text))
    for prefix, kind in (("tag:", Tagged), ("branch:", OfBranch)):
        if text.startswith(prefix):
            name = text.removeprefix(prefix)
            if _NAME.fullmatch(name) is None:
                raise _bad(whole, f"{name!r} is not a name")
            return kind(name)
    match = _TIME.fullmatch(text)
    if match is not None:
        if match["zone"] is None:
            raise _bad(whole, "a time needs its zone, such as Z or +02:00")
        return AtTime(_micros(text, whole))
    return Ago(parse_age(text))


def _micros(text: str, whole: str) -> int:
    date, digits = re.sub(r"\.(\d+)", "", text), re.search(r"\.(\d+)", text)
    try:
        at = datetime.fromisoformat(date.upper().replace("Z", "+00:00"))
    except ValueError as error:
        raise _bad(whole, str(error)) from error
    fraction = int(digits[1][:6].ljust(6, "0")) if digits else 0
    return int(at.timestamp()) * 1_000_000 + fraction


def _written(unix_us: int) -> str:
    try:
        at = datetime.fromtimestamp(unix_us // 1_000_000, UTC)
    except (ValueError, OverflowError, OSError):
        return f"{unix_us} us"
    return f"{at:%Y-%m-%dT%H:%M:%S}.{unix_us % 1_000_000:06d}Z"


def _bad(text: str, why: str) -> errors.Refused:
    return errors.Refused(
        f"{text!r} does not name a moment: {why}",
        reason="bad-when",
        hint="latest, a position (7.1042), a time with its zone (2026-11-22T09:27:48Z), an age (5m, 1h30m), "
        "tag:NAME, branch:NAME, or before: with any of these",
    )
