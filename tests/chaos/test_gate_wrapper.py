"""The run wrapper is transparent: streams, exit code, signals, one clear message without a program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.chaos.gate_rig import GateRig, rig, until

__all__ = ["rig"]

pytestmark = pytest.mark.disaster


def test_exit_code_and_streams_pass_through(rig: GateRig) -> None:
    rig.start_agent()
    done = rig.run("sh", "-c", "echo out; echo err >&2; exit 37")
    assert (done.returncode, done.stdout, done.stderr) == (37, "out\n", "err\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGINT])
def test_death_by_signal_passes_through(rig: GateRig, number: signal.Signals) -> None:
    rig.start_agent()
    assert rig.run("sh", "-c", f"kill -{int(number)} $$").returncode == -number


def test_signals_reach_the_program_once(rig: GateRig) -> None:
    rig.start_agent()
    count = """
import signal, sys, time
got = []
for name in ("HUP", "INT", "QUIT", "USR1", "USR2", "WINCH"):
    signal.signal(getattr(signal, "SIG" + name), lambda n, f: print(signal.Signals(n).name, flush=True))
signal.signal(signal.SIGTERM, lambda n, f: sys.exit(5))
print("ready", flush=True)
while True: time.sleep(10)
"""
    program = rig.start_program("python3", "-c", count)
    assert program.stdout is not None
    assert program.stdout.readline() == "ready\n"
    for name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGWINCH"):
        program.send_signal(getattr(signal, name))
        assert program.stdout.readline() == name + "\n"
    program.terminate()
    assert (program.stdout.read(), program.wait(20)) == ("", 5)


def test_the_program_inherits_no_signal_settings_of_the_wrapper(rig: GateRig) -> None:
    """What the caller itself ignores is the caller's business, and reaches the program as it is."""
    rig.start_agent()
    command = ("sh", "-c", "grep -E 'SigIgn|SigBlk' /proc/self/status")
    unwrapped = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    assert rig.run(*command).stdout == unwrapped


def test_no_descriptor_of_the_wrapper_reaches_the_program(rig: GateRig) -> None:
    rig.start_agent()
    assert rig.run("sh", "-c", "ls /proc/$$/fd").stdout.split() == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (("/no/such/program",), 127, "there is no such file"),
        (("no-such-program",), 127, "it is not in PATH"),
        (("/tmp",), 126, "it is a directory"),
        (("/etc/passwd",), 126, "Permission denied"),
    ],
)
def test_what_cannot_be_executed_gets_one_clear_message(
    rig: GateRig, argv: tuple[str, ...], code: int, words: str
) -> None:
    rig.start_agent()
    done = rig.run(*argv)
    assert done.returncode == code
    assert words in done.stderr and argv[0] in done.stderr and "Traceback" not in done.stderr


def test_a_script_without_its_interpreter_is_told_apart(rig: GateRig) -> None:
    rig.start_agent()
    script = rig.base / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    done = rig.run(str(script))
    assert done.returncode == 126
    assert "interpreter does not exist" in done.stderr


def test_without_an_agent_the_program_is_not_started(rig: GateRig) -> None:
    done = rig.run("touch", str(rig.base / "ran"))
    assert done.returncode == 125
    assert "agent does not answer" in done.stderr and "not started" in done.stderr
    assert not (rig.base / "ran").exists()


def test_an_unknown_volume_is_refused_in_the_agents_words(rig: GateRig) -> None:
    rig.start_agent()
    done = rig.run("touch", str(rig.base / "ran"), volume="other")
    assert done.returncode == 125
    assert "there is no volume 'other'" in done.stderr and "dkctl status" in done.stderr
    assert not (rig.base / "ran").exists()


