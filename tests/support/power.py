"""A disk whose power can be cut: a file system on a loop device that is shut down at once, journal and all.

After ``cut`` nothing more reaches the device: what was not durable is lost, as in a machine that loses its
power, and every access to the mounted file system fails. ``restore`` mounts it again, which replays its journal.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SIZE_BYTES = 512 * 1024 * 1024
# EXT4_IOC_SHUTDOWN, _IOR('X', 125, __u32), with EXT4_GOING_FLAGS_NOLOGFLUSH: fs/ext4/ext4.h.
_SHUTDOWN = 2 << 30 | 4 << 16 | ord("X") << 8 | 125
_WITHOUT_LOG_FLUSH = struct.pack("I", 2)
_BUSY_S = 10.0


class Disk:
    def __init__(self, image: Path, mount: Path) -> None:
        self.image = image
        self.mount = mount

    def attach(self) -> None:
        subprocess.run(["mount", "-o", "loop", str(self.image), str(self.mount)], check=True)

    def cut(self) -> None:
        root = os.open(self.mount, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(root, _SHUTDOWN, _WITHOUT_LOG_FLUSH)
        finally:
            os.close(root)

    def detach(self) -> None:
        """What the kernel remembers of the file system goes with it, also what agents had pinned below it. Waits for
        killed processes to let go.
        """
        for inside in _mounted_below(self.mount):
            subprocess.run(["umount", "-l", str(inside)], check=True)
        deadline = time.monotonic() + _BUSY_S
        while subprocess.run(["umount", str(self.mount)], check=False, capture_output=True).returncode:
            assert time.monotonic() < deadline, f"somebody still works on {self.mount}"
            time.sleep(0.05)

    def restore(self) -> None:
        self.detach()
        self.attach()


def _mounted_below(mount: Path) -> list[Path]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    # Blanks and the like stand there as octal numbers.
    names = [re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), line.split()[4]) for line in lines]
    points = [Path(name) for name in names]
    return [point for point in points if mount.resolve() in point.parents]


@contextlib.contextmanager
def disk(folder: Path, name: str) -> Iterator[Disk]:
    """Mounted at ``folder/name``, empty, open to every user."""
    if os.geteuid() != 0:
        pytest.skip("mounting a disk needs root")
    made = Disk(folder / f"{name}.img", folder / name)
    made.mount.mkdir()
    with made.image.open("wb") as image:
        image.truncate(SIZE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(made.image)], check=True)
    first = subprocess.run(
        ["mount", "-o", "loop", str(made.image), str(made.mount)], capture_output=True, text=True, check=False
    )
    if first.returncode:
        pytest.skip(f"no file system can be mounted from a file here: {first.stderr.strip()}")
    try:
        made.mount.chmod(0o755)
        (made.mount / "lost+found").rmdir()
        yield made
    finally:
        made.detach()


def send(number: signal.Signals, pids: set[int]) -> None:
    """To all that are still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
