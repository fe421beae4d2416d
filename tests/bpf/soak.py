"""The mixed ways of writing for as long as one likes: ``make soak SEED=1 MINUTES=120 MIXERS=3``.

A round that fails prints its seed, what differs, and (``TRACE=1``) every record and delta of the round.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.bpf.mixing import Mixing
from tests.bpf.recording import Lines, Watched

from diffkeeper.domain.deltas import Delta, Op
from diffkeeper_capture.bpf_probe import BpfProbe
from diffkeeper_capture.records import NO_VOLUME, Kind

RING_BYTES = 64 * 1024 * 1024
MIXERS = 3
# A new volume after so many rounds, so that it does not only ever meet what earlier rounds left.
ROUNDS_A_VOLUME = 100


def main() -> int:
    seed = int(os.environ.get("SEED") or random.randrange(1 << 30))
    end = time.monotonic() + 60 * float(os.environ.get("MINUTES") or "10")
    mixers = int(os.environ.get("MIXERS") or MIXERS)
    probe = BpfProbe(RING_BYTES)
    rounds = 0
    try:
        while time.monotonic() < end:
            with tempfile.TemporaryDirectory(prefix="dk-soak-") as folder:
                done = _volume(probe, Path(folder), seed + rounds, mixers, end, rounds + 1)
            if not done:
                return 1
            rounds += done
            print(f"{rounds} rounds are well, the last with seed {seed + rounds - 1}", flush=True)
    finally:
        probe.close()
    return 0


def _volume(probe: BpfProbe, folder: Path, seed: int, mixers: int, end: float, slot: int) -> int:
    """Rounds at one volume; how many, 0 after a failure."""
    root = folder / "volume"
    root.mkdir()
    fd = os.open(root, os.O_RDONLY)
    probe.drain(lambda record, payload: None)
    probe.watch(slot, fd)
    os.close(fd)
    names_by_ring = mixers == 1 or bool(os.environ.get("RING_NAMES"))
    mixing = Mixing(Watched(probe, root, slot), folder, mixers, names_by_ring=names_by_ring)
    mixing.following.trace = [] if os.environ.get("TRACE") else None
    try:
        for number in range(ROUNDS_A_VOLUME):
            try:
                mixing.round(seed + number)
            except AssertionError as error:
                print(f"seed {seed + number} (round {number + 1} of its volume):\n{error}", file=sys.stderr)
                _tell(mixing, root)
                return 0
            if time.monotonic() > end:
                return number + 1
    finally:
        mixing.close()
        probe.unwatch(slot)
        shutil.rmtree(root, ignore_errors=True)
    return ROUNDS_A_VOLUME


def _tell(mixing: Mixing, root: Path) -> None:
    """Everything of this volume about the files that differ, and all of the last round."""
    following = mixing.following
    if following.trace is None:
        return
    ids: set[int] = set()
    for path in mixing.wrong:
        file_id = following.observer.shadow.tree.walk(path)
        ids.add(file_id or 0)
        inode = following.observer.shadow.inode_of.get(file_id or 0)
        print(f"{path!r} is id {file_id}, inode {inode}", file=sys.stderr)
    inodes = {following.observer.shadow.inode_of.get(file_id) for file_id in ids}
    lines = Lines(root)
    at = 0
    for record, payload, before in following.trace:
        recent = before >= mixing.round_begins
        for number in range(at, before):
            _tell_delta(following.told[number], ids, recent=number >= mixing.round_begins)
        at = before
        is_ours = os.fsencode(root.parent) in payload or record.inode in inodes
        if record.volume == NO_VOLUME and not is_ours and record.kind != Kind.UNSEEN:
            continue
        (line,) = lines.of([(record, payload)])
        if recent or record.inode in inodes or record.inode2 in inodes:
            print(f"{record.tid} {record.start_ns} {record.end_ns} {record.inode} {line}", file=sys.stderr)
    for delta in following.told[at:]:
        _tell_delta(delta, ids, recent=True)


def _tell_delta(delta: Delta, ids: set[int], *, recent: bool) -> None:
    if not recent and delta.file_id not in ids:
        return
    data = delta.data[:30] if delta.op is Op.WRITE else b""
    words = delta.op.name, delta.file_id, delta.offset, delta.length, data, delta.args
    print("    ", *words, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
