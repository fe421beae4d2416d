"""The coordinator: what it records, when, and that a record is enough to go on."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from tests.support.failovers import DEAD, HAPPY, PLANNED

from diffkeeper.domain import errors
from diffkeeper_control import failover, operations
from diffkeeper_control.coordinator import Coordinator
from diffkeeper_control.failover import Do, Failover, Plan
from diffkeeper_control.failover_requests import Loss
from diffkeeper_control.operations import Operation, OperationStore

LOSS = Loss("remote", 0, 0, 0, 10, 0, "nothing")


Answer = failover.Event | BaseException


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it runs, not even error handling."""


class ScriptedHands:
    """Answers each effect as told, and can be cut off before or after carrying out one of them."""

    def __init__(
        self, directory: Path, script: dict[Do, failover.Event | BaseException] | None = None
    ) -> None:
        self.script: dict[Do, failover.Event | BaseException] = {**HAPPY, **(script or {})}
        self.done: list[Do] = []
        self.finished: list[Operation] = []
        self.marked: list[str] = []
        self.killed_at: tuple[Do, str] | None = None
        self._directory = directory

    async def carry_out(self, work: Do, machine: Failover) -> failover.Event:
        (record,) = self._directory.glob("*.jsonl")
        assert json.loads(record.read_text().splitlines()[-1])["machine"]["phase"] == machine.phase.value, (
            "the state is on disk before its effect is carried out"
        )
        if self.killed_at == (work, "before"):
            raise Killed
        self.done.append(work)
        if self.killed_at == (work, "after"):
            raise Killed
        answer = self.script[work]
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def leader_is_dead(self, plan: Plan) -> bool:
        return plan.leader_dead

    def mark(self, operation: Operation) -> None:
        self.marked.append(operation.id)

    def finish(self, operation: Operation) -> None:
        self.finished.append(operation)


def coordinator(directory: Path, hands: ScriptedHands) -> Coordinator:
    def spawn(name: str, work: object) -> object:
        raise AssertionError("these tests drive operations themselves")

    return Coordinator(OperationStore(directory), hands, spawn)


async def test_every_step_is_recorded_with_its_outcome_and_time(tmp_path: Path) -> None:
    hands = ScriptedHands(tmp_path)
    moving = coordinator(tmp_path, hands)
    operation = moving.begin(PLANNED, LOSS, None)
    await moving.drive(operation.id)
    shown = operations.view(OperationStore(tmp_path).get(operation.id))
    assert shown["state"] == "done"
    assert [step["phase"] for step in shown["steps"]] == (
        ["prepare", "handover", "promise", "catch_up", "promote", "attach", "start", "follow"]
    )
    assert {step["outcome"] for step in shown["steps"]} == {"done"}
    assert shown["timings_ms"].keys() == {
        *(step["phase"] for step in shown["steps"]),
        "decision_to_promoted",
        "total",
    }
    assert shown["result"] == {"position": "1.40", "hash": "aa" * 32, "path": "/replica", "pid": 4711}
    assert [ended.id for ended in hands.finished] == [operation.id] == hands.marked


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("plan", [PLANNED, DEAD], ids=["planned", "dead"])
async def test_coordinator_killed_at_any_effect_goes_on_from_its_record(
    tmp_path: Path, plan: Plan, moment: str
) -> None:
    reference = ScriptedHands(tmp_path)
    moving = coordinator(tmp_path, reference)
    operation = moving.begin(plan, LOSS, None)
    await moving.drive(operation.id)
    for work in reference.done:
        directory = tmp_path / work.name
        directory.mkdir()
        first = ScriptedHands(directory)
        first.killed_at = (work, moment)
        moving = coordinator(directory, first)
        moving.begin(plan, LOSS, None)
        with pytest.raises(Killed):
            await moving.drive(operation.id)
        second = ScriptedHands(directory)
        await coordinator(directory, second).drive(operation.id)
        again = OperationStore(directory).get(operation.id)
        assert again.machine.phase is failover.Phase.DONE
        assert second.done[0] is work, "the effect that may have happened is carried out again"
        together = [*first.done[: reference.done.index(work)], *second.done]
        assert together == reference.done


async def test_control_that_starts_again_resumes_what_is_unfinished_and_nothing_else(tmp_path: Path) -> None:
    hands = ScriptedHands(tmp_path)
    hands.killed_at = (Do.CATCH_UP, "before")
    moving = coordinator(tmp_path, hands)
    operation = moving.begin(PLANNED, LOSS, None)
    with pytest.raises(Killed):
        await moving.drive(operation.id)
    again = ScriptedHands(tmp_path)
    tasks: list[asyncio.Task[None]] = []
    resumed = Coordinator(
        OperationStore(tmp_path), again, lambda _, work: tasks.append(asyncio.ensure_future(work))
    )
    assert [one.id for one in resumed.resume_all()] == [operation.id]
    assert not (await resumed.wait(operation.id, 5.0)).running
    await asyncio.gather(*tasks)
    assert again.marked == [operation.id]
    assert resumed.resume_all() == []
    assert [one.id for one in again.finished] == [operation.id, operation.id], "finishing is told again"


async def test_unforeseen_error_of_a_step_ends_as_a_failure_and_not_in_silence(tmp_path: Path) -> None:
    hands = ScriptedHands(tmp_path, {Do.PROMISE: errors.Refused("no", reason="stale")})
    moving = coordinator(tmp_path, hands)
    operation = moving.begin(DEAD, LOSS, 12.5)
    await moving.drive(operation.id)
    shown = operations.view(OperationStore(tmp_path).get(operation.id))
    assert shown["state"] == "failed"
    assert shown["error"]["reason"] == "stale"
    assert shown["timings_ms"]["detect"] == 12.5
    hands.script[Do.PROMISE] = ZeroDivisionError("a mistake")
    other = moving.begin(PLANNED, LOSS, None)
    await moving.drive(other.id)
    shown = operations.view(OperationStore(tmp_path).get(other.id))
    assert shown["state"] == "rolled-back"
    assert "a mistake" in shown["error"]["message"]


async def test_damaged_record_stops_control_instead_of_being_forgotten(tmp_path: Path) -> None:
    (tmp_path / "orders-2.jsonl").write_text("{}\n")
    with pytest.raises(errors.Misconfigured) as caught:
        OperationStore(tmp_path)
    assert caught.value.reason == "operation-unreadable"


async def test_line_of_a_record_that_a_crash_cut_off_is_as_if_never_written(tmp_path: Path) -> None:
    hands = ScriptedHands(tmp_path)
    hands.killed_at = (Do.PROMOTE, "before")
    moving = coordinator(tmp_path, hands)
    operation = moving.begin(PLANNED, LOSS, None)
    with pytest.raises(Killed):
        await moving.drive(operation.id)
    (record,) = tmp_path.glob("*.jsonl")
    with record.open("ab") as file:
        file.write(b'{"id": "orders-2", "mach')
    again = ScriptedHands(tmp_path)
    await coordinator(tmp_path, again).drive(operation.id)
    assert again.done[0] is Do.PROMOTE
    assert OperationStore(tmp_path).get(operation.id).machine.phase is failover.Phase.DONE
