"""A program that appends numbered lines and says each number once its fsync has returned.

    python line_writer.py DIRECTORY

It goes on after the highest whole line it finds, so a second start continues the first.
"""

from __future__ import annotations

import os
import signal
import sys
import time


def main() -> None:
    path = os.path.join(sys.argv[1], "lines")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    number = 0
    if os.path.exists(path):
        with open(path, "rb") as file:
            number = file.read().count(b"\n")
    with open(path, "ab", buffering=0) as file:
        while True:
            number += 1
            file.write(b"%d\n" % number)
            os.fsync(file.fileno())
            sys.stdout.write(f"{number}\n")
            sys.stdout.flush()
            time.sleep(0.002)


if __name__ == "__main__":
    main()
