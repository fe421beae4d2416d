"""Whether the brokers of a site still hold every message they acknowledged, and what to do where one does not. Pure.

Nothing is ever deleted inside a stream of the log, so a hole in one can only be damage. *Measured* with
nats-server 2.15: after one flipped bit, a truncated or a deleted block on one of three replicas, that replica
drops up to thousands of messages when it starts, says nothing, counts as current, and hides them from every
reader once it leads. What shows it is the replica's own count. The cure is to take the replica's disk away:
the cluster then makes it whole from the others. A mirror is a cache, so one with holes everywhere is made anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Streams of the log begin like this; leases, which are overwritten, do not.
STREAM_PREFIX = "dk-"


@dataclass(frozen=True, slots=True)
class Replica:
    """What one broker says of its copy of a stream."""

    first: int
    last: int
    messages: int
    mirror_of: str | None = None  # the site whose stream it follows

    @property
    def lost(self) -> int:
        """Messages up to its own end that it does not hold."""
        return self.last - self.messages if self.last else 0


# By stream; None for a broker that does not answer.
Report = Mapping[str, Replica] | None


@dataclass(frozen=True, slots=True)
class Damage:
    node: str
    stream: str
    lost: int

    def text(self) -> str:
        return f"{self.node} lost {self.lost} messages of {self.stream}"


@dataclass(frozen=True, slots=True)
class Verdict:
    damages: tuple[Damage, ...] = ()
    # A node whose store is to be taken away, because all the others hold everything.
    rebuild: str | None = None
    # Mirrors to be made anew.
    recreate: tuple[str, ...] = ()


def judge(reports: Mapping[str, Report]) -> Verdict:
    """The verdict on one site, from what each of its brokers says at one moment."""
    damages = tuple(
        Damage(node, stream, replica.lost)
        for node, report in reports.items()
        for stream, replica in (report or {}).items()
        if replica.lost
    )
    if not damages:
        return Verdict()
    damaged = {damage.node for damage in damages}
    if len(damaged) == 1 and len(reports) > 2 and all(report is not None for report in reports.values()):
        node = damaged.pop()
        if _others_hold_all(reports, node):
            return Verdict(damages, rebuild=node)
    return Verdict(damages, recreate=_hopeless_mirrors(reports))


def is_caught_up(reports: Mapping[str, Report], node: str) -> bool:
    """Whether a broker holds every stream of its neighbours as far as the slowest of them."""
    own = reports.get(node)
    others = [report for name, report in reports.items() if name != node and report is not None]
    if own is None or not others:
        return own is not None
    streams = set[str]().union(*others)
    return all(
        stream in own
        and own[stream].last >= min(report[stream].last for report in others if stream in report)
        for stream in streams
    )


def standing(reports: Mapping[str, Report], before: Mapping[str, Report]) -> set[str]:
    """Brokers that have a stream less far than all the others, and no further than at the look before."""
    found = set()
    for node, report in reports.items():
        others = [other for name, other in reports.items() if name != node and other is not None]
        for stream, replica in (report or {}).items():
            ends = [other[stream].last for other in others if stream in other]
            earlier = (before.get(node) or {}).get(stream)
            if len(ends) > 1 and earlier is not None and replica.last == earlier.last < min(ends):
                found.add(node)
    return found


def may_rebuild(reports: Mapping[str, Report], node: str) -> bool:
    """Whether the others hold everything, so that a broker that cannot start may begin with an empty disk."""
    others = [report for name, report in reports.items() if name != node]
    whole = all(
        report is not None and not any(replica.lost for replica in report.values()) for report in others
    )
    return len(others) > 1 and whole


def read_report(page: Any) -> dict[str, Replica]:
    """The streams of the log in a broker's ``/jsz`` page."""
    found = {}
    for account in page.get("account_details") or []:
        for detail in account.get("stream_detail") or []:
            state, config = detail.get("state") or {}, detail.get("config") or {}
            name = str(detail.get("name"))
            if not name.startswith(STREAM_PREFIX) or not config.get("deny_delete"):
                continue
            found[name] = Replica(
                int(state.get("first_seq") or 0),
                int(state.get("last_seq") or 0),
                int(state.get("messages") or 0),
                _mirrored_site(config.get("mirror")),
            )
    return found


def _mirrored_site(mirror: Any) -> str | None:
    api = ((mirror or {}).get("external") or {}).get("api", "") if isinstance(mirror, dict) else ""
    tokens = str(api).split(".")
    return tokens[1] if len(tokens) == 3 else None


def _others_hold_all(reports: Mapping[str, Report], node: str) -> bool:
    """Whether every other broker holds each stream of the damaged one without a hole, and as far."""
    own = reports[node] or {}
    return all(
        report is not None
        and stream in report
        and not report[stream].lost
        # A follower may be a few messages behind; what it lacks, the other one has.
        and max(other[stream].last for name, other in reports.items() if name != node and other)
        >= replica.last
        for name, report in reports.items()
        if name != node
        for stream, replica in own.items()
    )


def _hopeless_mirrors(reports: Mapping[str, Report]) -> tuple[str, ...]:
    """Mirrors that no majority of brokers holds whole."""
    known = [report for report in reports.values() if report is not None]
    streams = sorted(set[str]().union(*known))
    return tuple(
        stream
        for stream in streams
        if any(report[stream].mirror_of for report in known if stream in report)
        and 2 * sum(bool(report[stream].lost) for report in known if stream in report) > len(reports)
    )
