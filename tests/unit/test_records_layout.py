"""The record and the shared state have the same layout in C and in Python."""

from __future__ import annotations

import ctypes
import math
import re
import struct
from pathlib import Path

import pytest

from diffkeeper_capture import bpf_loader, bpf_probe, records

HEADER = (bpf_loader.FOLDER / "dk_record.h").read_text()
LETTERS = {"u16": "H", "u32": "I", "u64": "Q"}
C_TYPES = {"u32": ctypes.c_uint32, "u64": ctypes.c_uint64}


def fields_of(name: str) -> list[tuple[str, str]]:
    """(type, name) of the fields of a C structure, comments left out."""
    body = re.search(rf"struct {name} {{(.*?)\n}};", HEADER, re.DOTALL)
    assert body, name
    text = re.sub(r"/\*.*?\*/", "", body.group(1), flags=re.DOTALL)
    return [(kind, field) for kind, field in re.findall(r"(\w+) ([\w\[\] /]+);", text)]


def constants_of(name: str) -> dict[str, int]:
    """Members of a C enumeration, counted as C counts them."""
    body = re.search(rf"enum {name} {{(.*?)}};", HEADER, re.DOTALL)
    assert body, name
    found: dict[str, int] = {}
    following = 0
    for member, value in re.findall(r"(\w+)(?: = (\d+))?,", body.group(1)):
        following = int(value) if value else following
        found[member] = following
        following += 1
    return found


def number_of(define: str) -> int:
    text = re.search(rf"#define {define} (.*?)(?: /\*|\n)", HEADER)
    assert text, define
    return math.prod(int(factor.strip(" ()u"), 0) for factor in text.group(1).split("*"))


def test_head_has_the_fields_of_the_c_record_in_order() -> None:
    fields = fields_of("dk_record")
    assert tuple(name for _, name in fields) == records.Record._fields
    assert records.HEAD.format == "<" + "".join(LETTERS[kind] for kind, _ in fields)
    # Packed and naturally aligned layouts agree, so C adds no padding.
    assert struct.calcsize("=" + records.HEAD.format[1:]) == struct.calcsize("@" + records.HEAD.format[1:])


@pytest.mark.parametrize(
    ("c_name", "prefix", "python"),
    [
        ("dk_kind", "KIND_", records.Kind),
        ("dk_flag", "FLAG_", records.Flag),
        ("dk_path_op", "OP_", records.PathOp),
        ("dk_follows", "FOLLOWS_", bpf_probe.Follows),
    ],
)
def test_constants_are_the_same(c_name: str, prefix: str, python: type[records.Kind]) -> None:
    assert constants_of(c_name) == {prefix + member.name: int(member) for member in python}


def test_limits_are_the_same() -> None:
    assert number_of("PAYLOAD_MAX") == records.PAYLOAD_MAX_BYTES
    assert number_of("COPY_MAX") == records.COPY_MAX_BYTES
    assert number_of("NO_VOLUME") == records.NO_VOLUME
    compat = (bpf_loader.FOLDER / "dk_others.h").read_text()
    assert f"#define COMPAT_NUMBER {records.COMPAT_CALL:#x}" in compat
    assert number_of("URING_NUMBER") == records.URING_CALL
    assert number_of("MAPPED_FOLLOWED") == records.Mapping.FOLLOWED
    assert number_of("MAPPED_DIRTY") == records.Mapping.DIRTY


def test_shared_state_is_the_same() -> None:
    wanted: list[tuple[str, object]] = []
    for kind, field in fields_of("dk_state"):
        if "[" in field:
            wanted.append(
                (field.partition("[")[0], ctypes.sizeof(C_TYPES[kind]) * number_of("INODE_BITS") // 64)
            )
        else:
            wanted.append((field, ctypes.sizeof(C_TYPES[kind])))
    assert [(name, ctypes.sizeof(kind)) for name, kind in bpf_probe.State._fields_] == wanted


def test_every_source_names_its_licence_first() -> None:
    for source in [*bpf_loader.FOLDER.glob("*.c"), *bpf_loader.FOLDER.glob("*.h")]:
        first = Path(source).read_text().splitlines()[0]
        assert "SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause" in first, source
