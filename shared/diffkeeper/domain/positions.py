"""A place in the log of a volume: ``(epoch, sequence)``.

The sequence counts frames along the main line and goes on across epochs: the first frame of epoch n + 1 has
the sequence after its parent's. A fenced writer's tail has the same sequences under its older epoch, so
positions order correctly and never collide. Written ``7.1042``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from diffkeeper.domain import errors

_WRITTEN = re.compile(r"([0-9]{1,18})\.([0-9]{1,18})")


@dataclass(frozen=True, slots=True, order=True)
class Position:
    epoch: int
    sequence: int

    def __str__(self) -> str:
        return f"{self.epoch}.{self.sequence}"

    def next(self) -> Position:
        """The position of the frame after this one in the same epoch."""
        return Position(self.epoch, self.sequence + 1)


# Before the first frame of a volume.
START = Position(0, 0)


def parse(text: str) -> Position:
    """``"7.1042"`` as a position; raises Refused for anything else."""
    match = _WRITTEN.fullmatch(text)
    if match is None:
        raise errors.Refused(
            f"{text!r} is not a position", reason="bad-position", hint="a position looks like 7.1042"
        )
    return Position(int(match[1]), int(match[2]))
