"""What a barrier returns: how far the log is safe, at which level, who holds it, since when."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from diffkeeper.domain import errors, positions


class Level(enum.IntEnum):
    """Durability levels, weakest first. Comparable: a receipt at a level also serves every weaker one."""

    OBSERVE = 0  # the program never waits; the lag is published
    SITE = 1  # in the spool on disk, and acknowledged by the site's stream
    REMOTE = 2  # verified by another site's replicator on its own disk

    @property
    def word(self) -> str:
        return self.name.lower()


def parse_level(text: str) -> Level:
    try:
        return Level[text.upper()]
    except KeyError:
        raise errors.Refused(
            f"{text!r} is not a durability level", reason="bad-level", hint="use observe, site or remote"
        ) from None


@dataclass(frozen=True, slots=True)
class Receipt:
    volume: str
    position: positions.Position
    frame_hash: bytes
    level: Level
    holders: tuple[str, ...]  # such as ("spool:east", "stream:east", "replica:west")
    since_us: int  # unix microseconds at which the level was met

    def to_dict(self) -> dict[str, Any]:
        return {
            "volume": self.volume,
            "position": str(self.position),
            "hash": self.frame_hash.hex(),
            "level": self.level.word,
            "holders": list(self.holders),
            "since_us": self.since_us,
        }
