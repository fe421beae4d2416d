"""Opens, loads and attaches the compiled probe, and hands out its maps. Knows nothing of volumes or records.

Everything the kernel keeps for the probe (maps, programs, their attachment) is reached by file descriptor through
here, and pinned below a folder of a BPF file system when one is given (``diffkeeper.pins``). What a dead
predecessor pinned there is taken over as it runs, if it was made by the same object with the same ring.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import secrets
import struct
from pathlib import Path

from diffkeeper import pins
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
# Symbolic links beside the pins. BUILD is made last but one, OWNER last: a folder without it is half made.
_BUILD, _IDENTITY = "build", "identity"

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

    def get(self, key: bytes, size: int) -> bytes | None:
        """The value of a key, of ``size`` bytes."""
        value = ctypes.create_string_buffer(size)
        return None if self._lib.call.bpf_map_lookup_elem(self.fd, key, value) < 0 else value.raw

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
    """The object in the kernel. ``attach`` it unless ``is_adopted``; ``close`` leaves what is pinned running."""

    def __init__(self, *, ring_bytes: int, folder: Path | None = None, owner: Path | None = None) -> None:
        """``folder``: where to pin, and where to look for what a predecessor pinned; ``owner``: whose it is."""
        self._lib = libbpf.load()
        self._lib.forget()
        self._handle: int | None = None
        self._links: list[int] = []
        self._maps: dict[str, int] = {}
        self._programs: list[int] = []
        self._opened: list[int] = []
        self._info = ctypes.create_string_buffer(_PROGRAM_INFO_BYTES)
        self._folder, self._owner = folder, owner
        # Of this ring, from its making to its end: positions in it mean nothing in another.
        self.identity = secrets.token_hex(16)
        path = object_path()
        if not path.exists():
            raise errors.Misconfigured(
                f"the probe was not compiled: {path} is missing",
                reason="bpf-not-compiled",
                hint="reinstall diffkeeper, or run `python build_bpf.py` in a working copy",
            )
        missing = self._lib.missing_tracepoints(OPTIONAL_PROGRAMS.values()) or []
        # Those of the optional programs that this kernel can run.
        self.optional = {name for name, point in OPTIONAL_PROGRAMS.items() if point not in missing}
        self._names = (*PROGRAMS, *sorted(self.optional))
        self._build = hashlib.sha256(path.read_bytes()).hexdigest()[:32] + f"-{ring_bytes}"
        self.is_adopted = folder is not None and self._adopt(folder)
        if self.is_adopted:
            return
        self._handle = self._lib.call.bpf_object__open_file(os.fsencode(path), None)
        if not self._handle:
            raise self._refused(f"libbpf could not open {path}")
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
        found = call.bpf_object__next_map(self._handle, None)
        while found:
            self._maps[call.bpf_map__name(found).decode()] = call.bpf_map__fd(found)
            found = call.bpf_object__next_map(self._handle, found)

    def attach(self) -> None:
        """From here on the programs run at every system call of the machine; pinned last, so that a death in
        between leaves nothing behind that runs.
        """
        assert not self.is_adopted, "what was adopted is attached"
        for name in self._names:
            program = self._lib.call.bpf_object__find_program_by_name(self._handle, name.encode())
            link = self._lib.call.bpf_program__attach(program)
            if not link:
                raise self._refused(f"the kernel refused to attach {name}")
            self._links.append(link)
            self._programs.append(self._lib.call.bpf_program__fd(program))
        if self._folder is not None:
            self._pin(self._folder)

    def _pin(self, folder: Path) -> None:
        things = {_pin_name("map", name): fd for name, fd in self._maps.items()}
        things |= {_pin_name("prog", name): fd for name, fd in zip(self._names, self._programs, strict=True)}
        things |= {
            _pin_name("link", name): self._lib.call.bpf_link__fd(link)
            for name, link in zip(self._names, self._links, strict=True)
        }
        for name, fd in things.items():
            if self._lib.call.bpf_obj_pin(fd, os.fsencode(folder / name)) < 0:
                raise self._refused(f"{folder / name} could not be pinned")
        os.symlink(self.identity, folder / _IDENTITY)
        os.symlink(self._build, folder / _BUILD)
        os.symlink(self._owner or folder, folder / pins.OWNER)

    def _adopt(self, folder: Path) -> bool:
        """Take over what is pinned; False, and the folder empty, when there is nothing whole of this build."""
        try:
            if not (folder / pins.OWNER).is_symlink() or os.readlink(folder / _BUILD) != self._build:
                raise FileNotFoundError(_BUILD)
            self.identity = os.readlink(folder / _IDENTITY)
            self._programs = [self._get(folder / _pin_name("prog", name)) for name in self._names]
            for name in self._names:
                self._get(folder / _pin_name("link", name))
        except OSError:
            self.close()
            self._programs, self._opened = [], []
            for name in os.listdir(folder):
                (folder / name).unlink()
            return False
        return True

    def _get(self, path: Path) -> int:
        fd: int = self._lib.call.bpf_obj_get(os.fsencode(path))
        if fd < 0:
            raise OSError(-fd, os.strerror(-fd), path)
        self._opened.append(fd)
        return fd

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
        if name not in self._maps and self.is_adopted:
            assert self._folder is not None, "what was adopted is pinned"
            self._maps[name] = self._get(self._folder / _pin_name("map", name))
        assert name in self._maps, f"the object has a map {name}, or another build is installed"
        return BpfMap(self._lib, self._maps[name], name)

    def close(self) -> None:
        """Let go of everything here. What is not pinned ends with it."""
        while self._links:
            self._lib.call.bpf_link__destroy(self._links.pop())
        while self._opened:
            os.close(self._opened.pop())
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


def _pin_name(kind: str, name: str) -> str:
    # A name in a BPF file system has no dot.
    return f"{kind}-{name.replace('.', '_')}"


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
