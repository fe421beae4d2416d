"""Operations: what was asked, how far it is, how long each step took; one file each under
``control/operations``, a line for each state, fsynced.

A record is written before the effects of a state are carried out, so whoever finds it after a crash knows
which effect may have happened. Operations are never deleted: they are the history of who led when.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import msgspec

from diffkeeper import atomic_files
from diffkeeper.domain import errors
from diffkeeper_control import failover, failover_requests
from diffkeeper_control.failover import Phase
from diffkeeper_control.registry import Struct


class Step(Struct, frozen=True):
    phase: str
    started_us: int
    took_ms: float | None = None
    outcome: str | None = None  # done, failed or retried; None while it goes on
    detail: str = ""


class Operation(Struct, frozen=True):
    id: str
    machine: failover.Failover
    loss: failover_requests.Loss
    started_us: int
    finished_us: int | None = None
    steps: tuple[Step, ...] = ()
    timings_ms: dict[str, float] = msgspec.field(default_factory=dict)

    @property
    def plan(self) -> failover.Plan:
        return self.machine.plan

    @property
    def running(self) -> bool:
        return not self.machine.phase.final


_STATE = {
    Phase.DONE: "done",
    Phase.PARTIAL: "partial",
    Phase.FAILED: "failed",
    Phase.ROLLED_BACK: "rolled-back",
}


def view(operation: Operation) -> dict[str, Any]:
    """The operation as the admin API shows it."""
    machine, plan = operation.machine, operation.plan
    trouble = machine.trouble
    reached = machine.promoted
    return {
        "id": operation.id,
        "kind": "failover",
        "volume": plan.volume,
        "from": plan.leader,
        "to": plan.target,
        "epoch": machine.epoch,
        "cause": plan.cause,
        "planned": plan.planned,
        "force": plan.force,
        "state": _STATE.get(machine.phase, "running"),
        "phase": machine.phase.value,
        "detail": trouble.message if trouble is not None else "",
        "error": None if trouble is None else {**msgspec.to_builtins(trouble), "facts": {}},
        "loss": msgspec.to_builtins(operation.loss),
        "started_us": operation.started_us,
        "finished_us": operation.finished_us,
        "age_ms": (time.time_ns() // 1000 - operation.started_us) // 1000,
        "steps": [msgspec.to_builtins(step) for step in operation.steps],
        "timings_ms": operation.timings_ms,
        "result": None
        if reached is None or machine.phase in (Phase.ROLLED_BACK, Phase.ROLL_BACK)
        else {
            "position": str(reached.position),
            "hash": reached.hash,
            "path": machine.path,
            "pid": machine.pid,
        },
    }


# Whoever finds the record of the phase before does what led here once more, with the same answers: so these records
# survive control, and need not survive a power cut.
_REACHED_AGAIN = frozenset({Phase.CATCH_UP, Phase.PROMOTE, Phase.START, Phase.FOLLOW})
# Written to the disk while what follows from it is done: the next record that must be durable takes it along at the latest.
_BESIDE = frozenset({Phase.PROMISE})


class OperationStore:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._known: dict[str, Operation] = {}
        for path in sorted(directory.glob("*.jsonl")):
            operation = _load(path)
            self._known[operation.id] = operation

    def save(self, operation: Operation) -> Operation:
        """Durable when this returns, but for what is come to again anyhow. A line at the end costs one fsync where
        replacing the file costs two, and a failover counts its milliseconds.
        """
        path = self._directory / f"{operation.id}.jsonl"
        is_new = operation.id not in self._known
        with path.open("ab") as file:
            file.write(msgspec.json.encode(operation) + b"\n")
            file.flush()
            # The first record hands out an epoch, and nobody may be told of that before it is durable.
            if is_new or operation.machine.phase not in _REACHED_AGAIN | _BESIDE:
                os.fdatasync(file.fileno())
        if is_new:
            atomic_files.fsync_directory(self._directory)
        self._known[operation.id] = operation
        return operation

    def sync_beside(self, operation: Operation) -> None:
        """Blocking, in a thread: make a record durable that nobody waits for."""
        if operation.machine.phase in _BESIDE:
            file = os.open(self._directory / f"{operation.id}.jsonl", os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fdatasync(file)
            finally:
                os.close(file)

    def get(self, operation_id: str) -> Operation:
        operation = self._known.get(operation_id)
        if operation is None:
            raise errors.NotFound(
                f"there is no operation {operation_id!r}",
                reason="unknown-operation",
                hint="dkctl status names those that run",
            )
        return operation

    def all(self, volume: str | None = None) -> list[Operation]:
        known = [operation for operation in self._known.values() if volume in (None, operation.plan.volume)]
        return sorted(known, key=lambda operation: operation.started_us)

    def unfinished(self) -> list[Operation]:
        return [operation for operation in self.all() if operation.running]


def _load(path: Path) -> Operation:
    """The last whole line. One that was cut off by a crash was never acted upon, and is taken away."""
    try:
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(path, len(whole))
        return msgspec.json.decode(whole.rstrip().rpartition(b"\n")[2], type=Operation)
    except (OSError, msgspec.DecodeError) as error:
        raise errors.Misconfigured(
            f"the record {path} of an operation cannot be read: {error}; it was left as it is",
            reason="operation-unreadable",
            hint="move it away only if no failover was under way",
            path=path,
        ) from error
