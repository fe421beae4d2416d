"""What clients were told, and the judgement of what a program holds against it.

A client records every operation: key, digest of the payload, start, end, and what it heard. ``judge``
compares the record with what the program shows after it came back, and knows nothing of how the program was
broken:

- *ok* is present once with the bytes that were sent, or, when a lag was reported, was acknowledged inside it;
- *unknown* (the connection ended before the answer) may be present; *fail* is absent; what nobody sent is
  absent;
- what is lost is a tail: when an operation is missing, none that began after its end is present, for any
  prefix of the log is a crash image.
"""

from __future__ import annotations

import enum
import hashlib
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

# What a program shows: every key with the digest of each copy it holds.
Found = Mapping[str, list[str]]


class Outcome(enum.Enum):
    OK = "ok"  # the program said that it was done
    FAIL = "fail"  # the program said that it was not done
    UNKNOWN = "unknown"  # sent, and no answer


@dataclass(frozen=True, slots=True)
class Operation:
    key: str
    digest: str
    start_us: int
    end_us: int
    outcome: Outcome


def digest(payload: bytes) -> str:
    return hashlib.blake2b(payload, digest_size=16).hexdigest()


def now_us() -> int:
    """Unix microseconds, so that they compare with the stamps of ``dkctl status`` on the same machine."""
    return time.time_ns() // 1000


class History:
    """Operations of several clients, added as each one ends."""

    def __init__(self) -> None:
        self._operations: dict[str, Operation] = {}
        self._lock = threading.Lock()

    def add(self, operation: Operation) -> None:
        with self._lock:
            assert operation.key not in self._operations, f"the key {operation.key} was used twice"
            self._operations[operation.key] = operation

    def all(self) -> list[Operation]:
        with self._lock:
            return list(self._operations.values())

    def count(self, outcome: Outcome) -> int:
        return sum(operation.outcome is outcome for operation in self.all())

    def settle(self, found: Found) -> None:
        """Make what was seen the new truth: what is there must stay, what is not must not come back.

        Called after a judgement, so that the next round does not ask again for what an allowed loss took
        away, nor accept an *unknown* that appears later.
        """
        seen_us = now_us()
        with self._lock:
            for key, old in self._operations.items():
                outcome = Outcome.OK if key in found else Outcome.FAIL
                self._operations[key] = Operation(key, old.digest, old.start_us, seen_us, outcome)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Keys by what is wrong with them; ``lost_in_lag`` is the loss that the reported lag allows."""

    acknowledged: int
    present: int
    missing: list[str] = field(default_factory=list)
    altered: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    refused_but_present: list[str] = field(default_factory=list)
    never_sent: list[str] = field(default_factory=list)
    out_of_order: list[str] = field(default_factory=list)
    lost_in_lag: list[str] = field(default_factory=list)
    unknown_present: int = 0

    def problems(self) -> list[str]:
        named = {
            "acknowledged but missing": self.missing,
            "present with other bytes": self.altered,
            "present more than once": self.doubled,
            "refused but present": self.refused_but_present,
            "present but never sent": self.never_sent,
            "present although something before it is lost": self.out_of_order,
        }
        return [f"{len(keys)} {what}: {', '.join(sorted(keys)[:5])}" for what, keys in named.items() if keys]


def judge(operations: Iterable[Operation], found: Found, safe_until_us: int | None = None) -> Verdict:
    """Compare what was heard with what is there.

    ``safe_until_us``: operations acknowledged at or before this instant must be there, later ones may be
    lost; None: every acknowledged operation must be there.
    """
    known = {operation.key: operation for operation in operations}
    acknowledged = [op for op in known.values() if op.outcome is Outcome.OK]
    gone = [op for op in acknowledged if op.key not in found]
    within_lag = [op for op in gone if safe_until_us is not None and op.end_us > safe_until_us]
    first_gap_us = min((op.end_us for op in gone), default=None)
    there = [known[key] for key in found if key in known]
    return Verdict(
        acknowledged=len(acknowledged),
        present=len(found),
        missing=[op.key for op in gone if safe_until_us is None or op.end_us <= safe_until_us],
        altered=[op.key for op in there if any(copy != op.digest for copy in found[op.key])],
        doubled=[key for key, copies in found.items() if len(copies) > 1],
        refused_but_present=[op.key for op in there if op.outcome is Outcome.FAIL],
        never_sent=[key for key in found if key not in known],
        out_of_order=[op.key for op in there if first_gap_us is not None and op.start_us > first_gap_us],
        lost_in_lag=[op.key for op in within_lag],
        unknown_present=sum(op.outcome is Outcome.UNKNOWN for op in there),
    )
