"""Compiles the exact probe and the capture's inner loop: a build hook of hatchling, and `python build_bpf.py` for a
working copy.

One object for each architecture is made on any machine (the probe's target is BPF, where only the numbers of
system calls and the registers differ; the loop is plain C without any part of Python in it, so it is
cross-compiled and serves every version), so one wheel is right everywhere and stays pure. Where no object fits, such
as beside another C library, the loop's twin in Python does the same. ziglang brings clang; no package of the
distribution is needed.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

CAPTURE = Path(__file__).resolve().parent / "services" / "capture" / "diffkeeper_capture"
BPF = CAPTURE / "bpf"
NATIVE = CAPTURE / "native"
ARCHITECTURES = {"x86_64": "DK_X86_64", "aarch64": "DK_AARCH64"}
TARGET = ["-target", "bpfel-freestanding", "-mcpu=v3", "-O2", "-g"]
WARNINGS = ["-Wall", "-Wextra", "-Werror"]
FLAGS = [*TARGET, *WARNINGS, "-fno-stack-protector", "-fno-asynchronous-unwind-tables"]
# The oldest C library that any supported Python runs with.
SHARED = ["-shared", "-fPIC", "-O2", "-s", *WARNINGS]
C_LIBRARY = "linux-gnu.2.17"


def compile_all(bpf: Path = BPF, native: Path = NATIVE) -> list[Path]:
    """Compile for every architecture, only where a source is newer than its object; the objects."""
    objects = []
    for architecture, define in ARCHITECTURES.items():
        probe = bpf / f"capture.{architecture}.o"
        _compile(bpf / "capture.bpf.c", probe, [*FLAGS, f"-D{define}", "-c"])
        objects.append(probe)
        for name in ("write_lanes", "syncer"):
            loop = native / f"{name}.{architecture}.so"
            _compile(native / f"{name}.c", loop, ["-target", f"{architecture}-{C_LIBRARY}", *SHARED])
            objects.append(loop)
    return objects


def _compile(source: Path, target: Path, flags: list[str]) -> None:
    sources = [*source.parent.glob("*.c"), *source.parent.glob("*.h"), Path(__file__)]
    newest = max(source.stat().st_mtime_ns for source in sources)
    if target.exists() and target.stat().st_mtime_ns >= newest:
        return
    unfinished = target.with_name(f"{target.name}.new")
    compiler = [sys.executable, "-m", "ziglang", "cc", *flags]
    done = subprocess.run(
        [*compiler, str(source), "-o", str(unfinished)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"could not compile {source.name} for {target.name}:\n{done.stderr}")
    unfinished.replace(target)


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run by hand in a working copy, where hatchling need not be installed
    pass
else:

    class CustomBuildHook(BuildHookInterface[Any]):
        """For standard and editable builds alike: the latter need the objects beside their sources."""

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            compile_all()


if __name__ == "__main__":
    for path in compile_all():
        print(path)
