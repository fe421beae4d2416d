"""Asking control to move a volume, following the operation, and telling how it ended."""

from __future__ import annotations

from typing import Any

from diffkeeper.domain import errors
from dkctl import client, exits, output
from dkctl.output import Column

# How long one question about a running operation waits for its end.
POLL_S = 0.5
MOVE_COLUMNS = [Column("", "what"), Column("BEFORE", "before"), Column("AFTER", "after")]
TIMING_COLUMNS = [Column("STEP", "step"), Column("TOOK", "took")]


def follow(control: client.Control, operation: dict[str, Any]) -> dict[str, Any]:
    """Wait for the end of an operation, telling each step on stderr."""
    told = 0
    while True:
        for step in operation["steps"][told:]:
            if step.get("outcome") is None:
                break
            told += 1
            took = output.duration(step.get("took_ms")) or ""
            detail = f": {step['detail']}" if step.get("detail") else ""
            output.say(f"  {step['phase']:<10} {step['outcome']} {took}{detail}")
        if operation["state"] != "running":
            return operation
        operation = control.operation(operation["id"], POLL_S)


def ended(volume: dict[str, Any], operation: dict[str, Any]) -> output.Answer:
    """The answer about an operation that did what it should, at least in part; raises the operation's
    error otherwise.
    """
    if operation["state"] not in ("done", "partial"):
        raise _failure(operation)
    result = operation.get("result") or {}
    program = volume.get("program") or {}
    pid = program.get("pid") if program.get("running") else None
    moves = [
        {"what": "site", "before": operation["from"], "after": operation["to"]},
        {"what": "epoch", "before": volume.get("epoch"), "after": operation["epoch"]},
        {
            "what": "position",
            "before": (volume.get("positions") or {}).get("captured"),
            "after": result.get("position"),
        },
        {"what": "program", "before": _pid(pid), "after": _pid(result.get("pid"))},
        {"what": "path", "before": volume.get("path"), "after": result.get("path")},
    ]
    name = operation["volume"]
    if operation["state"] == "partial":
        # The program is what is missing: why, is in the error.
        error = operation.get("error") or {}
        verdict = (
            f"{name} is led by {operation['to']}, but its program did not start: {error.get('message', '?')}"
        )
        code = exits.Exit.PARTLY
    else:
        verdict = f"{name} is led by {operation['to']} since position {result.get('position', '?')}."
        code = exits.Exit.DONE
    timings = operation.get("timings_ms") or {}
    return output.Answer(
        verdict,
        operation,
        tables=[
            output.Table(MOVE_COLUMNS, moves),
            output.Table(
                TIMING_COLUMNS,
                [
                    {"step": step, "took": output.duration(ms)}
                    for step, ms in timings.items()
                    if ms is not None
                ],
            ),
        ],
        items=operation["steps"],
        names=[operation["id"]],
        exit=code,
        hints=[f"dkctl log {name}"] if code else [],
    )


def planned_text(volume: dict[str, Any], target: str) -> str:
    """What a planned move does, for the question about it."""
    runs = (volume.get("program") or {}).get("running")
    what = "its program is stopped and started" if runs else "no program runs"
    return f"{volume['volume']} moves from {volume.get('leader')} to {target}; {what}."


def loss_text(volume: dict[str, Any]) -> str:
    loss = volume.get("loss_bound") or {}
    return str(loss.get("text") or "what would be lost is not known")


def loses_nothing_acknowledged(loss: dict[str, Any] | None) -> bool:
    """Whether control vouches that no write whose fsync returned is missing at the target."""
    return bool(loss) and loss is not None and loss.get("acknowledged_writes") == 0


def _pid(pid: int | None) -> str | None:
    return None if pid is None else f"pid {pid}"


def _failure(operation: dict[str, Any]) -> errors.DiffKeeperError:
    error = operation.get("error")
    if isinstance(error, dict):
        failure = errors.from_dict(error)
    else:
        failure = errors.DiffKeeperError(str(operation.get("detail") or "the failover failed"))
    state = operation["state"]
    failure.message = (
        f"the move of {operation['volume']} to {operation['to']} {_ENDS.get(state, state)}: {failure.message}"
    )
    failure.facts = {"operation": operation["id"], "phase": operation.get("phase")} | failure.facts
    return failure


_ENDS = {"failed": "failed", "rolled-back": "was taken back, the volume is where it was"}
