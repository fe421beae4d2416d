"""A program that writes, renames, links and removes files of a directory at random, for as long as it is let.

    python name_shuffler.py DIRECTORY SEED

It reads one character from standard input to end, and prints how many operations it did.
"""

from __future__ import annotations

import os
import random
import select
import sys


def main() -> None:
    root, chance = sys.argv[1], random.Random(int(sys.argv[2]))
    os.makedirs(root, exist_ok=True)
    done = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        try:
            step(root, chance)
        except OSError:
            pass  # the name is taken, gone or of the wrong kind: part of the game
        done += 1
        if done % 50 == 0:
            sys.stdout.write(f"{done}\n")
            sys.stdout.flush()
    print(done)


def step(root: str, chance: random.Random) -> None:
    def name() -> str:
        return os.path.join(
            root, *(f"d{chance.randrange(4)}" for _ in range(chance.randrange(2))), f"f{chance.randrange(30)}"
        )

    match chance.randrange(12):
        case 0:
            os.mkdir(os.path.join(root, f"d{chance.randrange(4)}"))
        case 1:
            os.rename(
                os.path.join(root, f"d{chance.randrange(4)}"), os.path.join(root, f"d{chance.randrange(4)}")
            )
        case 2:
            os.rename(name(), name())
        case 3:
            os.unlink(name())
        case 4:
            os.link(name(), name())
        case 5:
            os.truncate(name(), chance.randrange(20_000))
        case 6:
            os.chmod(name(), 0o600 | chance.randrange(0o100))
        case 7:
            os.symlink(f"f{chance.randrange(30)}", name())
        case _:
            with open(name(), "r+b" if chance.random() < 0.5 else "wb", buffering=0) as file:
                file.seek(chance.randrange(20_000))
                file.write(chance.randbytes(chance.randrange(1, 9000)))
                if chance.random() < 0.05:
                    os.fsync(file.fileno())


if __name__ == "__main__":
    main()
