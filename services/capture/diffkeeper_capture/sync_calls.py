"""The system calls by which a program asks for durability, and which of them concern a volume.

Numbers are those of the kernel's tables for each audit architecture, 32-bit programs on a 64-bit kernel
included: one that slipped past the gate would believe a promise nobody made. Only standard library here: the
run wrapper imports it.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

# <linux/audit.h>: machine | 64-bit | little-endian.
X86_64 = 0xC000003E
I386 = 0x40000003
AARCH64 = 0xC00000B7
ARM = 0x40000028

NUMBERS: dict[int, dict[int, str]] = {
    X86_64: {26: "msync", 74: "fsync", 75: "fdatasync", 162: "sync", 277: "sync_file_range", 306: "syncfs"},
    I386: {36: "sync", 118: "fsync", 144: "msync", 148: "fdatasync", 314: "sync_file_range", 344: "syncfs"},
    AARCH64: {81: "sync", 82: "fsync", 83: "fdatasync", 84: "sync_file_range", 227: "msync", 267: "syncfs"},
    ARM: {36: "sync", 118: "fsync", 144: "msync", 148: "fdatasync", 341: "sync_file_range", 373: "syncfs"},
}
# Linux AIO can ask for an fsync too.
for _arch, _number in ((X86_64, 209), (I386, 248), (AARCH64, 2), (ARM, 246)):
    NUMBERS[_arch][_number] = "io_submit"
# Programs of the x32 ABI: the same table with a bit set, but for AIO, which has a number of its own.
_X32_BIT = 0x40000000
NUMBERS[X86_64] |= {
    _X32_BIT | (544 if call == "io_submit" else number): call for number, call in NUMBERS[X86_64].items()
}
# The same everywhere. Its operations, fsync among them, are no system calls and cannot be stopped.
IO_URING_SETUP = 425

# A filter for the machine's own programs and for its 32-bit ones.
AUDIT_ARCHES: dict[str, tuple[int, ...]] = {"x86_64": (X86_64, I386), "aarch64": (AARCH64, ARM)}

# The first argument of these is the descriptor of one file; syncfs names a whole file system by one.
_ONE_FILE = frozenset({"fsync", "fdatasync", "sync_file_range"})
_MODE_SYNC = 4  # MS_SYNC of msync(2); without it the call promises nothing


def name(arch: int, number: int) -> str:
    return NUMBERS.get(arch, {}).get(number, f"call-{number}")


@dataclass(frozen=True, slots=True)
class Root:
    """Where a volume is, as its program may see it: its own path and, bound elsewhere, the program's path."""

    paths: tuple[bytes, ...]
    device: int
    mount: int

    @classmethod
    def of(cls, directory: str, bound_at: str | None = None) -> Root:
        paths = {os.fsencode(os.path.realpath(directory))}
        if bound_at is not None:
            paths.add(os.fsencode(os.path.realpath(bound_at)))
        descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return cls(
                tuple(sorted(paths)),
                os.fstat(descriptor).st_dev,
                _mount_of(f"/proc/self/fdinfo/{descriptor}"),
            )
        finally:
            os.close(descriptor)


def is_below(root: Root, path: bytes) -> bool:
    return any(at == b"/" or path == at or path.startswith(at + b"/") for at in root.paths)


def concerns(root: Root | None, call: str, pid: int, args: tuple[int, ...]) -> bool:
    """Whether a stopped call must wait for a receipt. What cannot be found out counts as yes.

    A path alone proves nothing, because the same directory can be mounted at two places: on the volume's own
    file system a path outside only counts when it was reached by the volume's own mount.
    """
    if call == "io_submit":
        return _asks_for_sync(pid, args)
    if call == "msync":
        return bool(args[2] & _MODE_SYNC)
    if root is None or call not in _ONE_FILE:
        return True
    # The kernel takes the descriptor as an int and ignores the upper half of the register.
    descriptor = args[0] & 0xFFFFFFFF
    link = f"/proc/{pid}/fd/{descriptor}"
    try:
        return is_below(root, os.fsencode(os.readlink(link))) or (
            os.stat(link).st_dev == root.device
            and _mount_of(f"/proc/{pid}/fdinfo/{descriptor}") != root.mount
        )
    except OSError:
        return True


# struct iocb: data, key, flags, opcode, ... in 64 bytes; the commands IOCB_CMD_FSYNC and IOCB_CMD_FDSYNC.
_OPCODE_AT, _SYNC_OPCODES = 16, frozenset({2, 3})
# io_submit takes more, and then counts as a sync.
_IOCBS_READ = 1024


def _asks_for_sync(pid: int, args: tuple[int, ...]) -> bool:
    """Whether one of the requests that a program hands to the kernel is an fsync."""
    count, table = args[1], args[2]
    if count > _IOCBS_READ:
        return True
    try:
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            pointers = _read(memory.fileno(), table, 8 * count)
            for (address,) in struct.iter_unpack("=Q", pointers):
                (opcode,) = struct.unpack("=H", _read(memory.fileno(), address + _OPCODE_AT, 2))
                if opcode in _SYNC_OPCODES:
                    return True
    except (OSError, OverflowError):
        return True
    return False


def _read(memory: int, address: int, size: int) -> bytes:
    data = os.pread(memory, size, address)
    if len(data) != size:
        raise OSError("the program's memory ends there")
    return data


def _mount_of(fdinfo: str) -> int:
    with open(fdinfo, "rb") as file:
        for line in file:
            if line.startswith(b"mnt_id:"):
                return int(line.split()[1])
    raise OSError(f"{fdinfo} names no mount")
