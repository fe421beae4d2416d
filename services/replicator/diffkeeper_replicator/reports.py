"""What the admin calls tell of a replica: rows of its log, the digest of its directory, and the proof that
both agree.
"""

from __future__ import annotations

import asyncio
import base64
import shutil
import tempfile
import time
from collections import deque
from itertools import islice
from pathlib import Path
from typing import Any

from diffkeeper.domain import clocks, errors, frames, positions
from diffkeeper_replicator import history_base, verify
from diffkeeper_replicator.journal import Journal
from diffkeeper_replicator.replica import Replica

LOG_MAX_ROWS = 10_000


def path_text(path: str) -> str:
    """A path as JSON can carry it: as it is when it is UTF-8, else ``b64:`` and its bytes."""
    raw = path.encode("utf-8", "surrogateescape")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "b64:" + base64.b64encode(raw).decode()


def frame_row(frame: frames.Frame) -> dict[str, Any]:
    header = frame.header
    return {
        "position": str(frame.position),
        "parent": str(header.parent),
        "hash": frame.hash.hex(),
        "origin": header.origin,
        "flags": [flag.name.lower() for flag in frames.Flag if flag in header.flags and flag.name],
        "fidelity": header.fidelity.name.lower(),
        "count": header.count,
        "bytes": header.body_bytes,
        "first_us": clocks.to_micros(header.first),
        "last_us": clocks.to_micros(header.last),
        "successor": header.successor,
    }


async def log_rows(replica: Replica, after: positions.Position | None, limit: int) -> list[dict[str, Any]]:
    """The frames after a position, or the last ones; newest last."""
    limit = max(0, min(limit, LOG_MAX_ROWS))

    def read() -> list[dict[str, Any]]:
        journal = (
            replica.intake.journal if replica.intake is not None else Journal.open(replica.files.journal)
        )
        try:
            if after is not None:
                return [frame_row(frame) for frame in islice(journal.frames_from(after.sequence + 1), limit)]
            first = max(0, journal.tip.position.sequence - limit)
            return [frame_row(frame) for frame in deque(journal.frames_from(first + 1), limit)]
        finally:
            if replica.intake is None:
                journal.close()

    return await asyncio.to_thread(read)


async def digest(replica: Replica) -> dict[str, Any]:
    """Every path of the directory with the position it shows; null while a program may be writing to it."""
    position, entries = await _quiet_digest(replica)
    return {
        "position": str(position) if position is not None else None,
        "entries": {path_text(path): list(entry) for path, entry in entries.items()},
    }


async def _quiet_digest(replica: Replica) -> tuple[positions.Position | None, dict[str, verify.Entry]]:
    replayer = replica.replayer
    if replayer is None:
        return None, await asyncio.to_thread(verify.digest, replica.path)
    opened = replayer.directory
    if opened is None:
        raise replayer.trouble or errors.Transient("the replica is being opened", reason="opening")
    # In the applier's own thread, so that nothing is applied meanwhile.
    found: tuple[positions.Position, dict[str, verify.Entry]] = await replayer.in_thread(
        lambda: (opened.tip.position, opened.digest())
    )
    return found


async def prove(replica: Replica) -> dict[str, Any]:
    """The journal's chain from the first frame, and its replay into a scratch directory compared with the
    replica.
    """
    began = time.monotonic()
    if replica.intake is None:
        journal = await asyncio.to_thread(Journal.open, replica.files.journal)
        try:
            chain = await asyncio.to_thread(_prove_chain, journal)
        finally:
            journal.close()
        compared = _not_compared("the directory is its program's", None)
    else:
        chain = await asyncio.to_thread(_prove_chain, replica.intake.journal)
        compared = await _prove_directory(replica, replica.intake.journal)
    return {
        "volume": replica.volume,
        "ok": chain["ok"] and compared["ok"] is not False,
        "chain": chain,
        "replica": compared,
        "took_ms": round((time.monotonic() - began) * 1000, 3),
    }


def _prove_chain(journal: Journal) -> dict[str, Any]:
    count, tip = 0, journal.tip
    try:
        for frame in journal.frames_from(journal.first):
            frame.columns()
            count += 1
            if frame.position == tip.position:
                break
    except errors.Corrupt as error:
        return {"ok": False, "frames": count, "position": str(tip.position), "error": error.to_dict()}
    return {"ok": True, "frames": count, "position": str(tip.position), "error": None}


async def _prove_directory(replica: Replica, journal: Journal) -> dict[str, Any]:
    try:
        position, found = await _quiet_digest(replica)
        assert position is not None, "a follower's directory shows a position"
        if position > journal.tip.position:
            return {
                "ok": None,
                "compared": "nothing: the frames before the tree state it was taken over with are still "
                "on their way",
                "position": str(position),
            }
        expected = await asyncio.to_thread(_replayed, replica, journal, position)
    except errors.DiffKeeperError as error:
        return {**_not_compared("it could not be read", None), "ok": False, "error": error.to_dict()}
    different = verify.differences(expected, found)
    return {
        "ok": not different,
        "compared": "the directory with a replay of the journal from its first frame",
        "position": str(position),
        "differences": [
            {
                "path": path_text(one.path),
                "expected": list(one.expected) if one.expected is not None else None,
                "found": list(one.found) if one.found is not None else None,
            }
            for one in different
        ],
        "error": None,
    }


def _not_compared(why: str, position: positions.Position | None) -> dict[str, Any]:
    place = str(position) if position is not None else None
    return {"ok": None, "compared": f"nothing: {why}", "position": place, "differences": [], "error": None}


def _replayed(replica: Replica, journal: Journal, upto: positions.Position) -> dict[str, verify.Entry]:
    scratch = Path(tempfile.mkdtemp(prefix="verify-", dir=replica.files.directory))
    try:
        tree = scratch / "tree"
        tree.mkdir(mode=0o700)
        base = history_base.begin(replica.volume, replica.files.directory, journal, tree)
        log = islice(journal.frames_from(journal.first), upto.sequence - base.position.sequence)
        verify.replay_on(base, log, tree, allow_setid=replica.allow_setid)
        return verify.digest(tree)
    finally:
        shutil.rmtree(scratch)
