"""The failover machine: which step comes next, and what a failed step means. Pure; ``coordinator`` carries it
out.

One operation moves one volume from its leader to a target. ``step(state, event)`` gives the next state and
the effects to carry out, in order. Every effect is idempotent, so a state that was recorded before its
effects were done is resumed by ``Resumed``, which gives the same effects again. The table stands in DESIGN.md
beside this file.

Safety rests on two rules. An epoch is handed out once (the registry keeps the highest), and a reign exists
only from the moment a frame of its epoch may have been written: up to then a planned failover can give the
volume back to its old leader, under a newer epoch still.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from diffkeeper.domain import positions

# A step whose outcome is unknown is asked again this often before it counts as failed.
TRIES = 5
RETRY_PAUSE_MS = 200
# Behind the point of no return there is nothing better than to go on trying: about a minute.
TRIES_AFTER_ATTACH = 60
RETRY_PAUSE_AFTER_ATTACH_MS = 1000


OPERATOR, AUTOMATIC = "operator", "automatic"


class Phase(enum.Enum):
    """Where an operation stands. Each phase but the last five has one effect that is carried out in it."""

    PREPARE = "prepare"  # planned only; left when the target's replica is complete and close
    HANDOVER = "handover"  # planned only; left when the leader's last frame is held by the target
    FENCE = "fence"  # forced, and the old leader not known dead; best effort: promise guards what this misses
    PROMISE = "promise"  # left when no surviving site confirms the old epoch any more
    CATCH_UP = (
        "catch_up"  # left when the target has applied all it can reach, and at least what must be there
    )
    PROMOTE = "promote"  # left when the target's directory is nobody's but the program's
    ATTACH = "attach"  # the new reign is recorded, then its capture begins: the point of no return
    START = "start"  # left when the program runs, or cannot
    FOLLOW = "follow"  # the other sites follow; who cannot now does it when it returns
    ROLL_BACK = "roll_back"  # planned only; left when the old leader has the volume again
    DONE = "done"
    PARTIAL = "partial"  # done, but for the program, which could not be started
    ROLLED_BACK = "rolled-back"  # the old leader leads; nothing was lost
    FAILED = "failed"  # stopped where it was; nothing was thrown away, and a new request may go on

    @property
    def final(self) -> bool:
        return self in _FINAL


_FINAL = frozenset({Phase.DONE, Phase.PARTIAL, Phase.ROLLED_BACK, Phase.FAILED})


@dataclass(frozen=True, slots=True)
class Point:
    """A frame: its position, and its hash as hex."""

    position: positions.Position
    hash: str


@dataclass(frozen=True, slots=True)
class Trouble:
    """What went wrong, as ``errors.DiffKeeperError`` says it."""

    family: str
    reason: str
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What was asked and what was found when it was accepted; never changes."""

    volume: str
    leader: str
    target: str
    old_epoch: int
    # Invariant: greater than every epoch ever handed out for the volume. Rolling back takes the one after it,
    # and the registry counts that as handed out from the moment it is recorded.
    epoch: int
    planned: bool  # the leader was alive
    leader_dead: bool  # for certain: its processes are gone
    force: bool
    loss_accepted: bool  # accepted by the caller, or nothing acknowledged can be lost
    start: bool
    grace_s: float
    timeout_s: float
    durability: str | None = None  # of the new reign; None: as before
    # Whose decision it was. An automatic one comes after the leader's lease ran out.
    cause: str = OPERATOR


@dataclass(frozen=True, slots=True)
class Failover:
    plan: Plan
    phase: Phase
    epoch: int
    # Invariant: planned implies the old leader is still counted on.
    planned: bool
    handover: Point | None = None
    handover_tree_state: str | None = None
    # The furthest position any surviving site other than the target holds.
    held_elsewhere: positions.Position | None = None
    caught_up: Point | None = None
    promoted: Point | None = None
    path: str | None = None
    tree_state: str | None = None
    pid: int | None = None
    tries: int = 0
    trouble: Trouble | None = None


def begin(plan: Plan) -> Failover:
    if plan.planned:
        phase = Phase.PREPARE
    else:
        phase = Phase.PROMISE if plan.leader_dead else Phase.FENCE
    return Failover(plan, phase, plan.epoch, plan.planned)


# Events: what the world said.


@dataclass(frozen=True, slots=True)
class Resumed:
    """The coordinator begins, or begins again after it was killed."""


@dataclass(frozen=True, slots=True)
class Prepared:
    pass


