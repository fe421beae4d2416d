"""The filter program, run by a small interpreter of classic BPF; and where a path counts."""

from __future__ import annotations

import ctypes
import os
import struct

import pytest

from diffkeeper_capture import call_table, seccomp, sync_calls
from diffkeeper_capture.sync_calls import AARCH64, ARM, I386, NUMBERS, X86_64

ALLOW, NOTIFY, REFUSE = 0x7FFF0000, 0x7FC00000, 0x00050001


def verdict(program: bytes, arch: int, number: int) -> int:
    data = struct.pack("<iI", number, arch)
    code = [struct.unpack_from("<HBBI", program, at) for at in range(0, len(program), 8)]
    at = accumulator = 0
    while True:
        operation, if_true, if_false, value = code[at]
        at += 1
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, value)
            case 0x15:
                at += if_true if accumulator == value else if_false
            case 0x06:
                return int(value)
            case other:
                raise AssertionError(f"operation {other:#x}")


X32 = 0x40000000


@pytest.mark.parametrize("arches", [(X86_64, I386), (AARCH64, ARM)])
@pytest.mark.parametrize("io_uring", [False, True])
def test_exactly_the_sync_calls_of_the_machines_architectures_are_stopped(
    arches: tuple[int, ...], io_uring: bool
) -> None:
    program = seccomp.assemble(arches, io_uring=io_uring)
    for arch in NUMBERS:
        for number in (*range(600), *range(X32, X32 + 600)):
            wanted = NOTIFY if arch in arches and number in NUMBERS[arch] else ALLOW
            if number == sync_calls.IO_URING_SETUP and arch in arches and not io_uring:
                wanted = REFUSE
            assert verdict(program, arch, number) == wanted, (arch, number)


def test_linux_aio_waits_only_when_it_asks_for_a_sync() -> None:
    requests = [
        ctypes.create_string_buffer(struct.pack("=QIiH", 0, 0, 0, opcode), 64) for opcode in (1, 0, 3)
    ]

    def asks(*indexes: int) -> bool:
        table = (ctypes.c_uint64 * len(indexes))(*(ctypes.addressof(requests[index]) for index in indexes))
        args = (0, len(indexes), ctypes.addressof(table), 0, 0, 0)
        return sync_calls.concerns(None, "io_submit", os.getpid(), args)

    assert not asks(0, 1)
    assert asks(0, 1, 2)
    assert sync_calls.concerns(None, "io_submit", os.getpid(), (0, 1, 8, 0, 0, 0)), (
        "what cannot be read counts"
    )


def test_a_path_beside_the_root_with_its_name_as_prefix_is_not_below_it() -> None:
    root = sync_calls.Root((b"/data/v",), 1, 1)
    assert sync_calls.is_below(root, b"/data/v/x")
    assert sync_calls.is_below(root, b"/data/v")
    assert not sync_calls.is_below(root, b"/data/v2/x")


def test_msync_waits_only_when_it_is_synchronous() -> None:
    assert sync_calls.concerns(None, "msync", 1, (0, 4096, 4, 0, 0, 0))
    assert not sync_calls.concerns(None, "msync", 1, (0, 4096, 1, 0, 0, 0))


def test_what_cannot_be_looked_up_counts_as_inside() -> None:
    root = sync_calls.Root((b"/data/v",), 1, 1)
    assert sync_calls.concerns(root, "fsync", 1 << 22, (3, 0, 0, 0, 0, 0))
    assert sync_calls.concerns(root, "sync", 1, (0,) * 6)


def test_the_table_of_calls_survives_its_writer_and_takes_no_more_than_it_holds() -> None:
    table = call_table.CallTable.create()
    for ident in range(1, call_table.SLOTS + 1):
        assert table.has_room
        table.note(seccomp.Stopped(ident, ident % 7, "fdatasync", ()))
    assert not table.has_room
    table.strike(5)
    assert table.has_room
    successor = call_table.CallTable(table.descriptor)
    assert [ident for ident, _, _ in successor.waiting()] == [
        n for n in range(1, call_table.SLOTS + 1) if n != 5
    ]
    assert successor.waiting()[0] == (1, 1, "fdatasync")
    table.close()
