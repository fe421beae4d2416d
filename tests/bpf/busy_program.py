"""A program that does random things to files below a directory until its time is up: ``busy_program.py
ROOT SEED SECONDS``.
"""

import contextlib
import os
import random
import sys
import time
from collections.abc import Callable

root, seed, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
os.chdir(root)
choose = random.Random(seed)


def path() -> str:
    parts = [choose.choice("abcde") for _ in range(choose.choice([1, 1, 2, 2, 3]))]
    found = "/".join(parts)
    return os.path.join(root, found) if choose.random() < 0.3 else found


def write() -> None:
    fd = os.open(path(), os.O_RDWR | os.O_CREAT | choose.choice([0, 0, os.O_TRUNC, os.O_APPEND]))
    with contextlib.closing(os.fdopen(fd, "r+b", buffering=0)) as file:
        for _ in range(choose.randrange(4)):
            os.pwrite(fd, os.urandom(choose.randrange(1, 3000)), choose.randrange(20_000))
            file.write(os.urandom(choose.randrange(1, 3000)))


acts: list[Callable[[], object]] = [
    write,
    write,
    write,
    lambda: os.truncate(path(), choose.randrange(20_000)),
    lambda: os.unlink(path()),
    lambda: os.rename(path(), path()),
    lambda: os.rename(path(), path()),
    lambda: os.mkdir(path()),
    lambda: os.mkdir(path()),
    lambda: os.rmdir(path()),
    lambda: os.link(path(), path(), follow_symlinks=False),
    lambda: os.symlink(choose.choice("abcde"), path()),
    lambda: os.chmod(path(), choose.choice([0o600, 0o644, 0o755])),
    lambda: os.setxattr(path(), "user.x", b"%d" % choose.randrange(1000)),
]
end = time.monotonic() + seconds
while time.monotonic() < end:
    with contextlib.suppress(OSError):
        choose.choice(acts)()
