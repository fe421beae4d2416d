"""Whether a tree has always been held since it could be used; where it has not, programs may have read zeros.

That cannot be where a holder stays (``holders``). Elsewhere, when the worker and the keeper were killed within an
instant, the tree says so and is not gone on with: what was made of zeros is not to be told from what was not.
"""

from __future__ import annotations

from pathlib import Path

from diffkeeper.domain import errors
from diffkeeper.lazy import keeper
from diffkeeper.lazy.marks import boot_id

# Holds the boot in which the tree was last shown.
_SHOWN = "shown"


def note_shown(folder: Path) -> None:
    """Before its mount is made. Not synced: it counts for this boot only."""
    (folder / _SHOWN).write_text(boot_id())


def was_left_open(folder: Path) -> bool:
    """Of a tree that nobody holds: whether that came without its mount having been taken away first."""
    try:
        shown = (folder / _SHOWN).read_text() == boot_id()
    except FileNotFoundError:
        return False
    return shown and not (folder / keeper.ENDED).exists()


def left_open(target: Path) -> errors.Refused:
    return errors.Refused(
        f"everything that filled {target} was killed at once, and nothing could hold it: since then programs may have "
        "read zeros for what had not come, and what they wrote there is not to be trusted; nothing was touched",
        reason="left-open",
        hint=f"end what uses it, then dkctl restore VOLUME --lazy --force --to {target}: "
        "what is there is moved aside, and it begins anew",
    )
