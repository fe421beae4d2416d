"""A moment of a volume in a directory at once, filled while it is used: what ``dkctl restore --lazy``, ``dkctl mount``
and ``dkctl run --from`` share.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

from blake3 import blake3

from diffkeeper.domain import errors
from diffkeeper.lazy import going_on, sources, trees
from dkctl import client, output, when


def why_not(target: Path) -> str | None:
    """Why this machine cannot do it; None when it can."""
    return trees.why_not_here(target)


class Lazily:
    """``target`` is absolute, and missing or empty, or what an earlier call of the same began."""

    def __init__(self, control: client.Control, deployment: Path, volume: str, target: Path) -> None:
        self._control, self._deployment = control, deployment
        self.volume, self.target = volume, target

    def goes_on(self, asked: dict[str, Any], *, force: bool = False) -> bool:
        """Whether a tree of the same is here, its filler running now. Raises Refused for one of something else, and
        for one that was left open; with ``force`` that is moved aside, and a mount of the past is just begun anew.
        """
        note = trees.begun(self.target)
        if note is None:
            return False
        if (force or note.temporary) and self._gave_up(None if note.temporary else self._aside()):
            return False
        if {key: note.asked.get(key) for key in asked} != asked:
            raise errors.Refused(
                f"{self.target} is being filled with something else ({told(note.asked)}); nothing was touched",
                reason="target-not-empty",
                hint="name another directory, or wait until that is whole",
            )
        if going_on.resume(self.target):
            output.say(f"going on with filling {self.target}")
        return trees.begun(self.target) is not None

    def _aside(self) -> Path:
        names = (self.target.with_name(f"{self.target.name}.left-open-{nth}") for nth in itertools.count(1))
        return next(name for name in names if not name.exists())

    def _gave_up(self, aside: Path | None) -> bool:
        if not going_on.give_up(self.target, aside):
            return False
        output.say(f"{self.target} had been left open" + (f"; what was there is in {aside}" if aside else ""))
        return True

    def status(self) -> dict[str, Any] | None:
        return trees.status(self.target)

    def start(
        self,
        at: str,
        paths: list[bytes],
        asked: dict[str, Any],
        *,
        background: bool = True,
        read_only: bool = False,
        temporary: bool = False,
    ) -> dict[str, Any]:
        """Make the tree and show it; the facts of the moment, with ``left_out`` and ``took_ms``."""
        began = time.monotonic()
        self.target.parent.mkdir(parents=True, exist_ok=True)
        query: client.Query = [("when", at), *(("path", path) for path in paths)]
        pin = f"filling-{blake3(bytes(self.target)).hexdigest()[:12]}"
        with self._control.history_stream(self.volume, "layout", query) as response:
            head, stream = when.open_stream(response)
            position = head["position"]
            self._control.history(self.volume, f"tags/{pin}", method="PUT", body={"when": position})
            where = sources.Address(
                self.volume,
                position,
                self._control.address,
                self._control.token,
                str(self._deployment.absolute()),
            )
            note = trees.Note(
                str(self.target), background, read_only, temporary, pin, asked | {"position": position}
            )
            made = trees.make(self.target, stream, where, note)
        if made.why_not_held is not None:
            output.say(
                f"nothing holds {self.target} if all that fills it is killed at once: {made.why_not_held}"
            )
        took_ms = round((time.monotonic() - began) * 1000, 3)
        return head | {"left_out": made.left_out, "took_ms": took_ms}


def told(asked: dict[str, Any]) -> str:
    return f"{asked.get('volume', 'unknown')} at {asked.get('position', asked.get('at', 'unknown'))}"