@dataclass(frozen=True, slots=True)
class HandedOver:
    point: Point
    tree_state: str | None
    # What the leader's agent spent its time on, in ms by step.
    took_ms: dict[str, float] | None = None


@dataclass(frozen=True, slots=True)
class FencedOff:
    """The old leader's stream takes no frame of its epoch any more, or could not be reached."""


@dataclass(frozen=True, slots=True)
class Promised:
    held_elsewhere: positions.Position | None


@dataclass(frozen=True, slots=True)
class CaughtUp:
    point: Point


@dataclass(frozen=True, slots=True)
class Promoted:
    point: Point
    path: str
    tree_state: str | None


@dataclass(frozen=True, slots=True)
class Attached:
    pass


@dataclass(frozen=True, slots=True)
class Started:
    pid: int


@dataclass(frozen=True, slots=True)
class Following:
    pass


@dataclass(frozen=True, slots=True)
class RolledBack:
    pass


@dataclass(frozen=True, slots=True)
class Failed:
    """The phase's effect failed. ``unknown``: it may have happened all the same (no answer in time)."""

    trouble: Trouble
    unknown: bool
    leader_dead: bool = False


Event = (
    Resumed
    | Prepared
    | HandedOver
    | FencedOff
    | Promised
    | CaughtUp
    | Promoted
    | Attached
    | Started
    | Following
    | RolledBack
    | Failed
)


# Effects: what must be done, idempotently.


class Do(enum.Enum):
    """The work of a phase; its parameters are the state's."""

    PREPARE = "check that the target's replica is complete and close"
    HAND_OVER = "ask the leader's agent to stop the program and end its epoch"
    FENCE = "put a fence frame into the old leader's stream"
    PROMISE = "grant the new epoch, and have every surviving site confirm nothing older"
    CATCH_UP = "have the target apply all it can reach"
    PROMOTE = "have the target's replicator let go of the directory"
    ATTACH = "record the new reign and have the target's agent capture it"
    START = "have the target's agent start the program"
    FOLLOW = "tell the other sites whom to follow"
    RESTORE = "give the volume back to its old leader"


@dataclass(frozen=True, slots=True)
class Pause:
    ms: int


Effect = Do | Pause

_WORK = {
    Phase.PREPARE: Do.PREPARE,
    Phase.HANDOVER: Do.HAND_OVER,
    Phase.FENCE: Do.FENCE,
    Phase.PROMISE: Do.PROMISE,
    Phase.CATCH_UP: Do.CATCH_UP,
    Phase.PROMOTE: Do.PROMOTE,
    Phase.ATTACH: Do.ATTACH,
    Phase.START: Do.START,
    Phase.FOLLOW: Do.FOLLOW,
    Phase.ROLL_BACK: Do.RESTORE,
}


def step(state: Failover, event: Event) -> tuple[Failover, list[Effect]]:
    """The next state and what to do in it. A final state does nothing more, whatever is heard."""
    if state.phase.final:
        return state, []
    match state.phase, event:
        case _, Resumed():
            return state, [_WORK[state.phase]]
        case Phase.PREPARE, Prepared():
            return _enter(state, Phase.HANDOVER)
        case Phase.HANDOVER, HandedOver(point, tree_state, _):
            return _enter(replace(state, handover=point, handover_tree_state=tree_state), Phase.PROMISE)
        case Phase.FENCE, FencedOff():
            return _enter(state, Phase.PROMISE)
        case Phase.PROMISE, Promised(elsewhere):
            return _enter(replace(state, held_elsewhere=elsewhere), Phase.CATCH_UP)
        case Phase.CATCH_UP, CaughtUp(point):
            return _check_caught_up(replace(state, caught_up=point))
        case Phase.PROMOTE, Promoted(point, path, tree_state):
            return _check_promoted(replace(state, promoted=point, path=path, tree_state=tree_state))
        case Phase.ATTACH, Attached():
            return _enter(state, Phase.START if state.plan.start else Phase.FOLLOW)
        case Phase.START, Started(pid):
            return _enter(replace(state, pid=pid), Phase.FOLLOW)
        case Phase.FOLLOW, Following():
            # A program that could not be started has left its trouble behind.
            return _end(state, Phase.PARTIAL if state.trouble is not None else Phase.DONE)
        case Phase.ROLL_BACK, RolledBack():
            return _end(state, Phase.ROLLED_BACK)
        case _, Failed():
            return _fail(state, event)
        case _:
            raise AssertionError(f"{event} cannot be heard in phase {state.phase}")


