"""The exact probe: eBPF on the tracepoints of system calls. What it promises stands in ``capture.bpf.c``.

One probe serves all volumes of an agent. Each watched root stays open here, so that its inode cannot be given
to another directory. Roots are known to the kernel by (inode, generation, device) as the kernel itself names
them; btrfs and overlayfs tell user space other device numbers, so the probe asks its own kernel side
(``_identify``) instead of stat.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import os
import secrets
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from diffkeeper.domain import errors
from diffkeeper_capture import bpf_loader, probes, ring, write_lanes

RING_BYTES = 64 * 1024 * 1024
# Asking the kernel for missed programs costs two system calls; between receipts this often is enough.
MISSES_INTERVAL_S = 0.1
_ROOT = struct.Struct("=QII")  # struct dk_root: inode, generation, device
_LOST_FILE = struct.Struct("=QII")  # struct dk_lost_file: inode, volume, unused
_NUMBER = struct.Struct("=I")
_INODE_BITS = 1024
# In the kernel side's maps beside the slots of volumes: see dk_hold.h.
PRESSED = 0xFFFFFFFE


class State(ctypes.Structure):
    """Memory shared with the kernel side; twin of ``struct dk_state``."""

    _fields_ = (
        ("volumes", ctypes.c_uint64),
        ("device_bits", ctypes.c_uint64),
        ("inode_bits", ctypes.c_uint64 * (_INODE_BITS // 64)),
        ("lost_records", ctypes.c_uint64),
        ("lost_everywhere", ctypes.c_uint64),
        ("truncates_in_flight", ctypes.c_uint64),
        ("moves", ctypes.c_uint64),
        ("settings", ctypes.c_uint64),
        ("asked_length", ctypes.c_uint64),
        ("answer_inode", ctypes.c_uint64),
        ("answer_generation", ctypes.c_uint32),
        ("answer_device", ctypes.c_uint32),
        ("answer_tgid", ctypes.c_uint32),
        ("answer_count", ctypes.c_uint32),
        ("followed", ctypes.c_uint64),
        ("mapped", ctypes.c_uint64),
    )


class Follows(enum.IntFlag):
    """What the programs beside those of system calls follow; twin of ``enum dk_follows``."""

    PAGES = 1  # pages that turn dirty by stores through a mapping, or by the kernel itself
    URING = 2
    DIRECT = 4  # the end of direct writes of Linux AIO


# What is followed by which of ``bpf_loader.OPTIONAL_PROGRAMS``.
_FOLLOWED_BY = {
    Follows.PAGES: {"dk_dirty_folio"},
    Follows.URING: {"dk_uring_done", "dk_uring_silent"},
    Follows.DIRECT: {"dk_direct_done"},
}


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a directory and this process are to the kernel."""

    inode: int
    generation: int
    device: int
    tgid: int

    def root_key(self) -> bytes:
        return _ROOT.pack(self.inode, self.generation, self.device)


@dataclass(frozen=True, slots=True)
class _Root:
    fd: int  # -1 for one that a predecessor watched and nobody has claimed
    identity: Identity


def _identity_of(key: bytes) -> Identity:
    inode, generation, device = _ROOT.unpack(key)
    return Identity(inode, generation, device, tgid=0)


