"""The agent dies while a program waits in fsync: the program must neither go on nor see an error."""

from __future__ import annotations

import random
import subprocess
import time

import pytest
from tests.chaos.gate_rig import GateRig, rig, until

__all__ = ["rig"]

SYNC_ONCE = """
import os, sys
f = os.open(sys.argv[1] + "/f", os.O_RDWR | os.O_CREAT)
os.write(f, b"x")
print("syncing", flush=True)
os.fsync(f)
print("synced", flush=True)
"""

SYNC_IN_THREADS = """
import os, sys, threading
def work(number):
    f = os.open(f"{sys.argv[1]}/{number}", os.O_RDWR | os.O_CREAT)
    for _ in range(int(sys.argv[3])):
        os.write(f, b"x")
        os.fdatasync(f)
print("up", flush=True)
threads = [threading.Thread(target=work, args=(n,)) for n in range(int(sys.argv[2]))]
children = []
for n in range(2):
    pid = os.fork()
    if pid == 0:
        work(100 + n)
        os._exit(0)
    children.append(pid)
for t in threads: t.start()
for t in threads: t.join()
for pid in children: assert os.waitpid(pid, 0)[1] == 0
print("done", flush=True)
"""


def is_silent(program: subprocess.Popen[str], for_s: float) -> bool:
    end = time.monotonic() + for_s
    while time.monotonic() < end:
        if program.poll() is not None:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.disaster
def test_fsync_waits_through_the_death_of_the_agent_and_ends_with_its_successor(rig: GateRig) -> None:
    agent = rig.start_agent()
    program = rig.start_program("python3", "-c", SYNC_ONCE, str(rig.volume))
    assert program.stdout is not None
    assert program.stdout.readline() == "syncing\n"
    until("the call is received", lambda: rig.seen()[2] == 1)
    agent.kill()
    agent.wait()
    assert is_silent(program, 0.5)
    rig.word.touch()  # nobody is there to hear it
    assert is_silent(program, 0.3)
    rig.start_agent()
    assert program.stdout.readline() == "synced\n"
    assert program.wait(20) == 0


@pytest.mark.disaster
def test_a_call_made_while_no_agent_lives_waits_for_the_next_one(rig: GateRig) -> None:
    agent = rig.start_agent()
    rig.word.touch()
    program = rig.start_program(
        "python3",
        "-c",
        "import sys; print('up', flush=True); sys.stdin.readline()\n" + SYNC_ONCE,
        str(rig.volume),
    )
    assert program.stdin is not None and program.stdout is not None
    assert program.stdout.readline() == "up\n"
    agent.kill()
    agent.wait()
    program.stdin.write("\n")
    program.stdin.flush()
    assert program.stdout.readline() == "syncing\n"
    assert is_silent(program, 0.4)
    rig.start_agent()
    assert program.stdout.readline() == "synced\n"
    assert program.wait(20) == 0


@pytest.mark.disaster
def test_no_call_is_lost_when_agents_are_killed_at_random_under_load(rig: GateRig) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    rig.word.touch()
    agent = rig.start_agent()
    program = rig.start_program("python3", "-c", SYNC_IN_THREADS, str(rig.volume), "6", "1500")
    assert program.stdout is not None
    assert program.stdout.readline() == "up\n"
    for _ in range(8):
        time.sleep(chance.uniform(0.0, 0.12))
        agent.kill()
        agent.wait()
        agent = rig.start_agent()
    out, err = program.communicate(timeout=60)
    assert (program.returncode, out) == (0, "done\n"), err


@pytest.mark.disaster
def test_a_program_does_not_outlive_its_killed_wrapper(rig: GateRig) -> None:
    rig.start_agent()
    program = rig.start_program("sh", "-c", "echo $$; exec sleep 600")
    assert program.stdout is not None
    pid = int(program.stdout.readline())
    program.kill()
    program.wait()
    until("the program is gone", lambda: _is_gone(pid))


@pytest.mark.disaster
def test_a_forked_off_process_is_still_gated_after_its_wrapper_ended(rig: GateRig) -> None:
    rig.start_agent()
    late = f"""
import os, sys, time
if os.fork(): os._exit(0)
os.setsid()
time.sleep(0.5)
f = os.open("{rig.volume}/late", os.O_RDWR | os.O_CREAT)
os.fsync(f)
open("{rig.base}/late-synced", "w").close()
"""
    program = rig.start_program("python3", "-c", late)
    # Its pipes are held by the process that lives on.
    assert program.wait(20) == 0
    until("its call waits", lambda: rig.seen()[2] == 1)
    assert not (rig.base / "late-synced").exists()
    rig.word.touch()
    until("its call went on", (rig.base / "late-synced").exists)


def _is_gone(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True
