"""The capture agent of a node: the volumes it captures, the one ring they share, the gate and the programs
it started.

What is captured is said by control alone: an agent that starts again knows nothing until it is told, and
then finds its place from what is on its disk. Until then the programs' sync calls wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog

from diffkeeper import __version__, pins
from diffkeeper.domain import errors, positions, volumes
from diffkeeper.domain.receipts import Level, Receipt
from diffkeeper.leases.lease_store import LeaseStore
from diffkeeper.log.event_log import EventLog
from diffkeeper_capture import (
    ending_tree,
    left_behind,
    receipts_socket,
    resume_journal,
    sync_calls,
    volume_end,
    volume_recovery,
    volume_status,
)
from diffkeeper_capture import program as programs
from diffkeeper_capture.bpf_probe import BpfProbe
from diffkeeper_capture.drain_loop import DrainLoop
from diffkeeper_capture.gate_socket import Admitted, GateSocket, Program
from diffkeeper_capture.held_writes import PressedPrograms
from diffkeeper_capture.receipts_socket import ReceiptsSocket
from diffkeeper_capture.settings import AgentSettings
from diffkeeper_capture.staged import Staged
from diffkeeper_capture.volume_builder import Builder
from diffkeeper_capture.volume_capture import VolumeCapture
from diffkeeper_capture.volume_order import Order, VolumeFiles, check_path
from diffkeeper_capture.watch_probe import WatchProbe

# A writer that was fenced has its program ended: nobody may read or write a volume that is led elsewhere.
FENCED_GRACE_S = 2.0
# Control asks for the volumes of an agent within seconds of its start. Those it does not ask for hold up the others
# no longer than this, and under pressure no longer than the shorter time.
UNCLAIMED_S = 60.0
UNCLAIMED_LEAST_S = 5.0
UNCLAIMED_CHECK_S = 1.0
# After these a volume begins anew from its log: an fsync failed, so what the spool holds has to be read from the disk.
_BEGUN_ANEW = frozenset({"spool-poisoned"})
ANEW_FIRST_S, ANEW_LAST_S = 1.0, 30.0

_log = structlog.get_logger("agent")


@dataclass(slots=True)
class _Held:
    capture: VolumeCapture
    role: asyncio.Task[None]
    slot: int | None
    lease: asyncio.Task[None] | None = None


class Agent:
    """``open`` before use, ``close`` after; in between ``run`` in a task."""

    def __init__(
        self,
        settings: AgentSettings,
        log: EventLog,
        program_nice: int = 0,
        leases: LeaseStore | None = None,
    ) -> None:
        self._settings = settings
        self._directory = Path(settings.dir)
        self._gate_path = Path(settings.gate_socket or self._directory / "gate.sock")
        self._packer = ThreadPoolExecutor(1, thread_name_prefix="pack")
        self._builder = Builder(log, settings.spool_bytes, self._packer)
        self._gate_socket = GateSocket(self._gate_path, self._admit)
        self._receipts = ReceiptsSocket(self._gate_path.with_name(receipts_socket.NAME), self._capturing)
        self._launcher = programs.Launcher(self._gate_path, self._directory / "programs", program_nice)
        self._leases = leases
        self._held: dict[str, _Held] = {}
        self._staged: dict[str, Staged] = {}
        self._orders = asyncio.Lock()
        self._probe: BpfProbe | None = None
        self._ownership: pins.Ownership | None = None
        # Why a kill of this agent would be a gap; None while the ring outlives it.
        self.why_not_pinned: str | None = None
        self._drain: DrainLoop | None = None
        self._pressed: PressedPrograms | None = None
        self._revivals: set[asyncio.Task[None]] = set()
        self._draining: asyncio.Task[None] | None = None
        self.why_no_bpf: str | None = None
        self._next_slot = 1
        self._started_us = time.time_ns() // 1000

    # -- its own life ----------------------------------------------------------------------------------------

    def open(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._ownership = pins.Ownership.take(self._directory)
        for owner in pins.remove_orphans():
            _log.warning("removed what an agent had left in the kernel", agent=str(owner))
        self.why_no_bpf = BpfProbe.why_not()
        if self.why_no_bpf is None:
            probe = self._open_probe()
            probe.ignore(os.getpid())
            self._probe = probe
            self._next_slot = max(probe.slots, default=0) + 1
            self._drain = DrainLoop(
                probe, self._settings.linger_ms / 1000, self._settings.linger_most_ms / 1000
            )
            self._pressed = PressedPrograms(probe, self._settings.ring_bytes, self._waiting_threads)
            self._drain.after_turn = self._look_for_pressed
            for slot in probe.unclaimed:
                self._drain.keep_for(slot, probe.released)
        else:
            _log.warning("the exact probe cannot run here", why=self.why_no_bpf)
        self._gate_socket.open()

    def _waiting_threads(self) -> set[int]:
        return {thread for capture in self.captures() for thread in capture.gate.waiting_threads()}

    def _look_for_pressed(self) -> None:
        assert self._pressed is not None and self._drain is not None, "they go with the probe"
        self._pressed.look(self._drain.held_bytes)

    def _open_probe(self) -> BpfProbe:
        """The probe, with what a killed predecessor left of it if that can be gone on with."""
        try:
            folder = pins.prepare(self._directory)
        except errors.Misconfigured as error:
            _log.warning("a restart of this agent will be a gap", why=error.message, hint=error.hint)
            self.why_not_pinned = error.message
            return BpfProbe(self._settings.ring_bytes)
        return BpfProbe(self._settings.ring_bytes, pins=folder, owner=self._directory)

    async def run(self) -> None:
        """Drain the ring; until cancelled."""
        await self._receipts.open()
        async with asyncio.TaskGroup() as group:
            if self._drain is not None:
                self._draining = group.create_task(self._drain.run(), name="drain")
            group.create_task(self._look_after_pins(), name="look after pins")

    async def _look_after_pins(self) -> None:
        while True:
            if self._ownership is not None:
                self._ownership.give_sign()
            self._give_up_unclaimed()
            is_silent = self._probe is not None and not self._probe.answers()
            if self._pressed is not None:
                self._look_for_pressed()
            for capture in self.captures():
                capture.look_for_held()
                capture.look_for_stalls(is_probe_silent=is_silent)
            await asyncio.sleep(UNCLAIMED_CHECK_S)

    def _give_up_unclaimed(self) -> None:
        """Volumes that a predecessor captured and nobody asks for must not keep the ring from the others."""
        if self._probe is None or self._drain is None or not self._probe.unclaimed:
            return
        age_s = time.time() - self._started_us / 1e6
        is_pressed = bool(self._held) and self._drain.held_bytes > self._settings.ring_bytes // 2
        if age_s > UNCLAIMED_S or (is_pressed and age_s > UNCLAIMED_LEAST_S):
            for slot in self._probe.unclaimed:
                _log.warning(
                    "nobody asked for a volume that was captured before; it will have a gap", slot=slot
                )
                self._probe.unwatch(slot)
                self._drain.remove(slot)

    async def close(self) -> None:
        """Save what makes the next start short, then leave. Sync calls go on waiting."""
        for held in self._held.values():
            if held.capture.state == "capturing":
                with contextlib.suppress(errors.DiffKeeperError):
                    held.capture.save()
        for revival in self._revivals:
            revival.cancel()
        self._gate_socket.close()
        await self._receipts.close()
        for name in list(self._held):
            await self._drop(name)
        for name in list(self._staged):
            self._unstage(name)
        if self._draining is not None:
            self._draining.cancel()
            await asyncio.wait({self._draining})
        if self._pressed is not None:
            self._pressed.close()
        if self._probe is not None:
            self._probe.close()
        if self._ownership is not None:
            # An ordered end: nothing of ours is to run on in the kernel.
            pins.remove(self._directory)
            self._ownership.release()
            self._ownership = None
        self._packer.shutdown()
        self._launcher.close()

    # -- orders ----------------------------------------------------------------------------------------------

    async def attach(self, order: Order) -> dict[str, Any]:
        """Begin to capture; the volume's status. The same order again changes nothing."""
        volumes.check_name("volume", order.volume)
        async with self._orders:
            held = self._held.get(order.volume)
            if held is not None and held.capture.state in ("scanning", "capturing"):
                answer = self._attached_again(held.capture, order)
                self._keep_lease(held, order)
                return answer
            others = {
                name: other.capture.order.path for name, other in self._held.items() if name != order.volume
            }
            path = await asyncio.to_thread(check_path, order.path, others, self._directory)
            if held is not None:
                await self._drop(order.volume)
            return await self._attach(_at(order, path))

    def _attached_again(self, capture: VolumeCapture, order: Order) -> dict[str, Any]:
        known = capture.order
        if (known.epoch, known.path) != (order.epoch, Path(os.path.realpath(order.path))):
            raise errors.Refused(
                f"volume {order.volume} is captured already, in {known.path} under epoch {known.epoch}",
                reason="already-captured",
                hint="dkctl status; a volume is captured once",
            )
        return self._status_of(capture)

    async def _attach(self, order: Order) -> dict[str, Any]:
        exact = self._choose_probe(order.probe)
        files = VolumeFiles(self._directory / "volumes" / order.volume)
        staged = self._staged.pop(order.volume, None)
        resumable = (
            await asyncio.to_thread(self._resumable, order, files) if exact and staged is None else None
        )
        parts = await self._builder.build(
            order, files, sole_source=not exact, resumable=resumable, staged=staged
        )
        watch = None if exact else WatchProbe(order.path)
        probe = self._drain if watch is None else watch
        assert probe is not None, "the exact probe was chosen"
        capture = VolumeCapture(order, files, parts, probe, degrade_after_s=self._settings.degrade_after_s)
        try:
            # Before anything is read, so that no write falls between reading and watching.
            slot = self._watch(order.path, capture, parts.start.mark) if watch is None else None
            if watch is not None:
                await asyncio.to_thread(watch.__enter__)
        except BaseException:
            capture.close()
            raise
        role = asyncio.create_task(self._hold(capture), name=f"capture {order.volume}")
        held = self._held[order.volume] = _Held(capture, role, slot)
        self._keep_lease(held, order)
        _log.info("capturing", volume=order.volume, path=str(order.path), epoch=order.epoch)
        return self._status_of(capture)

    def _keep_lease(self, held: _Held, order: Order) -> None:
        """As the newest order has it: a reign may begin before there is a majority to lease from, and leases may be given
        up while it lasts.
        """
        wanted, has = order.lease_ttl_ms, held.capture.lease
        if wanted == (None if has is None else has.ttl_ms):
            return
        if held.lease is not None:
            held.lease.cancel()
            held.lease = None
        if wanted is None:
            held.capture.reign_without_lease()
            return
        if self._leases is None:
            raise errors.Misconfigured(
                f"volume {order.volume} needs a lease, and this agent knows no servers to get it from",
                reason="no-lease-servers",
                hint="lease_servers in the agent's settings",
            )
        keeping = held.capture.keep_lease(self._leases, wanted)
        held.lease = asyncio.create_task(keeping, name=f"lease {order.volume}")

    def _choose_probe(self, wanted: str) -> bool:
        """Whether the exact probe is to be used; raises Misconfigured when it was asked for and cannot be."""
        if wanted == "bpf" and self._probe is None:
            raise errors.Misconfigured(
                f"the exact probe cannot run here: {self.why_no_bpf}",
                reason="no-bpf",
                hint="run the agent as root (or with CAP_BPF and CAP_PERFMON), or use --probe watch",
            )
        return wanted != "watch" and self._probe is not None

    def _resumable(self, order: Order, files: VolumeFiles) -> volume_recovery.Resumable | None:
        """What a predecessor left of this volume, if its ring is ours and has watched this directory since."""
        assert self._probe is not None, "the exact probe was chosen"
        found = resume_journal.read(files.resume_journal, self._probe.identity)
        if found is None:
            return None
        root = os.open(order.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            is_watched = self._probe.is_watched_as(found[0].slot, root)
        finally:
            os.close(root)
        return volume_recovery.Resumable(*found) if is_watched else None

    def _watch(self, path: Path, capture: VolumeCapture, mark: resume_journal.Mark | None) -> int:
        assert self._probe is not None and self._drain is not None, "the exact probe was chosen"
        slot = self._next_slot if mark is None else mark.slot
        root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if mark is not None:
                self._probe.claim(slot, root)
            else:
                self._next_slot += 1
                for replaced in self._probe.watch(slot, root):
                    self._drain.remove(replaced)
                    self._inherit_held(replaced, slot)
        finally:
            os.close(root)
        capture.watched_as(slot, is_kept=self._probe.is_pinned)
        if capture.order.durability is not Level.OBSERVE:
            self._probe.set_gated(slot, gated=True)
            capture.hold_writes(slot, self._probe)
        return slot

    def _inherit_held(self, former: int, slot: int) -> None:
        assert self._probe is not None, "it held them"
        for tgid, of in self._probe.held().items():
            if of == former:
                self._probe.hold_again(tgid, slot)

    async def _hold(self, capture: VolumeCapture) -> None:
        await capture.run()
        if capture.error is not None and capture.error.reason in _BEGUN_ANEW:
            revival = asyncio.create_task(
                self._begin_anew(capture), name=f"begin {capture.order.volume} anew"
            )
            self._revivals.add(revival)
            revival.add_done_callback(self._revivals.discard)
        if capture.state == "fenced" and capture.program is not None and capture.program.running:
            _log.error("ending the program of a fenced volume", volume=capture.order.volume)
            await volume_end.stop_program(capture, self._gate_socket, FENCED_GRACE_S)

    async def _begin_anew(self, failed: VolumeCapture) -> None:
        """After its disk failed: from what the disk really holds and the stream has, until that goes well."""
        pause_s = ANEW_FIRST_S
        name = failed.order.volume
        while True:
            await asyncio.sleep(pause_s)
            pause_s = min(ANEW_LAST_S, 2 * pause_s)
            async with self._orders:
                held = self._held.get(name)
                if held is None or held.capture is not failed:
                    return  # somebody has decided otherwise
                await self._quiet(name)
                failed.close()
                try:
                    await self._attach(failed.order)
                except errors.DiffKeeperError as error:
                    _log.error(error.message, volume=name, reason=error.reason, hint=error.hint)
                    continue
                _log.warning("captured again after its disk had failed", volume=name)
                return

    async def prepare(
        self, name: str, path: Path, level: Level, command: programs.Command, wait: bool
    ) -> bool:
        """Get ready to start a program of a volume that is about to come here; whether that was possible."""
        volumes.check_name("volume", name)
        return await self._launcher.prepare(name, path, level, command, wait) is not None

    async def stage(self, name: str, tree_state: Path) -> bool:
        """Get ready to capture a volume that is about to come here (see ``staged``); False while it is captured here, or
        waits for somebody to look after it.
        """
        volumes.check_name("volume", name)
        async with self._orders:
            held = self._held.get(name)
            if held is not None and not held.capture.is_ended:
                return False
            if held is not None:
                await self._drop(name)
            self._unstage(name)
            files = VolumeFiles(self._directory / "volumes" / name)
            self._staged[name] = await asyncio.to_thread(
                Staged.make, files, name, tree_state, self._settings.spool_bytes
            )
            return True

    def _unstage(self, name: str) -> None:
        staged = self._staged.pop(name, None)
        if staged is not None:
            staged.close()

    async def start(self, name: str, command: programs.Command) -> dict[str, Any]:
        """Start a program; ``{pid}``. Raises Refused when one runs or it cannot be executed."""
        async with self._orders:
            capture = self._capturing(name)
            if capture.program is not None and capture.program.running:
                raise errors.Refused(
                    f"process {capture.program.pid} runs on volume {name} already",
                    reason="program-running",
                    hint="dkctl status",
                    pid=capture.program.pid,
                )
            before = capture.program
            ended = await self._launcher.start(name, capture.order.path, capture.order.durability, command)
            deadline = time.monotonic() + programs.START_TIMEOUT_S
            while time.monotonic() < deadline:
                program = capture.program
                if program is not None and program is not before and program.started:
                    return {"pid": program.pid}
                if ended.done():
                    raise self._not_started(name, command, ended.result())
                await asyncio.sleep(programs.POLL_S)
        raise errors.TimedOut(f"the program of {name} was not executed within {programs.START_TIMEOUT_S:g} s")

    def _not_started(self, name: str, command: programs.Command, code: int) -> errors.DiffKeeperError:
        said = self._launcher.tail()
        if code == 0:
            return errors.Refused(f"the program of {name} ended at once", reason="program-ended", output=said)
        why = said.removeprefix("diffkeeper-run: ") or f"{command.argv[0]} ended with {code}"
        return errors.Refused(
            f"the program of {name} could not be started: {why}",
            reason="program-not-started",
            hint="check the command and its rights",
            exit_code=code,
        )

    async def sync(self, name: str, level: Level, timeout_s: float) -> Receipt:
        return await self._capturing(name).sync(level, timeout_s)

    async def hand_over(self, name: str, successor: str, grace_s: float, timeout_s: float) -> dict[str, Any]:
        """See ``volume_end``; asked again after the end it gives the same answer."""
        async with self._orders:
            capture = self._capturing(name, or_ended=True)
            answer = await volume_end.hand_over(capture, self._gate_socket, successor, grace_s, timeout_s)
            await self._quiet(name)
            return answer

    async def prepare_handover(self, name: str) -> bool:
        """See ``ending_tree``; whether it was possible."""
        return await ending_tree.prepare(self._capturing(name))

    async def release(self, name: str) -> dict[str, Any]:
        async with self._orders:
            answer = await volume_end.release(self._capturing(name, or_ended=True))
            await self._quiet(name)
            return answer

    async def surrender(self, name: str, epoch: int, parent: positions.Position) -> dict[str, Any]:
        """Give up a volume that is led elsewhere since ``parent``: its program ends, and what was captured beyond is
        copied out (see ``left_behind``). Asked again it gives the same answer.
        """
        volumes.check_name("volume", name)
        async with self._orders:
            held = self._held.get(name)
            if held is not None and held.capture.order.epoch > epoch:
                raise errors.Refused(
                    f"volume {name} is captured here under epoch {held.capture.order.epoch}, after {epoch}",
                    reason="epoch-newer",
                )
            if held is not None:
                await volume_end.stop_program(held.capture, self._gate_socket, FENCED_GRACE_S)
                await self._drop(name)
            self._unstage(name)
            files = VolumeFiles(self._directory / "volumes" / name)
            return await asyncio.to_thread(
                left_behind.export, files, epoch, parent, self._settings.spool_bytes
            )

    # -- status ----------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        return {
            "site": self._settings.site,
            "probe": "bpf" if self._probe is not None else "watch",
            "why_not_bpf": self.why_no_bpf,
            "why_not_pinned": self.why_not_pinned,
            "gate_socket": str(self._gate_path),
            "receipts_socket": str(self._receipts.path),
            "presses": 0 if self._probe is None else self._probe.presses,
            "records": 0 if self._drain is None else self._drain.records,
            "started_us": self._started_us,
            "version": __version__,
            "at_us": time.time_ns() // 1000,
            "volumes": [self._status_of(held.capture) for _, held in sorted(self._held.items())],
        }

    def captures(self) -> list[VolumeCapture]:
        return [held.capture for held in self._held.values()]

    def _status_of(self, capture: VolumeCapture) -> dict[str, Any]:
        status = volume_status.of(capture)
        status["why_not_bpf"] = self.why_no_bpf if status["probe"] == "watch" else None
        return status

    # -- plumbing --------------------------------------------------------------------------------------------

    def _capturing(self, name: str, or_ended: bool = False) -> VolumeCapture:
        held = self._held.get(name)
        if held is None:
            raise errors.NotFound(
                f"this agent does not capture a volume {name!r}", reason="no-such-volume", hint="dkctl status"
            )
        capture = held.capture
        if capture.error is not None:
            raise capture.error
        if capture.is_ended and not or_ended:
            raise errors.Refused(
                f"volume {name} is not captured any more", reason="released", hint="attach it"
            )
        return capture

    def _admit(self, program: Program) -> Admitted:
        """A wrapper offers a program; raises NotFound while the volume is not (yet) captured here."""
        capture = self._capturing(program.volume)
        path = capture.order.path
        if program.root is not None and Path(os.path.realpath(program.root)) != path:
            raise errors.Refused(
                f"volume {program.volume} is {path}, and the program is meant for {program.root}",
                reason="other-directory",
            )
        running = capture.program
        if running is not None and running.running and running.wrapper != program.wrapper:
            raise errors.Refused(
                f"process {running.pid} runs on volume {program.volume} already",
                reason="program-running",
                hint="a volume has one program; dkctl status",
            )
        if program.hard_limit and self._probe is not None:
            self._probe.set_limited(limited=True)
        capture.program = program
        return Admitted(capture.gate, sync_calls.Root.of(str(path), program.seen_at))

    async def _quiet(self, name: str) -> None:
        """End the role of a volume whose reign is over; its status stays."""
        held = self._held[name]
        self._unwatch(held)
        tasks = {held.role} if held.lease is None else {held.role, held.lease}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        if held.capture.program is not None:
            self._gate_socket.drop(held.capture.program)

    def _unwatch(self, held: _Held) -> None:
        if held.slot is not None and self._probe is not None and self._drain is not None:
            self._drain.remove(held.slot)
            self._probe.unwatch(held.slot)
            held.slot = None

    async def _drop(self, name: str) -> None:
        await self._quiet(name)
        self._held.pop(name).capture.close()


def _at(order: Order, path: Path) -> Order:
    return replace(order, path=path)