class BpfProbe:
    """A ``RecordProbe``. Loads and attaches at once, or raises ``Misconfigured`` with the kernel's word.

    With ``pins``, a folder of a BPF file system, what a predecessor left there goes on instead: its ring, and the
    roots it watched, until they are claimed (``watch`` with the same slot) or given up (``unwatch``).
    """

    def __init__(
        self, ring_bytes: int = RING_BYTES, *, pins: Path | None = None, owner: Path | None = None
    ) -> None:
        if ring_bytes & (ring_bytes - 1) or ring_bytes < 64 * 1024:
            raise errors.Misconfigured(
                f"a ring of {ring_bytes} bytes is not possible",
                hint="choose a power of two of at least 64 KiB",
            )
        self._is_pinned = pins is not None
        self._roots: dict[int, _Root] = {}
        self._lost = probes.Lost(records=0, files=frozenset(), everywhere=False)
        self._loaded = bpf_loader.LoadedProbe(ring_bytes=ring_bytes, folder=pins, owner=owner)
        try:
            self._memory = self._loaded.map(".bss.state").memory(ctypes.sizeof(State))
            self._hold = self._loaded.map(".bss.hold").memory(ctypes.sizeof(ctypes.c_uint64))
            self._ring = ring.RingReader(self._loaded.map("ring").fd, ring_bytes, holds=self._is_pinned)
            if not self._loaded.is_adopted:
                self._loaded.attach()
        except BaseException:
            self._loaded.close()
            raise
        self._state = State.from_buffer(self._memory)
        self.follows = Follows(0)
        for what, programs in _FOLLOWED_BY.items():
            if programs <= self._loaded.optional:
                self.follows |= what
        self._state.followed = int(self.follows)
        self._missed, self._missed_at = 0, 0.0
        self._closed = False
        if self._loaded.is_adopted:
            self._take_over()

    @property
    def identity(self) -> str:
        """Of the ring. Positions in it mean something to a successor only while this is the same."""
        return self._loaded.identity

    @property
    def is_pinned(self) -> bool:
        """Whether the ring outlives this process."""
        return self._is_pinned

    @property
    def unclaimed(self) -> frozenset[int]:
        """Slots that a predecessor watched and nobody has claimed."""
        return frozenset(slot for slot, root in self._roots.items() if root.fd < 0)

    @property
    def slots(self) -> frozenset[int]:
        return frozenset(self._roots)

    def _take_over(self) -> None:
        self._state.asked_length = 0  # the predecessor may have died asking
        roots, ignored = self._loaded.map("roots"), self._loaded.map("ignored")
        for key in roots.keys(_ROOT.size):
            value = roots.get(key, _NUMBER.size)
            if value is not None:
                self._roots[_NUMBER.unpack(value)[0]] = _Root(-1, _identity_of(key))
        for key in ignored.keys(_NUMBER.size):
            ignored.remove(key)
        self._tell_roots()

    @classmethod
    def why_not(cls) -> str | None:
        """Why this probe cannot run here, as a sentence with the remedy, or None."""
        return bpf_loader.why_not()

    # ------------------------------------------------------------------------------------------------ volumes

    def is_watched_as(self, slot: int, root_fd: int) -> bool:
        """Whether a predecessor watched this very directory under ``slot``, and nobody has claimed it."""
        root = self._roots.get(slot)
        return (
            root is not None
            and root.fd < 0
            and root.identity.root_key() == self._identify(root_fd).root_key()
        )

    def claim(self, slot: int, root_fd: int) -> None:
        """Go on with a root that a predecessor watched: nothing of it was missed but what ``lost`` says."""
        assert self.is_watched_as(slot, root_fd), "asked before"
        self._roots[slot] = _Root(os.dup(root_fd), self._roots[slot].identity)

    def watch(self, slot: int, root_fd: int) -> list[int]:
        """Begin to capture; the slots of a predecessor that this one replaces."""
        assert slot not in self._roots, "a slot is given once"
        identity = self._identify(root_fd)
        replaced = [
            slot for slot in self.unclaimed if self._roots[slot].identity.root_key() == identity.root_key()
        ]
        for other in replaced:
            self.unwatch(other)
        wanted = identity.root_key()
        twin = next(
            (other for other, root in self._roots.items() if root.identity.root_key() == wanted), None
        )
        if twin is not None:
            raise errors.Refused(
                f"this directory is already captured as volume slot {twin}",
                reason="already-captured",
                slot=twin,
            )
        root = _Root(os.dup(root_fd), identity)
        try:
            self._loaded.map("roots").put(identity.root_key(), _NUMBER.pack(slot))
        except errors.Transient:
            os.close(root.fd)
            raise
        self._roots[slot] = root
        self._tell_roots()
        return replaced

    def unwatch(self, slot: int) -> None:
        root = self._roots.pop(slot)
        self.set_gated(slot, gated=False)
        self._tell_roots()
        self._loaded.map("roots").remove(root.identity.root_key())
        if root.fd >= 0:
            os.close(root.fd)

    def set_gated(self, slot: int, *, gated: bool) -> None:
        """Whether programs behind a gate are stopped after writes to this volume that are durable by flag."""
        if gated:
            self._loaded.map("gated").put(_NUMBER.pack(slot), _NUMBER.pack(1))
        elif self._loaded.map("gated").get(_NUMBER.pack(slot), _NUMBER.size) is not None:
            self._loaded.map("gated").remove(_NUMBER.pack(slot))

    def set_limited(self, *, limited: bool) -> None:
        """Whether programs behind a gate are stopped while the ring is more than half full."""
        self.set_gated(PRESSED, gated=limited)

    @property
    def presses(self) -> int:
        """How often that has happened."""
        return int.from_bytes(self._hold[:8], "little")

    def held(self) -> dict[int, int]:
        """Processes that are stopped so, and the slots of their volumes."""
        table = self._loaded.map("held")
        found = {key: table.get(key, _NUMBER.size) for key in table.keys(_NUMBER.size)}
        return {
            _NUMBER.unpack(key)[0]: _NUMBER.unpack(slot)[0] for key, slot in found.items() if slot is not None
        }

    def hold_again(self, tgid: int, slot: int) -> None:
        self._loaded.map("held").put(_NUMBER.pack(tgid), _NUMBER.pack(slot))

    def forget_held(self, tgid: int) -> None:
        if self._loaded.map("held").get(_NUMBER.pack(tgid), _NUMBER.size) is not None:
            self._loaded.map("held").remove(_NUMBER.pack(tgid))

    def ignore(self, tgid: int) -> None:
        self._loaded.map("ignored").put(_NUMBER.pack(self._kernel_tgid(tgid)), _NUMBER.pack(1))
        self._state.settings += 1

    def _tell_roots(self) -> None:
        """The kernel side's quick answers, from the roots as they now are."""
        device_bits, inode_bits = 0, [0] * (_INODE_BITS // 64)
        for root in self._roots.values():
            device = root.identity.device
            device_bits |= 1 << ((device ^ (device >> 20)) & 63)
            bit = root.identity.inode & (_INODE_BITS - 1)
            inode_bits[bit >> 6] |= 1 << (bit & 63)
        for index, bits in enumerate(inode_bits):
            self._state.inode_bits[index] = bits
        self._state.device_bits = device_bits
        self._state.volumes = len(self._roots)
        self._state.settings += 1

    def _identify(self, fd: int) -> Identity:
        """Ask the kernel side by an impossible call: ftruncate to a negative length that only we know."""
        state = self._state
        secret = -(secrets.randbits(62) | 1 << 62)
        before = state.answer_count
        state.asked_length = secret & 0xFFFF_FFFF_FFFF_FFFF
        try:
            os.ftruncate(fd, secret)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        finally:
            state.asked_length = 0
        if state.answer_count == before:
            raise errors.Transient(
                "the probe is attached and did not answer",
                reason="probe-silent",
                hint="start the agent again",
            )
        return Identity(state.answer_inode, state.answer_generation, state.answer_device, state.answer_tgid)

    def answers(self) -> bool:
        """Whether the kernel side runs: it is asked, and nobody else knows the answer."""
        try:
            self._identify(self._ring.fileno())
        except errors.Transient:
            return False
        return True

    def _kernel_tgid(self, tgid: int) -> int:
        """A process id as the kernel's first pid namespace counts it."""
        own, own_in_kernel = os.getpid(), self._identify(self._ring.fileno()).tgid
        if tgid == own:
            return own_in_kernel
        if own != own_in_kernel:
            raise errors.Misconfigured(
                f"process {tgid} cannot be ignored: this agent lives in a pid namespace of its own",
                reason="pid-namespace",
                hint="run the agent with the host's pid namespace (hostPID: true)",
            )
        return tgid

    # ------------------------------------------------------------------------------------------------ records

    def fileno(self) -> int:
        return self._ring.fileno()

    def produced(self) -> int:
        return self._ring.produced()

    def consumed(self) -> int:
        """How many ring bytes have been delivered."""
        return self._ring.consumed()

    def release(self, position: int) -> None:
        """Records before ``position`` are needed by nobody, not even a successor."""
        self._ring.release(position)

    def replay(self, handle: probes.RecordHandler, start: int, most: int) -> int:
        """Deliver again what was delivered from ``start`` on; where that ended."""
        return self._ring.replay(handle, start, most)

    @property
    def released(self) -> int:
        """Where a successor would go on."""
        return self._ring.released

    def drain(
        self,
        handle: probes.RecordHandler,
        upto: int | None = None,
        most: int = 65_536,
        lanes: write_lanes.Lanes | None = None,
    ) -> int:
        return self._ring.drain(handle, upto, most, lanes)

    def lost(self, *, surely: bool = True) -> probes.Lost:
        now = time.monotonic()
        if surely or now - self._missed_at > MISSES_INTERVAL_S:
            self._missed, self._missed_at = self._loaded.missed(), now
        missed = self._missed
        counted = self._state.lost_records + missed
        if counted != self._lost.records:
            keys = self._loaded.map("lost_files").keys(_LOST_FILE.size)
            self._lost = probes.Lost(
                records=counted,
                files=frozenset((volume, inode) for inode, volume, _ in map(_LOST_FILE.unpack, keys)),
                everywhere=bool(self._state.lost_everywhere or missed),
                left_out=missed,
            )
        return self._lost

    def close(self) -> None:
        """Let go of everything here. What is not pinned is detached, and records not yet drained are gone."""
        if self._closed:
            return
        self._closed = True
        self._ring.close()
        del self._state
        self._memory.close()
        self._hold.close()
        self._loaded.close()
        for root in self._roots.values():
            if root.fd >= 0:
                os.close(root.fd)
        self._roots.clear()
