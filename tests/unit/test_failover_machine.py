"""The failover machine: every phase with every outcome, as text traces; and resuming at each step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import msgspec
import pytest
from tests.support.failovers import DEAD, END, FURTHER, HAPPY, PLANNED, SILENT

from diffkeeper_control import failover
from diffkeeper_control.failover import Do, Event, Failover, Pause, Phase, Plan


def no(reason: str = "said-no", *, dead: bool = False) -> failover.Failed:
    return failover.Failed(failover.Trouble("refused", reason, "it said no"), unknown=False, leader_dead=dead)


def unknown(*, dead: bool = False) -> failover.Failed:
    return failover.Failed(
        failover.Trouble("timed-out", "no-answer", "no answer"), unknown=True, leader_dead=dead
    )


def run(plan: Plan, world: dict[Do, Event] | None = None) -> tuple[Failover, str]:
    """Play an operation in a world that answers each effect always the same; the end, and the trace."""
    answers = {**HAPPY, **(world or {})}
    machine, effects = failover.step(failover.begin(plan), failover.Resumed())
    trace = [machine.phase.value]
    for _ in range(500):
        if not effects:
            return machine, " ".join(trace)
        work = effects[-1]
        assert isinstance(work, Do)
        before = machine
        machine, effects = failover.step(machine, answers[work])
        if machine.phase is not before.phase:
            trace.append(machine.phase.value)
    raise AssertionError("the machine does not come to an end")


TRACES: list[tuple[str, Plan, dict[Do, Event], str]] = [
    ("planned", PLANNED, {}, "prepare handover promise catch_up promote attach start follow done"),
    ("dead leader", DEAD, {}, "promise catch_up promote attach start follow done"),
    ("silent leader", SILENT, {}, "fence promise catch_up promote attach start follow done"),
    (
        "no program to start",
        replace(PLANNED, start=False),
        {},
        "prepare handover promise catch_up promote attach follow done",
    ),
    ("target not close", PLANNED, {Do.PREPARE: no()}, "prepare rolled-back"),
    ("program will not stop", PLANNED, {Do.HAND_OVER: no()}, "prepare handover roll_back rolled-back"),
    (
        "program will not stop, forced",
        replace(PLANNED, force=True),
        {Do.HAND_OVER: no()},
        "prepare handover fence promise catch_up promote attach start follow done",
    ),
    (
        "handover never answers",
        PLANNED,
        {Do.HAND_OVER: unknown()},
        "prepare handover roll_back rolled-back",
    ),
    (
        "leader dies in handover, nothing acknowledged can be lost",
        PLANNED,
        {Do.HAND_OVER: unknown(dead=True)},
        "prepare handover promise catch_up promote attach start follow done",
    ),
    (
        "leader dies in handover, loss not accepted",
        replace(PLANNED, loss_accepted=False),
        {Do.HAND_OVER: unknown(dead=True)},
        "prepare handover failed",
    ),
    (
        "leader dies while the target gets close",
        PLANNED,
        {Do.PREPARE: unknown(dead=True)},
        "prepare promise catch_up promote attach start follow done",
    ),
    (
        "target will not promise",
        PLANNED,
        {Do.PROMISE: no()},
        "prepare handover promise roll_back rolled-back",
    ),
    ("dead leader, target will not promise", DEAD, {Do.PROMISE: no()}, "promise failed"),
    (
        "target never catches up",
        PLANNED,
        {Do.CATCH_UP: unknown()},
        "prepare handover promise catch_up roll_back rolled-back",
    ),
    (
        "target ends elsewhere than the handover",
        PLANNED,
        {Do.CATCH_UP: failover.CaughtUp(FURTHER)},
        "prepare handover promise catch_up roll_back rolled-back",
    ),
    (
        "another site holds more",
        DEAD,
        {Do.PROMISE: failover.Promised(FURTHER.position)},
        "promise catch_up failed",
    ),
    (
        "another site holds more, forced",
        replace(DEAD, force=True),
        {Do.PROMISE: failover.Promised(FURTHER.position)},
        "promise catch_up promote attach start follow done",
    ),
    (
        "target moves after its promise",
        PLANNED,
        {Do.PROMOTE: failover.Promoted(FURTHER, "/replica", None)},
        "prepare handover promise catch_up promote roll_back rolled-back",
    ),
    (
        "target's agent says no",
        PLANNED,
        {Do.ATTACH: no()},
        "prepare handover promise catch_up promote attach roll_back rolled-back",
    ),
    (
        "dead leader, target's agent says no",
        DEAD,
        {Do.ATTACH: no()},
        "promise catch_up promote attach failed",
    ),
    (
        "target's agent never answers",
        PLANNED,
        {Do.ATTACH: unknown()},
        "prepare handover promise catch_up promote attach failed",
    ),
    (
        "program cannot be started",
        PLANNED,
        {Do.START: no()},
        "prepare handover promise catch_up promote attach start follow partial",
    ),
    (
        "fencing fails",
        SILENT,
        {Do.FENCE: no()},
        "fence promise catch_up promote attach start follow done",
    ),
    (
        "nobody can be told to follow",
        DEAD,
        {Do.FOLLOW: no()},
        "promise catch_up promote attach start follow done",
    ),
    (
        "old leader dies while it gets the volume back",
        PLANNED,
        {Do.CATCH_UP: no(), Do.RESTORE: unknown(dead=True)},
        "prepare handover promise catch_up roll_back failed",
    ),
    (
        "old leader cannot take the volume back",
        PLANNED,
        {Do.CATCH_UP: no(), Do.RESTORE: no()},
        "prepare handover promise catch_up roll_back failed",
    ),
]


@pytest.mark.parametrize("row", TRACES, ids=[row[0] for row in TRACES])
def test_failover_goes_through_the_phases_of_its_trace(
    row: tuple[str, Plan, dict[Do, Event], str],
) -> None:
    _, plan, world, trace = row
    assert run(plan, world)[1] == trace


def test_every_phase_is_visited_by_some_trace() -> None:
    visited = {word for row in TRACES for word in row[3].split()}
    assert visited == {phase.value for phase in Phase}


@pytest.mark.parametrize("row", TRACES, ids=[row[0] for row in TRACES])
def test_operation_killed_and_resumed_at_each_step_reaches_the_same_end(
    row: tuple[str, Plan, dict[Do, Event], str],
) -> None:
    """After each step the state goes through its record on disk, and the effect is carried out once more."""
    _, plan, world, trace = row
    answers = {**HAPPY, **world}
    machine, effects = failover.step(failover.begin(plan), failover.Resumed())
    for _ in range(500):
        if not effects:
            break
        machine = msgspec.json.decode(msgspec.json.encode(machine), type=Failover)
        again, effects_again = failover.step(machine, failover.Resumed())
        assert again == machine, "resuming decides nothing"
        assert effects_again[-1] is effects[-1], "resuming does the same work"
        work = effects_again[-1]
        assert isinstance(work, Do)
        machine, effects = failover.step(machine, answers[work])
    assert machine.phase.value == trace.split()[-1]


def states() -> Iterator[Failover]:
    for plan in (PLANNED, DEAD, SILENT, replace(PLANNED, force=True), replace(PLANNED, loss_accepted=False)):
        for phase in Phase:
            for handover in (None, END):
                state = replace(failover.begin(plan), phase=phase, handover=handover)
                yield replace(state, caught_up=END, promoted=END, path="/replica")


def test_no_failure_in_any_state_is_unforeseen_and_retries_have_an_end() -> None:
    for state in states():
        for failed in (no(), no(dead=True), unknown(), unknown(dead=True)):
            machine = state
            for _ in range(3 * failover.TRIES_AFTER_ATTACH):
                machine, effects = failover.step(machine, failed)
                if not effects:
                    break
            assert machine.phase.final, f"{state.phase} never ends with {failed}"


def test_final_state_does_nothing_whatever_is_heard() -> None:
    for state in states():
        if state.phase.final:
            for event in (*HAPPY.values(), failover.Resumed(), no(), unknown()):
                assert failover.step(state, event) == (state, [])


def test_rolled_back_reign_has_an_epoch_that_was_promised_to_nobody() -> None:
    machine, _ = run(PLANNED, {Do.CATCH_UP: no()})
    assert machine.epoch == PLANNED.epoch + 1
    assert machine.trouble is not None
    assert machine.trouble.reason == "said-no"


def test_forced_failover_never_asks_the_old_leader_for_anything() -> None:
    for plan, asked in ((DEAD, set[Do]()), (SILENT, {Do.FENCE})):
        machine, effects = failover.step(failover.begin(plan), failover.Resumed())
        seen: set[Do] = set()
        while effects:
            work = effects[-1]
            assert isinstance(work, Do)
            seen.add(work)
            machine, effects = failover.step(machine, HAPPY[work])
        assert seen & {Do.PREPARE, Do.HAND_OVER, Do.FENCE, Do.RESTORE} == asked


def test_nothing_is_promoted_before_the_promise_and_the_catch_up() -> None:
    for _, plan, world, _ in TRACES:
        words = run(plan, world)[1].split()
        if "promote" in words:
            assert words.index("promise") < words.index("catch_up") < words.index("promote")
        if "attach" in words:
            assert words.index("promote") < words.index("attach")


def test_unanswered_step_is_asked_again_after_a_pause() -> None:
    machine, _ = failover.step(failover.begin(DEAD), failover.Resumed())
    machine, effects = failover.step(machine, unknown())
    assert machine.phase is Phase.PROMISE
    assert effects == [Pause(failover.RETRY_PAUSE_MS), Do.PROMISE]
