"""The effects of a failover in the world: one method a phase, each idempotent, so that it can be carried out
again after a crash.

What was decided stands in the registry before anything rests on it: a reign is recorded before the target's
agent may write its first frame.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import structlog

from diffkeeper.domain import errors, frames, positions, volumes
from diffkeeper_control import failover, fencing, left_directories, programs, registry, roles, streams
from diffkeeper_control.door_keeper import DoorKeeper
from diffkeeper_control.embedded import Embedded
from diffkeeper_control.failover import Do, Failover, Phase
from diffkeeper_control.failover_requests import LeaderState
from diffkeeper_control.lease_office import LeaseOffice
from diffkeeper_control.monitor import Monitor
from diffkeeper_control.operations import Operation
from diffkeeper_control.registry import Reign, Resume, State, Volume

# How long the broker of a leader that does not answer may take to be fenced; promise guards what is missed.
FENCE_TIMEOUT_S = 0.5
# The same where a lease has run out: that guards too, and every moment counts.
FENCE_BRIEFLY_S = 0.05
# A planned failover starts its handover once the target is at most this far behind.
CLOSE_TIMEOUT_S = 30.0

# Up to the point of no return a target that was stopped is given up at once, not asked again and again.
_NEEDS_TARGET = frozenset({Phase.PREPARE, Phase.HANDOVER, Phase.PROMISE, Phase.CATCH_UP, Phase.PROMOTE})

_log = structlog.get_logger("hands")


class SiteHands:
    """``coordinator.Hands`` on the sites of a deployment."""

    def __init__(
        self,
        embedded: Embedded,
        known: registry.Registry,
        monitor: Monitor,
        doors: DoorKeeper,
        office: LeaseOffice,
    ) -> None:
        self._embedded = embedded
        self._doors = doors
        self._registry = known
        self._monitor = monitor
        self._office = office
        self._work: dict[Do, Callable[[Failover], Awaitable[failover.Event]]] = {
            Do.PREPARE: self._prepare,
            Do.HAND_OVER: self._hand_over,
            Do.FENCE: self._fence,
            Do.PROMISE: self._promise,
            Do.CATCH_UP: self._catch_up,
            Do.PROMOTE: self._promote,
            Do.ATTACH: self._attach,
            Do.START: self._start,
            Do.FOLLOW: self._follow,
            Do.RESTORE: self._restore,
        }

    async def carry_out(self, work: Do, machine: Failover) -> failover.Event:
        if machine.phase in _NEEDS_TARGET and self._embedded.is_stopped(machine.plan.target):
            raise errors.Refused(
                f"site {machine.plan.target} was stopped while volume {machine.plan.volume} was moved there",
                reason="site-stopped",
                hint="start it, then ask again",
                site=machine.plan.target,
            )
        if not machine.planned and machine.phase in (Phase.FENCE, Phase.PROMISE):
            # Nobody asks a leader any more that is given up: what it would answer might not last.
            volume = self._registry.get(machine.plan.volume)
            _, _, event = await asyncio.gather(
                self._doors.hold(volume, cut=True),
                self._prepare_program(machine.plan, wait=False),
                self._work[work](machine),
            )
            return event
        return await self._work[work](machine)

    def leader_is_dead(self, plan: failover.Plan) -> bool:
        volume = self._registry.get(plan.volume)
        return volume.leader == plan.leader and self._monitor.leader_state(volume) is LeaderState.DEAD

    def mark(self, operation: Operation) -> None:
        plan = operation.plan
        volume = self._registry.get(plan.volume)
        highest = max(volume.highest_epoch, plan.epoch)
        # The operation's own record is durable already, and marks again after a crash.
        self._registry.note(
            msgspec.structs.replace(
                volume, operation=operation.id, state=State.MOVING, highest_epoch=highest, detail=""
            )
        )

    def finish(self, operation: Operation) -> None:
        volume = self._registry.get(operation.plan.volume)
        if volume.highest_epoch < operation.machine.epoch:
            volume = msgspec.structs.replace(volume, highest_epoch=operation.machine.epoch)
            self._registry.put(volume)
        if volume.operation != operation.id:
            return
        machine, detail, state = operation.machine, "", State.CAPTURED
        if machine.phase is Phase.FAILED:
            assert machine.trouble is not None, "what fails says why"
            state, detail = State.FAILED, f"failover to {machine.plan.target}: {machine.trouble.message}"
        if machine.phase is Phase.ROLLED_BACK and machine.handover is None and volume.held_since_us is None:
            state = State.RELEASED if volume.resume is not None else State.CAPTURED
        held = None if machine.phase is Phase.PARTIAL else volume.held_since_us
        self._registry.put(
            msgspec.structs.replace(volume, operation=None, state=state, detail=detail, held_since_us=held)
        )

    async def _prepare(self, machine: Failover) -> failover.Event:
        """While the program still runs: everything that can be done early is."""
        plan = machine.plan
        target = self._embedded.clients[plan.target]
        await asyncio.gather(
            target.agent.status(),
            self._ensure_streams(plan.volume, plan.target),
            self._prepare_program(plan, wait=True),
            self._prepare_following(plan),
            self._prepare_capture(plan),
        )
        # Last, and so closest: what is behind now is what clients wait for.
        reached = await target.replicator.catch_up(plan.volume, None, CLOSE_TIMEOUT_S)
        _log.info("target is close", volume=plan.volume, position=reached["position"])
        return failover.Prepared()

    async def _prepare_capture(self, plan: failover.Plan) -> None:
        """Have the target make ready what it will capture with; at the end only what changed since is told."""
        target = self._embedded.clients[plan.target]
        try:
            prepared = await target.replicator.prepare_promote(plan.volume)
            await target.agent.stage(plan.volume, prepared["tree_state"])
        except errors.DiffKeeperError as error:
            _log.warning("a capture could not be prepared", volume=plan.volume, error=error.message)

    async def _prepare_following(self, plan: failover.Plan) -> None:
        """Have the leader's replicator read what it will need to confirm the first frame of its successor, and its agent
        write down the tree that it will follow with.
        """
        leader = self._embedded.clients[plan.leader]
        try:
            await asyncio.gather(
                leader.replicator.prepare_follow(plan.volume, CLOSE_TIMEOUT_S),
                leader.agent.prepare_handover(plan.volume),
            )
        except errors.DiffKeeperError as error:
            _log.warning("the leader is not ready to follow", volume=plan.volume, error=error.message)

    async def _prepare_program(self, plan: failover.Plan, *, wait: bool) -> None:
        """Have the target do what it can of the start: an interpreter and a gate take longer than a handover."""
        volume = self._registry.get(plan.volume)
        if not plan.start or volume.command is None:
            return
        gate = str(self._embedded.layout.gate(plan.target))
        body = programs.start_body(volume, plan.target, gate, volume.command)
        body |= {
            "path": volume.paths[plan.target],
            "durability": plan.durability or volume.durability,
            "wait": wait,
        }
        try:
            await self._embedded.clients[plan.target].agent.prepare(plan.volume, body)
        except errors.DiffKeeperError as error:
            _log.warning("a start could not be prepared", volume=plan.volume, error=error.message)

    async def _hand_over(self, machine: Failover) -> failover.Event:
        plan = machine.plan
        volume = self._registry.get(plan.volume)
        if volume.resume is not None and volume.held_since_us is None and await self._is_released(volume):
            # Capture ended in order before: its end is the end of the epoch.
            return failover.HandedOver(_point(volume.resume.point), volume.resume.tree_state)
        drained = await self._doors.drain(volume)
        answer = await self._embedded.clients[plan.leader].agent.handover(
            plan.volume, plan.target, plan.grace_s, plan.timeout_s
        )
        took = {"requests": drained["took_ms"]} if "took_ms" in drained else {}
        return failover.HandedOver(
            _heard_point(answer), answer.get("tree_state"), took | (answer.get("took_ms") or {})
        )

    async def _is_released(self, volume: Volume) -> bool:
        status = await self._embedded.clients[volume.leader].agent.volume(volume.name)
        return status is None or status.get("state") == "released"

    async def _fence(self, machine: Failover) -> failover.Event:
        plan = machine.plan
        try:
            async with asyncio.timeout(
                FENCE_TIMEOUT_S if plan.cause != failover.AUTOMATIC else FENCE_BRIEFLY_S
            ):
                log = await self._embedded.clients[plan.leader].broker.log()
                await fencing.fence(log, volumes.Origin(plan.volume, plan.leader), machine.epoch)
        except (TimeoutError, errors.Transient) as error:
            _log.warning("the old leader's stream was not fenced", volume=plan.volume, error=str(error))
        return failover.FencedOff()

    async def _promise(self, machine: Failover) -> failover.Event:
        """The epoch is granted by a majority of the sites before anybody promises it.

        The target must promise; every other survivor is asked too, for it may have confirmed more.
        """
        plan = machine.plan
        await self._grant(machine)
        others = [
            site
            for site in self._embedded.sites
            if site not in (plan.target, plan.leader) and not self._embedded.is_stopped(site)
        ]
        _, held = await asyncio.gather(
            self._target_promises(machine), self._others_promise(plan.volume, machine.epoch, others)
        )
        return failover.Promised(max(held, default=None))

    async def _others_promise(self, volume: str, epoch: int, sites: list[str]) -> list[positions.Position]:
        """What those hold that answer."""
        asking = [self._embedded.clients[site].replicator.promise(volume, epoch, 2.0) for site in sites]
        held: list[positions.Position] = []
        for site, answer in zip(sites, await asyncio.gather(*asking, return_exceptions=True), strict=True):
            if isinstance(answer, dict):
                held.append(positions.parse(answer["position"]))
            elif isinstance(answer, errors.DiffKeeperError):
                _log.warning("a site did not promise", site=site, error=answer.message)
            else:
                raise answer
        return held

    async def _target_promises(self, machine: Failover) -> None:
        """After a handover the old epoch has ended, so nothing of it can come any more: then it is enough that the promotion,
        which follows, promises too.
        """
        plan = machine.plan
        if machine.handover is None:
            await self._embedded.clients[plan.target].replicator.promise(plan.volume, machine.epoch)

    async def _grant(self, machine: Failover) -> None:
        """Before a promise, which stops the old leader: without a majority nothing is touched, unless forced."""
        plan = machine.plan
        # A leader that handed over, or is dead, or was silent for as long as its lease, acknowledges nothing.
        may_live = machine.handover is None and not plan.leader_dead and plan.cause != failover.AUTOMATIC
        try:
            await self._office.grant(plan.volume, machine.epoch, plan.target, wait_out=may_live)
        except errors.Transient as error:
            if not plan.force:
                raise
            _log.warning("forced without a lease", volume=plan.volume, error=error.message)

    def lease_order(self) -> int | None:
        return self._office.order()

    async def begin_capture(self, volume: Volume, *, force: bool = False, timeout_s: float = 0.0) -> None:
        """Have the leader's agent capture, under a lease of its own where there are leases.

        ``force`` goes on without a majority; the lease is made up for when there is one again.
        """
        leader, ttl_ms = volume.leader, self._office.order()
        try:
            await self._office.grant(volume.name, volume.epoch, leader, timeout_s=timeout_s)
        except errors.Transient:
            if not force:
                raise
            ttl_ms = None
        await self._embedded.clients[leader].agent.attach(
            volume.name, roles.attach_body(volume, self._embedded.sites, ttl_ms)
        )

    async def _catch_up(self, machine: Failover) -> failover.Event:
        plan = machine.plan
        wanted = None if machine.handover is None else str(machine.handover.position)
        replicator = self._embedded.clients[plan.target].replicator
        return failover.CaughtUp(_heard_point(await replicator.catch_up(plan.volume, wanted, plan.timeout_s)))

    async def _promote(self, machine: Failover) -> failover.Event:
        plan = machine.plan
        answer = await self._embedded.clients[plan.target].replicator.promote(plan.volume, machine.epoch)
        return failover.Promoted(_heard_point(answer), answer["path"], answer.get("tree_state"))

    async def _attach(self, machine: Failover) -> failover.Event:
        plan = machine.plan
        assert machine.promoted is not None and machine.path is not None, "promotion came before"
        parent = _kept(machine.promoted)
        reign = Reign(site=plan.target, epoch=machine.epoch, parent=parent)
        volume = self._registry.get(plan.volume)
        if volume.chain[-1] != reign:
            volume = self._leave_old_directory(volume, machine)
            volume = msgspec.structs.replace(volume, durability=plan.durability or volume.durability)
        volume = self._registry.put(
            registry.with_reign(
                volume,
                reign,
                path=machine.path,
                resume=Resume(point=parent, tree_state=machine.tree_state),
            )
        )
        if not machine.planned:  # else prepare has made sure of them
            # Those of the target alone: others may be silent, and every site has made its own before.
            await streams.ensure(plan.volume, self._embedded.clients, [plan.target], plan.target)
        await self.begin_capture(volume, force=plan.force)
        return failover.Attached()

    def _leave_old_directory(self, volume: Volume, machine: Failover) -> Volume:
        """How the old leader follows from now on, in its own directory: after a handover it stands at the end, else it is
        taken back first.

        A leader that died may have written more than the log holds, and nobody knows what: that becomes a branch.
        """
        plan = machine.plan
        if machine.handover is not None:
            tree = Resume(point=_kept(machine.handover), tree_state=machine.handover_tree_state)
            return msgspec.structs.replace(volume, tree_states={**volume.tree_states, plan.leader: tree})
        reclaim = registry.Reclaim(
            epoch=plan.old_epoch, path=volume.paths[plan.leader], since_us=time.time_ns() // 1000
        )
        return registry.with_reclaim(volume, plan.leader, reclaim)

    async def _start(self, machine: Failover) -> failover.Event:
        plan = machine.plan
        # The door asks the program until it accepts, so it may begin before there is one; and the program's first
        # write waits for a site that confirms it.
        pid, _, _ = await asyncio.gather(
            self.start_program(plan.volume, plan.target),
            self._doors.lead(self._registry.get(plan.volume)),
            self._follow(machine),
        )
        return failover.Started(pid)

    async def start_program(self, name: str, site: str) -> int:
        """Have the site's agent start the volume's program; its process number. Nothing is started twice."""
        volume = self._registry.get(name)
        assert volume.command is not None, "a program is started only where one was registered"
        gate = str(self._embedded.layout.gate(site))
        body = programs.start_body(volume, site, gate, volume.command)
        try:
            answer = await self._embedded.clients[site].agent.start(name, body)
        except errors.Refused as refusal:
            if refusal.reason != "program-running":
                raise
            answer = refusal.facts  # it was started before
        return int(answer["pid"])

    async def _follow(self, machine: Failover) -> failover.Event:
        """Sites that cannot be told now are told by the reconciler once they answer."""
        volume = self._registry.get(machine.plan.volume)
        telling = [
            self.tell_role(volume.name, site)
            for site in self._embedded.sites
            if not self._embedded.is_stopped(site)
            and self._monitor.replicator(site).fresh
            and not left_directories.is_pending(volume, site)
        ]
        for outcome in await asyncio.gather(*telling, return_exceptions=True):
            if isinstance(outcome, errors.DiffKeeperError):
                _log.warning("a site could not be told its role", volume=volume.name, error=outcome.message)
            elif isinstance(outcome, BaseException):
                raise outcome
        return failover.Following()

    async def tell_role(self, name: str, site: str) -> None:
        """Order a site's replicator to do its part; once it does, its tree's file is its own business."""
        volume = self._registry.get(name)
        if left_directories.is_pending(volume, site):
            client = self._embedded.clients[site]
            gate = str(self._embedded.layout.gate(site))
            volume = self._registry.put(await left_directories.surrender(volume, site, client, gate))
        status = await self._embedded.clients[site].replicator.put_role(name, roles.wanted(volume, site))
        self._monitor.take_replica(site, name, status)
        volume = self._registry.get(name)
        if site in volume.tree_states and site != volume.leader:
            kept = {other: tree for other, tree in volume.tree_states.items() if other != site}
            self._registry.put(msgspec.structs.replace(volume, tree_states=kept))

    def keep_apart(self, name: str, site: str) -> None:
        """What a site's leader left cannot be taken back: it stays as it is, and the replica is built in a new place."""
        volume = self._registry.get(name)
        replica = self._embedded.layout.replica(site, name, volume.epoch)
        self._registry.put(registry.without_reclaim(volume, site, str(replica)))

    async def _restore(self, machine: Failover) -> failover.Event:
        """Give the volume back to its old leader, whose program may or may not have been stopped."""
        plan = machine.plan
        agent = self._embedded.clients[plan.leader].agent
        status = await agent.volume(plan.volume)
        handover = machine.handover
        tree_state = machine.handover_tree_state
        if handover is None and status is not None and status.get("state") == "released":
            # Its epoch has ended and its answer was lost. Release gives the same one, and does not wait for
            # a site that may be what failed.
            answer = await agent.release(plan.volume)
            handover, tree_state = _heard_point(answer), answer.get("tree_state")
        if handover is not None:
            await self._reign_again(machine, handover, tree_state)
        if self._registry.get(plan.volume).held_since_us is not None:
            await self.start_program(plan.volume, plan.leader)
            await self._doors.lead(self._registry.get(plan.volume))
        await self._follow(machine)
        return failover.RolledBack()

    async def _reign_again(self, machine: Failover, end: failover.Point, tree_state: str | None) -> None:
        plan = machine.plan
        volume = self._registry.get(plan.volume)
        if volume.epoch == plan.epoch:
            volume = registry.without_reign(volume, plan.epoch)
        parent = _kept(end)
        if machine.promoted is not None:
            tree = Resume(point=_kept(machine.promoted), tree_state=machine.tree_state)
            volume = msgspec.structs.replace(volume, tree_states={**volume.tree_states, plan.target: tree})
        volume = self._registry.put(
            registry.with_reign(
                volume,
                Reign(site=plan.leader, epoch=machine.epoch, parent=parent),
                path=volume.paths[plan.leader],
                resume=Resume(point=parent, tree_state=tree_state),
            )
        )
        await self.begin_capture(volume)

    async def _ensure_streams(self, volume: str, leader: str) -> None:
        running = [site for site in self._embedded.sites if not self._embedded.is_stopped(site)]
        await streams.ensure(volume, self._embedded.clients, running, leader)


def _point(point: registry.Point) -> failover.Point:
    return failover.Point(positions.parse(point.position), point.hash)


def _heard_point(answer: dict[str, Any]) -> failover.Point:
    return failover.Point(positions.parse(answer["position"]), answer.get("hash") or frames.NO_HASH.hex())


def _kept(point: failover.Point) -> registry.Point:
    return registry.Point(position=str(point.position), hash=point.hash)
