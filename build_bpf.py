"""Compiles the exact probe: a build hook of hatchling, and `python build_bpf.py` for a working copy.

One object for each architecture is made on any machine (the target is BPF, only the numbers of system calls
and the registers differ), so the wheel stays pure. ziglang brings clang; no package of the distribution is
needed.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

BPF = Path(__file__).resolve().parent / "services" / "capture" / "diffkeeper_capture" / "bpf"
ARCHITECTURES = {"x86_64": "DK_X86_64", "aarch64": "DK_AARCH64"}
TARGET = ["-target", "bpfel-freestanding", "-mcpu=v3", "-O2", "-g"]
FLAGS = [*TARGET, "-Wall", "-Wextra", "-Werror", "-fno-stack-protector", "-fno-asynchronous-unwind-tables"]


def compile_all(folder: Path = BPF) -> list[Path]:
    """Compile for every architecture, only where a source is newer than its object; the objects."""
    sources = [*folder.glob("*.c"), *folder.glob("*.h"), Path(__file__)]
    newest = max(source.stat().st_mtime_ns for source in sources)
    objects = []
    for architecture, define in ARCHITECTURES.items():
        target = folder / f"capture.{architecture}.o"
        if not target.exists() or target.stat().st_mtime_ns < newest:
            _compile(folder / "capture.bpf.c", target, define)
        objects.append(target)
    return objects


def _compile(source: Path, target: Path, define: str) -> None:
    unfinished = target.with_suffix(".o.new")
    compiler = [sys.executable, "-m", "ziglang", "cc", *FLAGS, f"-D{define}"]
    done = subprocess.run(
        [*compiler, "-c", str(source), "-o", str(unfinished)], capture_output=True, text=True, check=False
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
