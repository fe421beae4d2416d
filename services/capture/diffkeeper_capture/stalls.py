"""Whether everything moves that should: from the directory to the ring, to frames, to the stream, to other sites.
Pure.

Each stage is behind the one before it for an instant all the time. Being behind *without any progress* for
``STALLED_S`` is an alarm, whatever the stage says of itself: a mirror that stands still reports that nothing is left to
do, and a probe that sees nothing sees no trouble either. So the directory itself is looked at too (``source_us``).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from diffkeeper.domain import positions

STALLED_S = 10.0


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known at one instant of how far each stage is."""

    # Ring bytes; both 0 for a probe without a ring.
    produced: int
    consumed: int
    # The kernel side did not answer.
    is_probe_silent: bool
    # When the newest change found on disk was made that the log does not have, in unix microseconds.
    source_us: int | None
    # Age of the oldest change in the open frame.
    pending_s: float
    captured: positions.Position
    stored: positions.Position
    # Of every site that is to hold a replica.
    confirmed: Mapping[str, positions.Position]


@dataclass(frozen=True, slots=True)
class Alarm:
    reason: str
    site: str | None
    since_us: int
    message: str

    def to_dict(self) -> dict[str, Any]:
        return {"reason": self.reason, "site": self.site, "since_us": self.since_us, "message": self.message}


class StallWatch:
    """``look`` is called about every second."""

    def __init__(self) -> None:
        self.alarms: list[Alarm] = []
        # Stage → (how far it was, since when in unix microseconds), while it is behind.
        self._behind: dict[str, tuple[Hashable, int]] = {}

    def look(self, facts: Facts, now_us: int) -> list[Alarm]:
        """The alarms in force; they are kept in ``alarms`` too."""
        found: list[Alarm] = []

        def check(stage: str, is_behind: bool, at: Hashable, message: str, site: str | None = None) -> None:
            key = f"{stage}:{site}"
            if not is_behind:
                self._behind.pop(key, None)
                return
            before, since_us = self._behind.get(key, (None, now_us))
            if before != at:
                since_us = now_us
            self._behind[key] = (at, since_us)
            if now_us - since_us >= STALLED_S * 1e6:
                found.append(Alarm(stage, site, since_us, message))

        check(
            "probe-silent",
            facts.is_probe_silent,
            None,
            "the probe in the kernel does not answer: writes are not seen",
        )
        check(
            "ring-unread",
            facts.produced > facts.consumed,
            facts.consumed,
            "records wait in the ring and are not read",
        )
        # How old the change is counts, not since when it was found.
        if facts.source_us is not None and now_us - facts.source_us >= STALLED_S * 1e6:
            message = "files change in the directory, and nothing is captured"
            found.append(Alarm("source-unseen", None, facts.source_us, message))
        if facts.pending_s >= STALLED_S:
            since_us = now_us - int(facts.pending_s * 1e6)
            found.append(Alarm("frames-still", None, since_us, "captured changes do not become frames"))
        check(
            "stream-still", facts.stored < facts.captured, facts.stored, "the site's stream takes no frames"
        )
        for site, position in sorted(facts.confirmed.items()):
            message = f"site {site} confirms nothing beyond {position}, and the stream holds {facts.stored}"
            check("mirror-still", position < facts.stored, position, message, site)
        self.alarms = found
        return found
