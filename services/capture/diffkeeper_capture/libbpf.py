"""libbpf's C API, called through ctypes: the few functions that loading a probe takes.

The library is the one inside the extension module of ``pylibbpf`` (which exports all of libbpf), else the
system's ``libbpf.so.1``. What libbpf has to say goes into a short memory instead of standard error, so that
an error can quote it.
"""

from __future__ import annotations

import collections
import ctypes
import ctypes.util
import functools
import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path

from diffkeeper.domain import errors

_Pointer = ctypes.c_void_p
_Text = ctypes.c_char_p
_Fd = ctypes.c_int
_PrintFunction = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, _Text, ctypes.c_void_p)

_PROTOTYPES: dict[str, tuple[object, tuple[object, ...]]] = {
    "libbpf_set_print": (_Pointer, (_PrintFunction,)),
    "libbpf_version_string": (_Text, ()),
    "bpf_object__open_file": (_Pointer, (_Text, _Pointer)),
    "bpf_object__load": (ctypes.c_int, (_Pointer,)),
    "bpf_object__close": (None, (_Pointer,)),
    "bpf_object__find_map_by_name": (_Pointer, (_Pointer, _Text)),
    "bpf_object__find_program_by_name": (_Pointer, (_Pointer, _Text)),
    "bpf_program__attach": (_Pointer, (_Pointer,)),
    "bpf_program__fd": (_Fd, (_Pointer,)),
    "bpf_program__set_autoload": (ctypes.c_int, (_Pointer, ctypes.c_bool)),
    "bpf_link__destroy": (ctypes.c_int, (_Pointer,)),
    "bpf_link__fd": (_Fd, (_Pointer,)),
    "bpf_obj_pin": (ctypes.c_int, (_Fd, _Text)),
    "bpf_obj_get": (_Fd, (_Text,)),
    "bpf_obj_get_info_by_fd": (ctypes.c_int, (_Fd, _Pointer, ctypes.POINTER(ctypes.c_uint32))),
    "bpf_object__next_map": (_Pointer, (_Pointer, _Pointer)),
    "bpf_map__name": (_Text, (_Pointer,)),
    "bpf_map__fd": (_Fd, (_Pointer,)),
    "bpf_map__set_max_entries": (ctypes.c_int, (_Pointer, ctypes.c_uint32)),
    "bpf_map__max_entries": (ctypes.c_uint32, (_Pointer,)),
    "bpf_map_create": (
        _Fd,
        (ctypes.c_int, _Text, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint32, _Pointer),
    ),
    "bpf_map_update_elem": (ctypes.c_int, (_Fd, _Pointer, _Pointer, ctypes.c_uint64)),
    "bpf_map_delete_elem": (ctypes.c_int, (_Fd, _Pointer)),
    "bpf_map_lookup_elem": (ctypes.c_int, (_Fd, _Pointer, _Pointer)),
    "bpf_map_get_next_key": (ctypes.c_int, (_Fd, _Pointer, _Pointer)),
    "btf__load_vmlinux_btf": (_Pointer, ()),
    "btf__find_by_name_kind": (ctypes.c_int, (_Pointer, _Text, ctypes.c_uint32)),
    "btf__free": (None, (_Pointer,)),
}

_LEVEL_DEBUG = 2
# A verifier log is one message of many kilobytes; its end is where the refusal stands.
_MESSAGE_MAX_BYTES = 4 * 1024 * 1024
_QUOTED_CHARS = 1200


class Libbpf:
    """The loaded library. Functions are attributes: ``lib.call.bpf_object__load(handle)``."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.call = ctypes.CDLL(path, use_errno=True)
        for name, (result, arguments) in _PROTOTYPES.items():
            function = getattr(self.call, name)
            function.restype, function.argtypes = result, arguments
        self._said: collections.deque[str] = collections.deque(maxlen=40)
        self._format = ctypes.CDLL(None).vsnprintf
        self._format.argtypes = [_Pointer, ctypes.c_size_t, _Text, ctypes.c_void_p]
        # Kept alive: libbpf calls it for as long as it is loaded.
        self._printer = _PrintFunction(self._remember)
        self.call.libbpf_set_print(self._printer)

    def _remember(self, level: int, template: bytes, arguments: int) -> int:
        if level < _LEVEL_DEBUG:
            buffer = ctypes.create_string_buffer(_MESSAGE_MAX_BYTES)
            self._format(buffer, _MESSAGE_MAX_BYTES, template, arguments)
            self._said.append(buffer.value.decode(errors="replace").rstrip())
        return 0

    def forget(self) -> None:
        self._said.clear()

    def said(self) -> str:
        """The end of what libbpf said since ``forget``."""
        return "\n".join(self._said)[-_QUOTED_CHARS:]

    def version(self) -> str:
        return str(self.call.libbpf_version_string().decode())

    def missing_kernel_functions(self, names: tuple[str, ...]) -> list[str] | None:
        """Which of these the kernel does not offer to BPF programs; None when its BTF cannot be read."""
        btf_kind_function = 12
        return self._missing(names, btf_kind_function)

    def missing_tracepoints(self, names: Iterable[str]) -> list[str] | None:
        """Which of these tracepoints the kernel does not have; None when its BTF cannot be read."""
        btf_kind_typedef = 8
        missing = self._missing([f"btf_trace_{name}" for name in names], btf_kind_typedef)
        return missing and [name.removeprefix("btf_trace_") for name in missing]

    def _missing(self, names: Iterable[str], kind: int) -> list[str] | None:
        btf = self.call.btf__load_vmlinux_btf()
        if not btf:
            return None
        try:
            return [n for n in names if self.call.btf__find_by_name_kind(btf, n.encode(), kind) < 0]
        finally:
            self.call.btf__free(btf)

    def why_no_map(self) -> str | None:
        """The system's word when this process may not make a BPF map, which every probe needs first."""
        hash_map = 1
        fd = self.call.bpf_map_create(hash_map, b"dk_rights", 4, 4, 1, None)
        if fd < 0:
            return os.strerror(-fd)
        os.close(fd)
        return None


def _candidates() -> list[str]:
    found = []
    spec = importlib.util.find_spec("pylibbpf")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        found += sorted(str(path) for path in Path(folder).glob("pylibbpf*.so"))
    return [*found, "libbpf.so.1"]


@functools.cache
def load() -> Libbpf:
    """The library, loaded once a process; ``Misconfigured`` where there is none that has all we call."""
    refusals = []
    for path in _candidates():
        try:
            return Libbpf(path)
        except (OSError, AttributeError) as error:
            refusals.append(f"{path}: {error}")
    raise errors.Misconfigured(
        "libbpf was not found",
        reason="no-libbpf",
        hint="pip install 'diffkeeper[capture]' (x86-64), or the system package libbpf1 (1.0 or newer)",
        tried="; ".join(refusals),
    )
