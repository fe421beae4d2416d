"""What a replica says of itself: one word for its state, and the volume status of the admin API.

Progress is computed end to end: what the stream was seen to hold, what the journal holds, what the directory
shows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diffkeeper.domain import clocks, errors, positions

if TYPE_CHECKING:
    from diffkeeper_replicator.replica import Replica


def state_of(replica: Replica) -> str:
    """``leading``; ``failed``: the directory is of no use as it is; ``stalled``: the log is not taken;
    ``waiting``: there is nothing to take yet; ``following``.
    """
    intake, replayer, wanted = replica.intake, replica.replayer, replica.wanted
    if wanted is None:
        return "waiting"
    if wanted.role == "lead":
        return "leading"
    if intake is None or replayer is None:
        return "failed"
    trouble = replayer.trouble
    if trouble is not None and not replayer.is_log_bad and not isinstance(trouble, errors.Transient):
        return "failed"
    if trouble is not None or intake.trouble is not None:
        return "stalled"
    return "waiting" if intake.waiting or replica.opening else "following"


def status_of(replica: Replica) -> dict[str, Any]:
    intake, replayer, wanted = replica.intake, replica.replayer, replica.wanted
    promotion, trouble = replica.promotion, replica.trouble
    still = promotion.tip().position if promotion is not None else positions.START
    applied = replayer.applied.position if replayer is not None else still
    seen = max(intake.seen, applied) if intake is not None else still
    opened = replayer.directory if replayer is not None else None
    return {
        "volume": replica.volume,
        "role": wanted.role if wanted is not None else "none",
        "epoch": wanted.epoch if wanted is not None else 0,
        "promised": replica.promised,
        "leader": wanted.leader if wanted is not None else "",
        "path": str(replica.path),
        "journalled": str(intake.journal.tip.position if intake is not None else still),
        "applied": str(applied),
        "seen": str(seen),
        "base_complete": promotion is not None or (opened is not None and opened.base_complete),
        "lag": {
            "frames": max(0, seen.sequence - applied.sequence),
            "bytes": replayer.pending_bytes if replayer is not None else 0,
            "ms": _lag_ms(replica, applied, seen),
        },
        "state": state_of(replica),
        "waiting_for": _waiting_for(replica),
        "error": trouble.to_dict() if trouble is not None else None,
        # What could not be carried over to this file system or may not be, by cause.
        # The oldest position that the directory can be brought back to, and what keeping that takes.
        "undo": {
            "floor": str(opened.undo.floor) if opened is not None and opened.undo.floor is not None else None,
            "bytes": opened.undo.log.size_bytes if opened is not None else 0,
        },
        "left_out": opened.notes if opened is not None else {},
        "at_us": replica.now_us(),
    }


def _waiting_for(replica: Replica) -> str:
    if replica.opening:
        return "the directory is being brought to the journal's end"
    return replica.intake.waiting if replica.intake is not None else ""


def _lag_ms(replica: Replica, applied: positions.Position, seen: positions.Position) -> int:
    """How long the oldest delta that is not applied has been waiting since it was captured."""
    if applied >= seen or replica.intake is None or replica.replayer is None:
        return 0
    stamp = replica.replayer.oldest_stamp or replica.intake.seen_stamp
    return max(0, (replica.now_us() - clocks.to_micros(stamp)) // 1000)
