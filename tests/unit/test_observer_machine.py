"""Random programs: whatever a program does, and however far the disk is ahead of the log, the replay ends up
as the disk.

The machine also does what no record tells (unseen changes followed by a loss), lets naming calls return out
of order with the mark of it, and lets writes overlap.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.support.forged_records import ForgedProgram
from tests.support.replays import Replay, snapshot
from tests.support.sinks import ListSink

from diffkeeper.domain import frames
from diffkeeper_capture.observer import Observer
from diffkeeper_capture.records import Flag, Kind, Record

NAMES = st.sampled_from(["a", "b", "c"])
# "d" is a directory at first, so that paths of two components often exist.
PATHS = st.one_of(NAMES, st.just("d"), NAMES.map("d/".__add__), st.tuples(NAMES, NAMES).map("/".join))
OFFSETS = st.sampled_from([0, 1, 7, 4096, 5000, 70_000])
DATA = st.one_of(st.binary(min_size=1, max_size=40), st.just(b"q" * 900))


class ProgramMachine(RuleBasedStateMachine):
    """The rules call the real file system; a call that it refuses changes nothing and is not told."""

    @initialize()
    def begin(self) -> None:
        self.top = Path(tempfile.mkdtemp(prefix="dk-machine-"))
        self.root = self.top / "volume"
        self.root.mkdir()
        (self.root / "d").mkdir()
        (self.root / "b").write_bytes(b"base")
        self.sink = ListSink()
        self.observer = Observer(self.root, self.sink)
        self.program = ForgedProgram(self.root, self.observe)
        for _ in self.observer.scan_base():
            pass
        self.settle()
        self.settle()
        self.sink.fidelity = frames.Fidelity.EXACT
        self.may_be_inexact = False

    def teardown(self) -> None:
        if hasattr(self, "observer"):
            try:
                self.barrier()
            finally:
                self.observer.close()
                shutil.rmtree(self.top)

    def observe(self, record: Record, payload: memoryview) -> None:
        try:
            self.observer.observe(record, payload)
        except OSError as error:
            raise AssertionError(f"{record} raised {error!r}") from error  # not what ``attempt`` forgives

    def settle(self) -> None:
        for _ in range(20):
            if self.observer.settle(time.monotonic_ns()):
                return
        raise AssertionError("the observer does not settle")

    @rule(path=PATHS, offset=OFFSETS, data=DATA, flags=st.sampled_from([0, 0, 0, Flag.UNREADABLE]))
    def write(self, path: str, offset: int, data: bytes, flags: int) -> None:
        self.may_be_inexact |= bool(flags)
        self.attempt(lambda: self.program.write(path, offset, data, flags))

    @rule(path=PATHS)
    def empty(self, path: str) -> None:
        self.attempt(lambda: os.close(self.program.open(path, os.O_RDWR | os.O_TRUNC | os.O_CREAT)))

    @rule(path=PATHS, size=OFFSETS)
    def truncate(self, path: str, size: int) -> None:
        self.attempt(lambda: self.program.truncate(path, size))

    @rule(path=PATHS, mode=st.sampled_from([3, 8, 16, 32]))
    def fallocate(self, path: str, mode: int) -> None:
        self.may_be_inexact = True

        def call() -> None:
            fd = os.open(self.root / path, os.O_RDWR | os.O_NONBLOCK)
            try:
                if stat.S_ISREG(os.fstat(fd).st_mode):
                    self.program.fallocate(fd, mode, 4096, 4096)
            finally:
                os.close(fd)

        self.attempt(call)

    @rule(path=PATHS)
    def unlink(self, path: str) -> None:
        self.attempt(lambda: self.program.unlink(path))

    @rule(path=PATHS)
    def mkdir(self, path: str) -> None:
        self.attempt(lambda: self.program.mkdir(path))

    @rule(path=PATHS)
    def rmdir(self, path: str) -> None:
        self.attempt(lambda: self.program.rmdir(path))

    @rule(source=PATHS, other=PATHS, flags=st.sampled_from([0, 0, 1, 2]))
    def rename(self, source: str, other: str, flags: int) -> None:
        self.attempt(lambda: self.program.rename(source, other, flags))

    @rule(source=PATHS, other=PATHS)
    def link(self, source: str, other: str) -> None:
        self.attempt(lambda: self.program.link(source, other))

    @rule(points_to=NAMES, path=PATHS)
    def symlink(self, points_to: str, path: str) -> None:
        self.attempt(lambda: self.program.symlink(points_to, path))

    @rule(path=PATHS, mode=st.sampled_from([0o600, 0o644, 0o755]))
    def chmod(self, path: str, mode: int) -> None:
        self.attempt(lambda: self.program.chmod(path, mode))

    @rule(path=PATHS)
    def setxattr(self, path: str) -> None:
        self.may_be_inexact = True
        self.attempt(lambda: self.program.setxattr(path, "user.x", b"%d" % self.program.made))

    @rule(path=PATHS, source=st.booleans())
    def move_out_or_in(self, path: str, source: bool) -> None:
        self.may_be_inexact = True
        pair = (path, "../outside") if source else ("../outside", path)
        self.attempt(lambda: self.program.rename(*pair))

    @rule()
    def hold(self) -> None:
        """From here on the disk gets ahead of the log."""
        self.may_be_inexact = True
        self.program.is_holding = True

    @precondition(lambda self: len(self.program.held) > 1)
    @rule(data=st.data())
    def return_out_of_order(self, data: st.DataObject) -> None:
        """Two neighbouring naming calls overlapped, and stand in the ring in the other order."""
        held = self.program.held
        at = data.draw(st.integers(0, len(held) - 2))
        (first, one), (second, two) = held[at : at + 2]
        if all(record.kind in (Kind.PATH, Kind.OPEN) for record in (first, second)):
            late = first._replace(
                flags=first.flags | Flag.OVERLAPPED_NAMES | Flag.OVERLAPPED, end_ns=second.end_ns + 1
            )
            held[at : at + 2] = [(second, two), (late, one)]

    @rule()
    def release(self) -> None:
        self.program.is_holding = False
        self.program.release()

    @rule()
    def lose_everything_held(self) -> None:
        if self.program.held:
            self.program.held.clear()
            self.observer.lose([], everywhere=True, detail="the test threw records away")

    @rule()
    def check(self) -> None:
        self.barrier()

    def barrier(self) -> None:
        """All is drained: the replay must be the disk."""
        self.program.is_holding = False
        self.program.release()
        for _ in range(20):
            if self.observer.before_barrier(time.monotonic_ns()):
                break
        else:
            raise AssertionError("the observer does not get ready for a barrier")
        replay = Replay().apply_all(self.sink.deltas)
        assert replay.snapshot(with_xattrs=True) == snapshot(self.root, with_xattrs=True)

    @invariant()
    def what_was_told_in_order_is_exact(self) -> None:
        if hasattr(self, "observer") and not self.may_be_inexact:
            assert self.sink.fidelity is frames.Fidelity.EXACT
            assert not self.observer.doubts

    def attempt(self, call: object) -> None:
        try:
            call()  # type: ignore[operator]
        except OSError:
            return

    @rule()
    def settle_midway(self) -> None:
        """The agent settles after each drain, also while newer records wait."""
        self.settle()


TestProgramMachine = ProgramMachine.TestCase
TestProgramMachine.settings = settings(
    max_examples=int(os.environ.get("DK_MACHINE_EXAMPLES", "40")),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
