"""Five families of errors, named after what the reader should do.

Adapters turn foreign exceptions into these at the edge (``raise … from``). An error carries a sentence that
says what failed and what was kept, a hint that says what to try next, and facts for machines. The same three
travel over HTTP (``to_dict``/``from_dict``), so that ``dkctl`` prints what the failing service knew.
"""

from __future__ import annotations

from typing import Any, ClassVar


class DiffKeeperError(Exception):
    """Base of all. ``reason`` is a stable kebab-case slug; ``hint`` is a command or an action."""

    family: ClassVar[str] = "error"

    def __init__(self, message: str, *, reason: str = "", hint: str = "", **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.family
        self.hint = hint
        self.facts = facts

    def to_dict(self) -> dict[str, Any]:
        return {
            "family": self.family,
            "reason": self.reason,
            "message": self.message,
            "hint": self.hint,
            "facts": {key: _plain(value) for key, value in self.facts.items()},
        }


class Transient(DiffKeeperError):
    """Try again, with an end."""

    family = "transient"


class Unreachable(Transient):
    """The other side did not answer at all."""

    family = "unreachable"


class TimedOut(Transient):
    """The wait ended; what was waited for may still happen."""

    family = "timed-out"


class Fenced(DiffKeeperError):
    """A newer epoch exists: leave the role now, acknowledge nothing more."""

    family = "fenced"


class Corrupt(DiffKeeperError):
    """Bytes are not what their hash says: quarantine, rebuild, report."""

    family = "corrupt"


class Refused(DiffKeeperError):
    """The caller asked for what must not be done; nothing was changed."""

    family = "refused"


class NotFound(Refused):
    """The caller named something that does not exist."""

    family = "not-found"


class Unauthorised(Refused):
    """The caller did not prove who it is."""

    family = "unauthorised"


class Misconfigured(DiffKeeperError):
    """The operator has to change something before this can work."""

    family = "misconfigured"


FAMILIES: dict[str, type[DiffKeeperError]] = {
    cls.family: cls
    for cls in (
        DiffKeeperError,
        Transient,
        Unreachable,
        TimedOut,
        Fenced,
        Corrupt,
        Refused,
        NotFound,
        Unauthorised,
        Misconfigured,
    )
}


def from_dict(data: dict[str, Any]) -> DiffKeeperError:
    """The error a service sent over HTTP, as the class it was raised with. An unknown family is a plain
    error.
    """
    cls = FAMILIES.get(str(data.get("family")), DiffKeeperError)
    facts = data.get("facts")
    error = cls(
        str(data.get("message", "unknown error")),
        reason=str(data.get("reason", "")),
        hint=str(data.get("hint", "")),
    )
    error.facts = dict(facts) if isinstance(facts, dict) else {}
    return error


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | bool | str | None) else str(value)
