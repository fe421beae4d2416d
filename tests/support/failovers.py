"""A failover of one volume in which everything goes well, for tests to spoil."""

from __future__ import annotations

from dataclasses import replace

from diffkeeper.domain import positions
from diffkeeper_control import failover
from diffkeeper_control.failover import Do, Event, Plan, Point

END = Point(positions.Position(1, 40), "aa" * 32)
FURTHER = Point(positions.Position(1, 41), "bb" * 32)

PLANNED = Plan(
    volume="orders",
    leader="east",
    target="west",
    old_epoch=1,
    epoch=2,
    planned=True,
    leader_dead=False,
    force=False,
    loss_accepted=True,
    start=True,
    grace_s=1.0,
    timeout_s=2.0,
)
DEAD = replace(PLANNED, planned=False, leader_dead=True)
SILENT = replace(PLANNED, planned=False, leader_dead=False, force=True)

HAPPY: dict[Do, Event] = {
    Do.PREPARE: failover.Prepared(),
    Do.HAND_OVER: failover.HandedOver(END, "/tree"),
    Do.FENCE: failover.FencedOff(),
    Do.PROMISE: failover.Promised(None),
    Do.CATCH_UP: failover.CaughtUp(END),
    Do.PROMOTE: failover.Promoted(END, "/replica", "/replica-tree"),
    Do.ATTACH: failover.Attached(),
    Do.START: failover.Started(4711),
    Do.FOLLOW: failover.Following(),
    Do.RESTORE: failover.RolledBack(),
}
