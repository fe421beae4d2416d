"""What the client writes down of each attempt, line by line: the only thing that load and checker share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

OK = "ok"  # the service said that it is committed
FAIL = "fail"  # the service said no, or was never reached
UNKNOWN = "unknown"  # sent, and no answer came


@dataclass(frozen=True, slots=True)
class Attempt:
    id: str
    # Of what was sent: ``digest``.
    hash: str
    # CLOCK_MONOTONIC, so that two attempts can be put in order whatever the wall clock does.
    start_us: int
    end_us: int
    outcome: str
    detail: str


def digest(order_id: str, item: str, qty: int) -> str:
    return hashlib.sha256(json.dumps([order_id, item, qty]).encode()).hexdigest()


def line(attempt: Attempt) -> str:
    return json.dumps(asdict(attempt)) + "\n"


def read(path: Path) -> Iterator[Attempt]:
    with path.open(encoding="utf-8") as file:
        for text in file:
            yield Attempt(**json.loads(text))
