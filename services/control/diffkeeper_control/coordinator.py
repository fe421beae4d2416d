"""Carries out what the failover machine decides, records each step before and after, and resumes what was cut
off.

Each state is made durable before its effects are carried out; each effect is idempotent; so a control that
was killed at any instant goes on where its record says. The effects themselves are those of ``Hands``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import msgspec
import structlog

from diffkeeper.domain import errors
from diffkeeper_control import failover, failover_requests
from diffkeeper_control.failover import Do, Pause, Phase
from diffkeeper_control.operations import Operation, OperationStore, Step

_log = structlog.get_logger("coordinator")


class Hands(Protocol):
    """Does the work of a phase in the world. Idempotent; raises the five families."""

    async def carry_out(self, work: Do, machine: failover.Failover) -> failover.Event: ...

    def leader_is_dead(self, plan: failover.Plan) -> bool: ...

    def mark(self, operation: Operation) -> None:
        """Write into the registry that the operation is under way. Idempotent."""

    def finish(self, operation: Operation) -> None:
        """Write into the registry how the operation ended. Idempotent, also long afterwards."""


# Starts a named task of the service.
Spawn = Callable[[str, Coroutine[Any, Any, None]], object]


class Coordinator:
    """Runs operations, each in a task of its own."""

    def __init__(self, store: OperationStore, hands: Hands, spawn: Spawn) -> None:
        self._store = store
        self._hands = hands
        self._spawn = spawn
        self._ended: dict[str, asyncio.Event] = {}

    def begin(self, plan: failover.Plan, loss: failover_requests.Loss, detect_ms: float | None) -> Operation:
        """Record a new operation; ``start`` carries it out."""
        timings = {} if detect_ms is None else {"detect": round(detect_ms, 3)}
        operation = self._store.save(
            Operation(
                id=f"{plan.volume}-{plan.epoch}",
                machine=failover.begin(plan),
                loss=loss,
                started_us=_now_us(),
                timings_ms=timings,
            )
        )
        self._hands.mark(operation)
        return operation

    def start(self, operation: Operation) -> None:
        """Carry it out, or on, in a task of its own."""
        self._ended[operation.id] = asyncio.Event()
        self._spawn(f"operation {operation.id}", self.drive(operation.id))

    def resume_all(self) -> list[Operation]:
        """Go on with what an earlier control did not finish."""
        for operation in self._store.all():
            if not operation.running:
                self._hands.finish(operation)  # in case control ended between the two records
        waiting = self._store.unfinished()
        for operation in waiting:
            self._hands.mark(operation)
            _log.info("resuming", operation=operation.id, phase=operation.machine.phase.value)
            self.start(operation)
        return waiting

    async def wait(self, operation_id: str, wait_s: float) -> Operation:
        """The operation once it has ended, or as it is after ``wait_s``."""
        self._store.get(operation_id)
        ended = self._ended.get(operation_id)
        if ended is not None and wait_s > 0:
            try:
                async with asyncio.timeout(wait_s):
                    await ended.wait()
            except TimeoutError:
                pass
        return self._store.get(operation_id)

    async def drive(self, operation_id: str) -> None:
        """To the end, however it ends. The record on disk is always that of the state whose effects are under
        way.
        """
        operation = self._store.get(operation_id)
        machine, effects = failover.step(operation.machine, failover.Resumed())
        while effects:
            event: failover.Event | None = None
            for effect in effects:
                if isinstance(effect, Pause):
                    await asyncio.sleep(effect.ms / 1000)
                else:
                    operation, event = await self._carry_out(operation, effect, machine)
            assert event is not None, "every list of effects ends with work"
            machine, effects = failover.step(machine, event)
            operation = self._settle(operation, machine, event)
        self._hands.finish(operation)
        _log.info(
            "operation ended", operation=operation.id, state=machine.phase.value, **operation.timings_ms
        )
        ended = self._ended.get(operation_id)
        if ended is not None:
            ended.set()

    async def _carry_out(
        self, operation: Operation, work: Do, machine: failover.Failover
    ) -> tuple[Operation, failover.Event]:
        began, began_us = time.perf_counter(), _now_us()
        beside = asyncio.create_task(asyncio.to_thread(self._store.sync_beside, operation))
        try:
            event = await self._hands.carry_out(work, machine)
        except errors.DiffKeeperError as error:
            event = self._failure(machine, error)
        except Exception as error:  # noqa: BLE001
            # A mistake of ours in one step: the machine decides what is safe now, the operator gets the
            # traceback.
            _log.exception("a step failed in an unforeseen way", operation=operation.id, work=work.name)
            event = failover.Failed(
                failover.Trouble("error", "internal", f"{work.name.lower()} failed: {error!r}"), unknown=True
            )
        await beside
        step = Step(phase=machine.phase.value, started_us=began_us, took_ms=_ms(time.perf_counter() - began))
        return msgspec.structs.replace(operation, steps=(*operation.steps, step)), event

    def _failure(self, machine: failover.Failover, error: errors.DiffKeeperError) -> failover.Failed:
        return failover.Failed(
            failover.Trouble(error.family, error.reason, error.message, error.hint),
            unknown=isinstance(error, errors.Transient),
            leader_dead=self._hands.leader_is_dead(machine.plan),
        )

    def _settle(self, operation: Operation, machine: failover.Failover, event: failover.Event) -> Operation:
        """Record what a step came to, together with the state it led to."""
        step = operation.steps[-1]
        if isinstance(event, failover.Failed):
            retried = machine.tries > 0 and machine.phase.value == step.phase
            outcome, detail = ("retried" if retried else "failed"), event.trouble.message
        else:
            outcome, detail = "done", _detail(event)
        step = msgspec.structs.replace(step, outcome=outcome, detail=detail)
        operation = msgspec.structs.replace(
            operation,
            machine=machine,
            steps=(*operation.steps[:-1], step),
            timings_ms=_timings(operation, step, event),
        )
        if machine.phase.final:
            finished_us = _now_us()
            total = (finished_us - operation.started_us) / 1000
            operation = msgspec.structs.replace(
                operation, finished_us=finished_us, timings_ms={**operation.timings_ms, "total": total}
            )
        return self._store.save(operation)


def _timings(operation: Operation, step: Step, event: failover.Event) -> dict[str, float]:
    timings = dict(operation.timings_ms)
    assert step.took_ms is not None, "a settled step has ended"
    timings[step.phase] = round(timings.get(step.phase, 0.0) + step.took_ms, 3)
    if isinstance(event, failover.Promoted):
        handed_over = [
            past for past in operation.steps if past.phase == Phase.HANDOVER.value and past.outcome == "done"
        ]
        decided_us: float = operation.started_us
        if handed_over:
            decided_us = handed_over[-1].started_us + (handed_over[-1].took_ms or 0) * 1000
        timings["decision_to_promoted"] = round((_now_us() - decided_us) / 1000, 3)
    return timings


def _detail(event: failover.Event) -> str:
    match event:
        case failover.HandedOver(point, _, took_ms):
            spent = [f"{step} {ms:.0f} ms" for step, ms in (took_ms or {}).items() if step != "all"]
            return f"at {point.position}" + (f" ({', '.join(spent)})" if spent else "")
        case failover.CaughtUp(point) | failover.Promoted(point):
            return f"at {point.position}"
        case failover.Started(pid):
            return f"process {pid}"
        case _:
            return ""


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _now_us() -> int:
    return time.time_ns() // 1000