def test_syncs_outside_the_volume_pass_and_inside_wait(rig: GateRig) -> None:
    rig.start_agent()
    (rig.base / "other").mkdir()
    two = (
        "import os, sys\n"
        "for d in sys.argv[1:]:\n"
        "    os.fsync(os.open(d, os.O_RDONLY)); print('synced', flush=True)\n"
    )
    program = rig.start_program("python3", "-c", two, str(rig.base / "other"), str(rig.volume))
    assert program.stdout is not None
    assert program.stdout.readline() == "synced\n"
    until("the second call waits", lambda: rig.seen()[2] == 1)
    rig.word.touch()
    assert program.stdout.readline() == "synced\n"
    assert program.wait(20) == 0


def test_a_stopped_call_can_be_killed(rig: GateRig) -> None:
    rig.start_agent()
    program = rig.start_program("python3", "-c", f"import os; os.fsync(os.open('{rig.volume}', 0))")
    until("the call waits", lambda: rig.seen()[2] == 1)
    program.terminate()
    assert program.wait(20) == -signal.SIGTERM


def test_the_result_of_a_call_is_the_kernels_own(rig: GateRig) -> None:
    rig.start_agent()
    rig.word.touch()
    done = rig.run("python3", "-c", "import os\ntry: os.fsync(987)\nexcept OSError as e: print(e.errno)")
    assert done.stdout == "9\n"


def test_without_a_gate_nothing_waits(rig: GateRig) -> None:
    rig.start_agent()
    done = rig.run(
        "sh", "-c", f"sync -d {rig.volume} && grep Seccomp: /proc/self/status", options=("--no-gate",)
    )
    assert done.returncode == 0
    assert done.stdout.split()[1] == _own_seccomp()


@pytest.mark.skipif(os.geteuid() != 0, reason="a mount namespace and another user need root")
def test_the_program_sees_its_directory_where_it_expects_it_as_the_user_it_expects(rig: GateRig) -> None:
    rig.start_agent()
    # Temporary directories of tests are closed to other users; what is bound on /srv only the program sees.
    usual = Path("/srv")
    before = list(usual.iterdir())
    os.chown(rig.volume, 65534, 65534)
    done = rig.run(
        "sh",
        "-c",
        f"id -u; id -g; echo seen > {usual}/f",
        options=("--uid", "65534", "--gid", "65534", "--bind", f"{rig.volume}={usual}", "--cwd", "/"),
    )
    assert (done.returncode, done.stdout) == (0, "65534\n65534\n"), done.stderr
    assert (rig.volume / "f").read_text() == "seen\n"
    assert list(usual.iterdir()) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="a mount namespace needs root")
def test_a_sync_through_the_bound_path_waits(rig: GateRig) -> None:
    rig.start_agent()
    usual = rig.base / "usual"
    usual.mkdir()
    program = rig.start_program(
        "python3",
        "-c",
        f"import os; os.fsync(os.open('{usual}', 0))",
        options=("--bind", f"{rig.volume}={usual}"),
    )
    until("the call waits", lambda: rig.seen()[2] == 1)
    rig.word.touch()
    assert program.wait(20) == 0


def test_the_wrapper_stays_small(rig: GateRig) -> None:
    rig.start_agent()
    program = rig.start_program("sh", "-c", "echo started; exec sleep 600")
    assert program.stdout is not None
    assert program.stdout.readline() == "started\n"
    with open(f"/proc/{program.pid}/status") as file:
        private_kb = next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))
    program.terminate()
    program.wait(20)
    assert private_kb < 20_000


def test_the_wrapper_imports_only_the_standard_library_and_ours() -> None:
    ask = (
        "import sys; before = set(sys.modules); import diffkeeper_capture.run_wrapper\n"
        "new = {m.split('.')[0] for m in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path))
    out = subprocess.run(
        [sys.executable, "-c", ask], env=env, capture_output=True, text=True, check=True
    ).stdout
    assert out == "['diffkeeper', 'diffkeeper_capture']\n"


def _own_seccomp() -> str:
    return next(
        line.split()[1]
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("Seccomp:")
    )