def _fail(state: Failover, failed: Failed) -> tuple[Failover, list[Effect]]:
    tries = TRIES_AFTER_ATTACH if state.phase is Phase.ATTACH else TRIES
    given_up = failed.leader_dead and state.phase in (Phase.PREPARE, Phase.HANDOVER, Phase.ROLL_BACK)
    if failed.unknown and state.tries + 1 < tries and not given_up:
        pause = RETRY_PAUSE_AFTER_ATTACH_MS if state.phase is Phase.ATTACH else RETRY_PAUSE_MS
        return replace(state, tries=state.tries + 1), [Pause(pause), _WORK[state.phase]]
    troubled = replace(state, trouble=failed.trouble)
    match state.phase:
        case Phase.PREPARE | Phase.HANDOVER | Phase.ROLL_BACK if failed.leader_dead:
            return _leader_died(troubled)
        case Phase.PREPARE:
            return _end(troubled, Phase.ROLLED_BACK)  # nothing had been changed
        case Phase.HANDOVER if state.plan.force:
            return _enter(replace(state, planned=False), Phase.FENCE)
        case Phase.FENCE:
            return _enter(state, Phase.PROMISE)
        case Phase.HANDOVER | Phase.PROMISE | Phase.CATCH_UP | Phase.PROMOTE:
            return _give_back(troubled)
        case Phase.ATTACH if not failed.unknown:
            return _give_back(troubled)  # a plain no: not one frame of the new epoch was written
        case Phase.START:
            return _enter(troubled, Phase.FOLLOW)
        case Phase.FOLLOW:
            return _end(state, Phase.PARTIAL if state.trouble is not None else Phase.DONE)
        case _:
            return _end(troubled, Phase.FAILED)


def _check_caught_up(state: Failover) -> tuple[Failover, list[Effect]]:
    """The target must hold the handover's frame, and all that any other survivor may have confirmed."""
    assert state.caught_up is not None, "this is asked with what was caught up"
    if state.handover is not None and state.caught_up != state.handover:
        return _give_back(
            _troubled(
                state,
                "wrong-end",
                f"the replica at {state.plan.target} stands at {state.caught_up.position} and not at the end "
                f"of the log as it was handed over, {state.handover.position}",
                "dkctl verify says which replica differs",
            )
        )
    ahead = state.held_elsewhere is not None and state.held_elsewhere > state.caught_up.position
    if state.handover is None and ahead and not state.plan.force:
        return _give_back(
            _troubled(
                state,
                "behind-another-site",
                f"another site holds the log up to {state.held_elsewhere}, {state.plan.target} only up to "
                f"{state.caught_up.position}; nothing was promoted",
                "fail over to the site that holds more, or add --force to leave that behind",
            )
        )
    return _enter(state, Phase.PROMOTE)


def _check_promoted(state: Failover) -> tuple[Failover, list[Effect]]:
    if state.promoted != state.caught_up:
        assert state.promoted is not None and state.caught_up is not None, "both steps were answered"
        return _give_back(
            _troubled(
                state,
                "moved-after-promise",
                f"the replica at {state.plan.target} moved from {state.caught_up.position} to "
                f"{state.promoted.position} after it had promised not to",
                "dkctl verify compares it with the log",
            )
        )
    return _enter(state, Phase.ATTACH)


def _leader_died(state: Failover) -> tuple[Failover, list[Effect]]:
    """The leader died while it was asked to hand over: go on without it where that is allowed."""
    if state.phase is not Phase.ROLL_BACK and state.plan.loss_accepted:
        return _enter(replace(state, planned=False, trouble=None), Phase.PROMISE)
    return _end(state, Phase.FAILED)


def _give_back(state: Failover) -> tuple[Failover, list[Effect]]:
    """Planned: the old leader goes on, under an epoch newer than any that was promised. Forced: there is
    nobody to give it to.
    """
    if not state.planned:
        return _end(state, Phase.FAILED)
    return _enter(replace(state, epoch=state.plan.epoch + 1), Phase.ROLL_BACK)


def _enter(state: Failover, phase: Phase) -> tuple[Failover, list[Effect]]:
    return replace(state, phase=phase, tries=0), [_WORK[phase]]


def _end(state: Failover, phase: Phase) -> tuple[Failover, list[Effect]]:
    return replace(state, phase=phase, tries=0), []


def _troubled(state: Failover, reason: str, message: str, hint: str) -> Failover:
    return replace(state, trouble=Trouble("refused", reason, message, hint))
