"""``kind: Switchover`` and ``kind: Restore``: asked once, done once, and afterwards the record of it. Pure.

A request is claimed before anything happens: its status gets phase Running, what was asked, and the last operation control
knew before. An operator that was killed in between finds by that whether its own request got through, without a clock.
After an end nothing is written any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from blake3 import blake3

from diffkeeper.domain import errors, moments
from diffkeeper_operator import specs, views

Status = dict[str, Any]
_NAME_MAX = 63
_ENDED = ("Succeeded", "Failed", "Refused")


class SwitchoverSpec(specs.Shape, frozen=True, kw_only=True):
    sac: str
    to: str
    force: bool = False
    accept_loss: str | None = None
    timeout_seconds: int = 60


class RestoreSpec(specs.Shape, frozen=True, kw_only=True):
    sac: str
    at: str


Request = SwitchoverSpec | RestoreSpec


def read(kind: Literal["Switchover", "Restore"], spec: dict[str, Any]) -> Request:
    try:
        if kind == "Switchover":
            return msgspec.convert(spec, SwitchoverSpec)
        return msgspec.convert(spec, RestoreSpec)
    except msgspec.ValidationError as error:
        raise errors.Misconfigured(
            f"the {kind} does not fit the schema of this operator: {error}", reason="bad-spec"
        ) from error


def is_over(status: Status) -> bool:
    return status.get("phase") in _ENDED


def claim(request: Request, sac: specs.Sac | None, last: str, at: str) -> Status:
    """The first status: Running, or Refused when it is clear that nothing may happen."""
    begun: Status = {"startTime": at, "requested": {**msgspec.to_builtins(request), "lastOperation": last}}
    if sac is None:
        gone = errors.NotFound(
            f"there is no SAC {request.sac} in this namespace; nothing was done", reason="unknown-sac"
        )
        return begun | refused(gone, at)
    if isinstance(request, SwitchoverSpec) and request.accept_loss not in (None, sac.name):
        typed = errors.Refused(
            f"acceptLoss says {request.accept_loss!r}, and the SAC is {sac.name}; nothing was done",
            reason="wrong-name",
            hint="type the name of the SAC whose loss is accepted, in a new Switchover",
        )
        return begun | refused(typed, at)
    if isinstance(request, RestoreSpec):
        try:
            moments.parse(request.at)
        except errors.Refused as error:
            return begun | refused(error, at)
    return begun | {"phase": "Running", "volume": sac.volume, "message": "It has begun."}


def failover_body(request: SwitchoverSpec) -> dict[str, Any]:
    """What control is asked for. The loss is accepted only by who typed the name."""
    return {
        "to": request.to,
        "force": request.force,
        "accept_loss": request.accept_loss is not None,
        # The program is the pod's: Kubernetes starts it where the new leader is.
        "start": False,
        "timeout_s": request.timeout_seconds,
    }


def adopted(status: Status, known: Sequence[views.Operation]) -> views.Operation | None:
    """The operation that a claim without one had started before its operator died. ``known`` is newest last."""
    last = status["requested"].get("lastOperation") or ""
    ids = [operation.id for operation in known]
    newer = known[ids.index(last) + 1 :] if last in ids else known
    wanted = status["requested"]["to"]
    return next((operation for operation in newer if operation.to == wanted), None)


def of_operation(operation: views.Operation, at: str) -> Status:
    """What an operation adds to the status, whether it still runs or not."""
    told: Status = {
        "operation": operation.id,
        "to": operation.to,
        "steps": [_step(step) for step in operation.steps],
    }
    if operation.epoch is not None:
        told["epoch"] = operation.epoch
    if operation.state == "running":
        return told | {"message": operation.detail or "It is under way."}
    if operation.state in ("done", "partial"):
        position = str((operation.result or {}).get("position") or "")
        return told | {
            "phase": "Succeeded",
            "completionTime": at,
            "message": f"{operation.to} leads since {position or 'now'}.",
            **({"position": position} if position else {}),
        }
    error = operation.error or {}
    return told | {
        "phase": "Failed",
        "completionTime": at,
        "message": str(error.get("message") or operation.detail or f"The operation {operation.state}."),
        "hint": str(error.get("hint") or "The volume is where it was; make another Switchover."),
        "reason": str(error.get("reason") or operation.state),
    }


def already_there(to: str, at: str) -> Status:
    return {
        "phase": "Succeeded",
        "completionTime": at,
        "to": to,
        "message": f"{to} leads already; nothing was moved.",
    }


def refused(error: errors.DiffKeeperError, at: str) -> Status:
    """An end before the beginning: nothing was changed."""
    return {
        "phase": "Refused",
        "completionTime": at,
        "message": error.message,
        "hint": error.hint,
        "reason": error.reason,
    }


def branch_name(restore: str) -> str:
    """Of the branch that a Restore makes: its own name, cut and told apart where it is too long."""
    name = f"restore-{restore}"
    if len(name) <= _NAME_MAX:
        return name
    return f"{name[: _NAME_MAX - 9]}-{blake3(restore.encode()).hexdigest()[:8]}"


def of_branch(branch: views.Branch, moment: str, at: str) -> Status:
    return {
        "phase": "Succeeded",
        "completionTime": at,
        "branch": branch.name,
        "position": branch.position,
        "message": f"The state at {branch.position} stands as branch {branch.name}. What runs was not touched.",
        **({"path": branch.path} if branch.path else {}),
        **({"at": moment} if moment else {}),
    }


def _step(step: views.Step) -> dict[str, Any]:
    told: dict[str, Any] = {"phase": step.phase}
    if step.outcome is not None:
        told["outcome"] = step.outcome
    if step.took_ms is not None:
        told["tookMillis"] = round(step.took_ms)
    if step.detail:
        told["detail"] = step.detail
    return told
