"""Names and settings of volumes and sites, and the names derived from them (streams, subjects)."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from diffkeeper.domain import errors

# Also a NATS subject token and a part of a stream name, so no dots, spaces or wildcards; 40 keeps stream
# names short.
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")


class Mode(enum.Enum):
    EXCLUSIVE = "exclusive"  # one writer, fenced by epochs
    SHARED = "shared"  # many writers, merged


class UnmetPolicy(enum.Enum):
    """What the gate does when a level stays unmet."""

    BLOCK = "block"
    DEGRADE = "degrade"


@dataclass(frozen=True, slots=True)
class Origin:
    """The log of one volume as written at one site."""

    volume: str
    site: str

    @property
    def stream(self) -> str:
        return f"dk-{self.volume}-{self.site}"

    @property
    def subject(self) -> str:
        return f"dk.{self.volume}.{self.site}.frame"

    @property
    def confirm_subject(self) -> str:
        """Where replicators of other sites say which frames of this origin are on their own disk."""
        return f"dk.{self.volume}.{self.site}.confirm"


# Between the name of a shared volume and the site whose directory a member captures.
MEMBER_MARK = "--"


def member(volume: str, site: str) -> str:
    """The volume under which a site captures its own directory of a shared volume."""
    return f"{volume}{MEMBER_MARK}{site}"


def is_member(name: str) -> bool:
    return MEMBER_MARK in name


def shared_of(name: str) -> str:
    """The shared volume a member belongs to."""
    return name.partition(MEMBER_MARK)[0]


def check_name(kind: str, name: str) -> str:
    """``name`` itself when it may name a volume or a site; raises Refused otherwise."""
    if _NAME.fullmatch(name) is None:
        raise errors.Refused(
            f"{name!r} cannot name a {kind}",
            reason="bad-name",
            hint="use 1 to 40 lower-case letters, digits and inner hyphens",
        )
    return name
