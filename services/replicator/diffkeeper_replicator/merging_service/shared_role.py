"""What control wants of a site for a shared volume."""

from __future__ import annotations

from pathlib import Path

import msgspec

from diffkeeper.domain import errors, volumes


class SharedRole(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    # The site's directory.
    path: str
    # The volume under which this site's agent captures it.
    member: str
    # All sites of the volume, this one too.
    sites: tuple[str, ...]
    # Whether its agent captures the directory now; otherwise everything is looked at now and then.
    captured: bool = True


def check(volume: str, role: SharedRole) -> None:
    volumes.check_name("volume", volume)
    volumes.check_name("volume", role.member)
    for site in role.sites:
        volumes.check_name("site", site)
    if not Path(role.path).is_absolute():
        raise errors.Refused(f"{role.path!r} is not an absolute path", reason="bad-path")
