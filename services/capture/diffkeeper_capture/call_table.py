"""Which stopped calls were received and not let go: memory that the run wrapper and the agent share.

A call that was received is never shown to a second receiver: had an agent received one and died, its program
would hang for ever. So every receiver writes what it took here first, and whoever receives next reads it.
Between the kernel's answer and the note one call can slip away; the kernel numbers the calls of a filter one
by one, so it is found by asking for the numbers after the newest one noted (``recover``). Only standard
library here.
"""

from __future__ import annotations

import mmap
import os
import struct

from diffkeeper_capture import seccomp, sync_calls

_SLOT = struct.Struct("<QII")  # id (0: free), thread, index into _CALLS
_NEWEST = struct.Struct("<Q")
_SIZE_BYTES = 64 * 1024
_FIRST_SLOT = _SLOT.size
# Threads of one program that can wait at a time; more of them wait in the kernel without being received.
SLOTS = _SIZE_BYTES // _SLOT.size - 1
# Numbers looked at for a lost call. Only calls that a signal ended before they were received lie between.
_LOOK_AHEAD = 4096

_CALLS = sorted({name for table in sync_calls.NUMBERS.values() for name in table.values()})


class CallTable:
    """A view of the shared memory in ``descriptor``, which it owns. One writer at a time."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, _SIZE_BYTES)
        self._slot_of = {ident: slot for slot, ident, _pid, _call in self._used()}
        self._free = [slot for slot in range(SLOTS, 0, -1) if slot not in set(self._slot_of.values())]

    @classmethod
    def create(cls) -> CallTable:
        descriptor = os.memfd_create("diffkeeper-calls", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, _SIZE_BYTES)
        return cls(descriptor)

    @property
    def has_room(self) -> bool:
        return bool(self._free)

    def begin_after(self, ident: int) -> None:
        """The calls to come have the numbers after ``ident``."""
        _NEWEST.pack_into(self._memory, 0, ident)

    def note(self, stopped: seccomp.Stopped) -> None:
        """To be called at once after a call was received. Noting one twice changes nothing."""
        slot = self._slot_of.get(stopped.id)
        if slot is None:
            slot = self._free.pop()
            self._slot_of[stopped.id] = slot
        index = _CALLS.index(stopped.call) if stopped.call in _CALLS else 0
        _SLOT.pack_into(self._memory, slot * _SLOT.size, stopped.id, stopped.pid, index)
        _NEWEST.pack_into(self._memory, 0, stopped.id)

    def strike(self, ident: int) -> None:
        """The call was let go, or is no more."""
        slot = self._slot_of.pop(ident, None)
        if slot is not None:
            _NEWEST.pack_into(self._memory, slot * _SLOT.size, 0)
            self._free.append(slot)

    def waiting(self) -> list[tuple[int, int, str]]:
        """(id, thread, call) of every call noted, oldest first."""
        return sorted((ident, pid, _CALLS[call % len(_CALLS)]) for _slot, ident, pid, call in self._used())

    def recover(self, listener: seccomp.Listener) -> None:
        """After a receiver died: strike what no longer waits, note the call it may have taken wordlessly."""
        self._reload()
        for ident in list(self._slot_of):
            if not listener.still_waits(ident):
                self.strike(ident)
        (newest,) = _NEWEST.unpack_from(self._memory, 0)
        for ident in range(newest + 1, newest + 1 + _LOOK_AHEAD):
            if ident not in self._slot_of and listener.still_waits(ident & (1 << 64) - 1):
                # Whose it is and which call cannot be asked any more; that it waits can.
                self.note(seccomp.Stopped(ident & (1 << 64) - 1, 0, "fsync", ()))
                return

    def close(self) -> None:
        self._memory.close()
        os.close(self.descriptor)

    def _reload(self) -> None:
        self._slot_of = {ident: slot for slot, ident, _pid, _call in self._used()}
        used = set(self._slot_of.values())
        self._free = [slot for slot in range(SLOTS, 0, -1) if slot not in used]

    def _used(self) -> list[tuple[int, int, int, int]]:
        slots = _SLOT.iter_unpack(self._memory[_FIRST_SLOT:])
        return [(slot, ident, pid, call) for slot, (ident, pid, call) in enumerate(slots, 1) if ident]
