"""A tree of files served as a history would, and made lazily: real filler processes, a real server, no replicator."""

from __future__ import annotations

import fcntl
import http.server
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from blake3 import blake3

from diffkeeper.changes import Change
from diffkeeper.domain import errors
from diffkeeper.lazy import places, plans, sources, trees

TOKEN = "the token"
# What the command line of each process of a tree has.
_WORDS = {
    "worker": b"diffkeeper.lazy.worker",
    "keeper": b"diffkeeper.lazy.keeper",
    "holder": b"/holder_process.py",
}


class Content:
    """Files by path; a key is their number."""

    def __init__(self) -> None:
        self.files: dict[bytes, bytes] = {}
        # As they were when they were told: what a test expects changes with what its programs write.
        self._told: list[bytes] = []
        # Keys of which nothing good is left.
        self.damaged: set[int] = set()
        self.delay_s = 0.0
        # Of one file, by its path.
        self.slow: dict[bytes, float] = {}
        self.asked = 0

    def stream(self) -> Iterator[Change]:
        made: set[bytes] = set()
        self._told = list(self.files.values())
        for key, (path, data) in enumerate(self.files.items()):
            above = path.rpartition(b"/")[0]
            if above and above not in made:
                made.add(above)
                yield ("mkdir", above)
            yield ("create", path)
            yield ("sparse", path, key, len(data), plans.pack_runs(runs_of(data)))
            yield ("owner", path, 0o640, os.getuid(), os.getgid())
            yield ("times", path, None, 1_700_000_000_000_000_000 + key)
        for above in made:
            yield ("owner", above, 0o755, os.getuid(), os.getgid())
        yield ("owner", b"", 0o755, os.getuid(), os.getgid())

    def part(self, text: str) -> bytes:
        key, offset, length = map(int, text.split(":"))
        time.sleep(self.slow.get(list(self.files)[key], 0.0))
        if key in self.damaged:
            raise errors.Corrupt(f"chunk of file {key} is damaged", reason="chunk-damaged")
        return self._told[key][offset : offset + length]


def runs_of(data: bytes) -> list[tuple[int, int]]:
    """Blocks that are not zeros, neighbours as one."""
    runs: list[tuple[int, int]] = []
    for start in range(0, len(data), 4096):
        end = min(start + 4096, len(data))
        if data[start:end].strip(b"\0"):
            if runs and runs[-1][1] == start:
                runs[-1] = (runs[-1][0], end)
            else:
                runs.append((start, end))
    return runs


class Served:
    """``content`` over HTTP, as ``…/history/range`` does it."""

    def __init__(self, content: Content) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                query = parse_qs(urlsplit(self.path).query)
                time.sleep(content.delay_s)
                content.asked += 1
                try:
                    data = b"".join(map(content.part, query["part"]))
                    status, body = 200, blake3(data).digest() + data
                except errors.DiffKeeperError as error:
                    status, body = 500, json.dumps({"error": error.to_dict()}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class LazyRig:
    """One tree at ``target``. ``close`` ends its processes and takes away what is left of it."""

    def __init__(self, folder: Path, content: Content) -> None:
        self.target = folder / "restored"
        self.folder = places.folder_of(self.target)
        self.content = content
        self.served = Served(content)

    def make(self, *, background: bool = True, read_only: bool = False, temporary: bool = False) -> None:
        where = sources.Address("orders", "1.1", self.served.address, TOKEN)
        note = trees.Note(str(self.target), background, read_only, temporary)
        trees.make(self.target, self.content.stream(), where, note)

    def pids(self, module: str) -> list[int]:
        """Of the worker, the keeper or the holder of this tree."""
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    arguments = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue
                named = any(word.endswith(_WORDS[module]) for word in arguments)
                if named and os.fsencode(self.folder) in arguments:
                    found.append(int(name))
        return found

    def kill(self, module: str) -> set[int]:
        """Those that were killed."""
        killed = set()
        for pid in self.pids(module):
            try:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
            except ProcessLookupError:
                continue
        return killed

    def end_both(self) -> None:
        """Worker and keeper are gone, and whoever was about to start another."""
        await_that(
            lambda: not (self.kill("keeper") | self.kill("worker")) and self._is_unlocked(),
            20,
            "the end of the fillers",
        )

    def end_all(self) -> None:
        """As ``end_both``; and whoever holds the group is killed as far as it can be."""
        self.kill("holder")
        self.end_both()
        self.kill("holder")

    def _is_unlocked(self) -> bool:
        with (self.folder / "lock").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    def is_settled(self) -> bool:
        return not self.folder.exists() and self.target.is_dir()

    def close(self) -> None:
        if (self.folder / "log").exists():
            print((self.folder / "log").read_text()[-4000:])
        await_that(self._is_ended, 20, "the end of the filler")
        places.hide(self.target)
        if self.folder.exists():
            places.discard(self.folder, self.target)
        self.served.close()

    def _is_ended(self) -> bool:
        if self.folder.exists():
            (self.folder / "ended").touch()
        # The keeper would start another worker, and the worker another keeper.
        gone = not (self.kill("keeper") | self.kill("worker"))
        return gone and (not (self.folder / "lock").exists() or self._is_unlocked())


def await_that(what: Callable[[], bool], seconds: float, said: str) -> None:
    ends = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < ends, f"waited {seconds:g} s for {said}"
        time.sleep(0.02)


def made_content(seed: int, sizes: dict[bytes, int]) -> Content:
    """Random bytes with holes in them."""
    chance = random.Random(seed)
    content = Content()
    for path, size in sizes.items():
        data = bytearray(chance.randbytes(size))
        for _ in range(size // (1 << 20)):
            start = chance.randrange(0, size) & ~0xFFF
            end = min(size, start + chance.choice((4096, 65536, 300_000)))
            data[start:end] = bytes(end - start)
        content.files[path] = bytes(data)
    return content
