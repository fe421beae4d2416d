"""Exit codes: what a script may build on. Written down here, tested, and only ever added to."""

from __future__ import annotations

import enum

from diffkeeper.domain import errors


class Exit(enum.IntEnum):
    """An unknown code means failure; ``128 + N`` is the end by signal N."""

    DONE = 0  # done and well
    ATTENTION = 1  # done, and the answer needs attention: differences, damage, degraded
    USAGE = 2
    FAILED = 3
    CANNOT_REACH = 4
    NOT_FOUND = 5
    REFUSED = 6  # for safety: fenced, stale, not empty, no confirmation
    NOT_AUTHORISED = 7
    TIMED_OUT = 8
    PARTLY = 9


# Refusals of what was typed rather than of what it would have done: bad-name, bad-level, bad-position.
_USAGE_PREFIX = "bad-"

_OF_FAMILY = {
    errors.NotFound.family: Exit.NOT_FOUND,
    errors.Unauthorised.family: Exit.NOT_AUTHORISED,
    errors.Refused.family: Exit.REFUSED,
    errors.Fenced.family: Exit.REFUSED,
    errors.Unreachable.family: Exit.CANNOT_REACH,
    errors.TimedOut.family: Exit.TIMED_OUT,
    # As the daemons exit: what was given to them is wrong.
    errors.Misconfigured.family: Exit.USAGE,
}


def of_error(error: errors.DiffKeeperError) -> Exit:
    if error.family == errors.Refused.family and error.reason.startswith(_USAGE_PREFIX):
        return Exit.USAGE
    return _OF_FAMILY.get(error.family, Exit.FAILED)


def of_signal(number: int) -> int:
    return 128 + number


def of_returncode(returncode: int) -> int:
    """The exit code that a shell would show for a child: its own, or 128 + N when signal N ended it."""
    return returncode if returncode >= 0 else of_signal(-returncode)
