"""By which signal a program is asked to end: SIGTERM, unless its user knows better (PostgreSQL waits for its clients
after SIGTERM, and ends at once after SIGINT). Pure, standard library only.
"""

from __future__ import annotations

import signal

from diffkeeper.domain import errors

DEFAULT = "TERM"
# These do not ask: they end, stop or go on with a program whatever it does.
_NOT_ASKING = frozenset({"KILL", "STOP", "CONT"})


def parse(text: str) -> str:
    """The name without SIG, from ``INT``, ``SIGINT``, ``int`` or ``2``; raises Refused for what is none."""
    name = text.strip().upper().removeprefix("SIG")
    if name.isascii() and name.isdigit():
        try:
            name = signal.Signals(int(name)).name.removeprefix("SIG")
        except ValueError:
            name = ""
    if name in _NOT_ASKING or f"SIG{name}" not in signal.Signals.__members__:
        raise errors.Refused(
            f"{text!r} is not a signal that asks a program to end",
            reason="bad-signal",
            hint="TERM, INT, QUIT, HUP, USR1 and the like; a program that does not end gets KILL by itself",
        )
    return name


def number(name: str) -> signal.Signals:
    return signal.Signals[f"SIG{name}"]
