"""Opens, loads and attaches the compiled probe, and hands out its maps. Knows nothing of volumes or records.

Everything the kernel keeps for the probe is reached by file descriptor through here (maps) or owned here
(links), so that a later agent can find both again below a bpffs path without its users noticing.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from pathlib import Path

from diffkeeper.domain import errors
from diffkeeper_capture import libbpf

FOLDER = Path(__file__).parent / "bpf"
PROGRAMS = ("dk_sys_enter", "dk_sys_exit")
# Programs on tracepoints that a kernel may be built without.
OPTIONAL_PROGRAMS = {
    "dk_dirty_folio": "writeback_dirty_folio",
    "dk_uring_done": "io_uring_complete",
    "dk_uring_silent": "io_uring_submit_req",
    "dk_direct_done": "iomap_dio_complete",
}

# struct bpf_prog_info, up to and with recursion_misses.
_PROGRAM_INFO_BYTES = 216
_RECURSION_MISSES = struct.Struct("=Q")
_RECURSION_MISSES_AT = 208


def object_path() -> Path:
    """Where the object for this machine lies, whether or not it was compiled."""
    return FOLDER / f"capture.{os.uname().machine}.o"


class BpfMap:
    """A map by its descriptor, with keys and values as bytes."""

    def __init__(self, lib: libbpf.Libbpf, fd: int, name: str) -> None:
        self._lib, self.fd, self.name = lib, fd, name

    def put(self, key: bytes, value: bytes) -> None:
        self._check(self._lib.call.bpf_map_update_elem(self.fd, key, value, 0), "write to")

    def remove(self, key: bytes) -> None:
        self._check(self._lib.call.bpf_map_delete_elem(self.fd, key), "remove from")

    def keys(self, size: int) -> list[bytes]:
        """All keys; one that comes while we look may be missing."""
        found: list[bytes] = []
        following = ctypes.create_string_buffer(size)
        previous: bytes | None = None
        while self._lib.call.bpf_map_get_next_key(self.fd, previous, following) == 0:
            previous = following.raw
            found.append(previous)
        return found

    def memory(self, size: int) -> mmap.mmap:
        """The values of an array map as shared memory."""
        return mmap.mmap(self.fd, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)

    def _check(self, result: int, what: str) -> None:
        if result < 0:
            raise errors.Transient(
                f"could not {what} the probe's map {self.name}: {os.strerror(-result)}",
                reason="bpf-map",
                hint="the map may be full: release volumes that are no longer needed",
            )


class LoadedProbe:
    """The object in the kernel, attached. ``close`` detaches and frees it."""

    def __init__(self, *, ring_bytes: int) -> None:
        self._lib = libbpf.load()
        self._lib.forget()
        self._links: list[int] = []
        self._programs: list[int] = []
        self._info = ctypes.create_string_buffer(_PROGRAM_INFO_BYTES)
        path = object_path()
        if not path.exists():
            raise errors.Misconfigured(
                f"the probe was not compiled: {path} is missing",
                reason="bpf-not-compiled",
                hint="reinstall diffkeeper, or run `python build_bpf.py` in a working copy",
            )
        self._handle: int | None = self._lib.call.bpf_object__open_file(os.fsencode(path), None)
        if not self._handle:
            raise self._refused(f"libbpf could not open {path}")
        missing = self._lib.missing_tracepoints(OPTIONAL_PROGRAMS.values()) or []
        # Those of the optional programs that this kernel can run.
        self.optional = {name for name, point in OPTIONAL_PROGRAMS.items() if point not in missing}
        try:
            self._load(ring_bytes)
        except BaseException:
            self.close()
            raise

    def _load(self, ring_bytes: int) -> None:
        call = self._lib.call
        ring = call.bpf_object__find_map_by_name(self._handle, b"ring")
        if call.bpf_map__set_max_entries(ring, ring_bytes) < 0:
            raise self._refused(f"a ring of {ring_bytes} bytes was refused")
        for name in OPTIONAL_PROGRAMS.keys() - self.optional:
            program = call.bpf_object__find_program_by_name(self._handle, name.encode())
            call.bpf_program__set_autoload(program, False)
        if call.bpf_object__load(self._handle) < 0:
            raise self._refused("the kernel refused to load the probe")

    def attach(self) -> None:
        """From here on the programs run at every system call of the machine."""
        for name in (*PROGRAMS, *sorted(self.optional)):
            program = self._lib.call.bpf_object__find_program_by_name(self._handle, name.encode())
            link = self._lib.call.bpf_program__attach(program)
            if not link:
                raise self._refused(f"the kernel refused to attach {name}")
            self._links.append(link)
            self._programs.append(self._lib.call.bpf_program__fd(program))

    def missed(self) -> int:
        """How often the kernel left a program out because it was running on that processor already.

        Never while system call tracepoints run with preemption off, as they do; asked so as not to depend on it.
        """
        return sum(self._misses_of(fd) for fd in self._programs)

    def _misses_of(self, fd: int) -> int:
        size = ctypes.c_uint32(_PROGRAM_INFO_BYTES)
        # The kernel reads it as well: addresses of arrays to fill, of which none is wanted.
        ctypes.memset(self._info, 0, _PROGRAM_INFO_BYTES)
        if self._lib.call.bpf_obj_get_info_by_fd(fd, self._info, ctypes.byref(size)) < 0:
            raise self._refused("the kernel does not tell about the probe's programs")
        return int(_RECURSION_MISSES.unpack_from(self._info, _RECURSION_MISSES_AT)[0])

    def map(self, name: str) -> BpfMap:
        found = self._lib.call.bpf_object__find_map_by_name(self._handle, name.encode())
        assert found, f"the object has a map {name}, or another build is installed"
        return BpfMap(self._lib, self._lib.call.bpf_map__fd(found), name)

    def max_entries(self, name: str) -> int:
        found = self._lib.call.bpf_object__find_map_by_name(self._handle, name.encode())
        return int(self._lib.call.bpf_map__max_entries(found))

    def close(self) -> None:
        while self._links:
            self._lib.call.bpf_link__destroy(self._links.pop())
        if self._handle:
            self._lib.call.bpf_object__close(self._handle)
            self._handle = None

    def _refused(self, what: str) -> errors.Misconfigured:
        return errors.Misconfigured(
            f"{what}: {os.strerror(ctypes.get_errno())}",
            reason="bpf-refused",
            hint="run `dkctl doctor`, or use the portable probe (probe: watch)",
            libbpf=self._lib.version(),
            said=self._lib.said(),
        )


_CAP_SYS_ADMIN, _CAP_PERFMON, _CAP_BPF = 21, 38, 39
# The newest kernel functions the programs call; the last of them came with Linux 6.16.
KERNEL_FUNCTIONS = ("bpf_rdonly_cast", "bpf_iter_num_new", "bpf_probe_read_user_dynptr")


def has_rights(status: str) -> bool:
    """Whether the effective capabilities in a ``/proc/PID/status`` text allow tracing programs."""
    line = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    held = int(line.split()[1], 16)
    return bool(held >> _CAP_SYS_ADMIN & 1) or bool(held >> _CAP_BPF & 1 and held >> _CAP_PERFMON & 1)


def why_not() -> str | None:
    """Why the exact probe cannot run here, as a sentence with the remedy; None when nothing is against it.

    The kernel's verifier has the last word: loading can still be refused, and then says why.
    """
    if not object_path().exists():
        return f"{object_path().name} was not compiled: reinstall diffkeeper, or run `python build_bpf.py`"
    if struct.calcsize("P") != 8:
        return "this Python is a 32-bit program: use a 64-bit one"
    if not has_rights(Path("/proc/self/status").read_text()):
        return "no right to load BPF programs: run as root, or give CAP_BPF and CAP_PERFMON"
    try:
        lib = libbpf.load()
    except errors.Misconfigured as error:
        return f"{error.message}: {error.hint}"
    if not Path("/sys/kernel/btf/vmlinux").exists():
        return "the kernel has no BTF (/sys/kernel/btf/vmlinux): use a kernel with CONFIG_DEBUG_INFO_BTF"
    missing = lib.missing_kernel_functions(KERNEL_FUNCTIONS)
    if missing is None:
        return "the kernel's BTF could not be read: mount sysfs on /sys"
    if missing:
        return f"the kernel lacks {', '.join(missing)} for BPF programs: use Linux 6.16 or newer"
    refusal = lib.why_no_map()
    if refusal:
        return f"bpf(2) is refused ({refusal}): allow it in the seccomp profile, or lift kernel lockdown"
    return None
