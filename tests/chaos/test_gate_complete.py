"""No way past the gate: threads, forks, other ways to sync; and a clear refusal of what cannot be held."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.chaos.gate_rig import GateRig, rig, until

from diffkeeper.domain import stop_signals

__all__ = ["rig"]

pytestmark = pytest.mark.disaster

MANY = """
import os, sys, threading
f = os.open(sys.argv[1] + "/file", os.O_RDWR | os.O_CREAT)
def sync(): os.fsync(f); os.write(1, b"x")
threads = [threading.Thread(target=sync) for _ in range(5)]
for thread in threads: thread.start()
for _ in range(3):
    if os.fork() == 0:
        os.fdatasync(f); os.write(1, b"x")
        os.execvp("sh", ["sh", "-c", "sync; printf x"])
for thread in threads: thread.join()
for _ in range(3): os.wait()
"""

AIO_FSYNC = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
f = os.open(sys.argv[1] + "/file", os.O_RDWR | os.O_CREAT)
context = ctypes.c_uint64(0)
assert libc.syscall(206, 4, ctypes.byref(context)) == 0
request = ctypes.create_string_buffer(struct.pack("=QIiHhI", 0, 0, 0, int(sys.argv[2]), 0, f), 64)
table = (ctypes.c_uint64 * 1)(ctypes.addressof(request))
print(libc.syscall(209, context, 1, table), flush=True)
"""


def test_threads_and_forked_and_executed_processes_all_wait(rig: GateRig) -> None:
    rig.start_agent()
    program = rig.start_program("python3", "-c", MANY, str(rig.volume))
    until("five threads and three children wait", lambda: rig.seen()[2] == 8)
    assert program.poll() is None
    rig.word.touch()
    out, err = program.communicate(timeout=20)
    assert (out, err, program.returncode) == ("x" * 11, "", 0)
    until("the agent has counted eleven calls", lambda: rig.seen()[0] == 11)


@pytest.mark.skipif(
    os.uname().machine != "x86_64", reason="the program knows the numbers of this machine only"
)
def test_an_fsync_by_linux_aio_waits(rig: GateRig) -> None:
    rig.start_agent()
    assert rig.run("python3", "-c", AIO_FSYNC, str(rig.volume), "0").stdout == "1\n", "a read is let go"
    program = rig.start_program("python3", "-c", AIO_FSYNC, str(rig.volume), "3")
    until("it waits", lambda: rig.seen()[2] == 1)
    rig.word.touch()
    assert program.communicate(timeout=20)[0] == "1\n"


def test_io_uring_is_refused_unless_it_is_allowed(rig: GateRig) -> None:
    rig.start_agent()
    ask = "import ctypes; l = ctypes.CDLL(None, use_errno=True); print(l.syscall(425, 0, None), ctypes.get_errno())"
    assert rig.run("python3", "-c", ask).stdout == "-1 1\n"  # EPERM, as where it is switched off
    assert rig.run("python3", "-c", ask, options=("--io-uring", "allow")).stdout != "-1 1\n"


def test_a_program_that_lives_by_set_id_is_refused_where_the_gate_would_take_that_away(rig: GateRig) -> None:
    rig.start_agent()
    program = rig.base / "set-id"
    shutil.copy("/bin/true", program)
    os.chown(program, 65534, 65534)
    program.chmod(0o4755)
    assert rig.run(str(program)).returncode == 0, "with all rights it stays what it is"

    def without_administration() -> None:
        ctypes.CDLL(None).prctl(24, 21, 0, 0, 0)  # PR_CAPBSET_DROP, CAP_SYS_ADMIN

    refused = subprocess.run(
        [sys.executable, *rig.wrapper_command(str(program))],
        capture_output=True,
        text=True,
        preexec_fn=without_administration,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path)),
        timeout=20,
        check=False,
    )
    assert refused.returncode == 125
    assert "gets its rights from its file" in refused.stderr and "hint:" in refused.stderr


def test_a_socket_at_a_long_path_is_reached(tmp_path: Path) -> None:
    base = tmp_path / ("d" * 100) / ("e" * 100)
    base.mkdir(parents=True)
    rig = GateRig(base)
    try:
        rig.start_agent()
        assert rig.run("sh", "-c", "exit 3").returncode == 3
    finally:
        rig.close()


@pytest.mark.parametrize(
    ("text", "name"), [("INT", "INT"), ("sigint", "INT"), ("2", "INT"), ("SIGUSR1", "USR1")]
)
def test_a_stop_signal_has_one_name(text: str, name: str) -> None:
    assert stop_signals.parse(text) == name
