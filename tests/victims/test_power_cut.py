"""The power goes in the middle of a load; whatever a receipt said is on the disks when it comes back.

A file system that is shut down without flushing its journal stands for the power: what was not durable at that
instant is gone. Every process on it is killed in the same moment.
"""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import power, trial_deployments
from tests.support.trial_deployments import deployment_folder
from tests.victims import operations, rounds, sqlite_victim, victims
from tests.victims.rounds import VOLUME

from dkctl import deployments
from dkctl.bench import trials

__all__ = ["deployment_folder"]

pytestmark = [pytest.mark.disaster, pytest.mark.bpf, pytest.mark.timeout(240)]

ROUNDS = 2
# The longest time under load before the power goes.
MOMENT_MAX_S = 1.0


@pytest.fixture
def machine(deployment_folder: Path) -> Iterator[power.Disk]:
    """The one disk of a machine that carries everything: both sites, control, the program's directory."""
    with power.disk(deployment_folder, "machine") as disk:
        yield disk


@pytest.mark.parametrize("durability", ["site", "remote"])
def test_a_receipt_survives_a_power_cut_of_everything(
    durability: str, machine: power.Disk, base_seed: int
) -> None:
    with trials.Trial(machine.mount / "deployment") as trial:
        arena = rounds.Arena(trial, sqlite_victim.SqliteVictim("wal"), machine.mount, durability)
        seeds = random.Random(base_seed)
        for _ in range(ROUNDS):
            print(f"{durability}, the power of all goes: DK_SEED={base_seed}")
            receipt = cut_under_load(arena, machine, trial, seeds)
            machine.restore()
            trial.dkctl("up", "--detach")
            start_again(arena, trial, durability)
            assert problems(arena) == [], f"DK_SEED={base_seed}"
            # The program's own files are durable by its own fsync; what the receipt spoke of is the log.
            assert receipt in frames(trial), f"DK_SEED={base_seed}"
        outcome = arena.hand_over(base_seed)
        assert outcome.problems() == [], f"DK_SEED={base_seed}"
        assert trial.ask("verify", VOLUME)["ok"] is True, f"DK_SEED={base_seed}"


def test_what_a_remote_receipt_covers_is_at_the_other_site_when_both_lost_power(
    deployment_folder: Path, base_seed: int
) -> None:
    """The leader's machine does not come back in time, and the other site's broker lost all it had: a receipt
    does not rest on the word of a broker. Control stands elsewhere.
    """
    seeds = random.Random(base_seed)
    print(f"the power of both sites goes: DK_SEED={base_seed}")
    with (
        power.disk(deployment_folder, "first") as first,
        power.disk(deployment_folder, "second") as second,
        trials.Trial(deployment_folder / "deployment") as trial,
    ):
        put_on({"east": first, "west": second}, trial)
        arena = rounds.Arena(trial, sqlite_victim.SqliteVictim("wal"), deployment_folder, "remote")
        with arena.clients(seeds.randrange(10**9), "b") as clients:
            clients.wait_for(acknowledged=rounds.WARM_UP)
            time.sleep(seeds.random() * MOMENT_MAX_S)
            doomed = set().union(*(trial_deployments.working_below(disk.mount) for disk in (first, second)))
            power.send(signal.SIGSTOP, doomed)
            first.cut()
            second.cut()
            for site in trial.sites:
                trial.kill_site(site)
        second.restore()
        shutil.rmtree(second.mount / "nats" / "store")
        trial.start_site("west")
        arena.take_over(trial.failover(VOLUME, "west", "--durability", "site"))
        assert problems(arena) == [], f"DK_SEED={base_seed}"
        first.restore()
        trial.start_site("east")
        arena.paths["east"] = trial.wait_following(VOLUME, "east")
        assert trial.ask("verify", VOLUME)["ok"] is True, f"DK_SEED={base_seed}"


@pytest.fixture
def cabinet(deployment_folder: Path) -> Iterator[power.Disk]:
    """The disk of one site; the rest of the deployment stands beside it."""
    with power.disk(deployment_folder, "cabinet") as disk:
        yield disk


def test_a_replica_whose_power_was_cut_follows_again_to_the_byte(
    cabinet: power.Disk, deployment_folder: Path, base_seed: int
) -> None:
    directory = deployment_folder / "deployment"
    with trials.Trial(directory) as trial:
        put_on({"west": cabinet}, trial)
        arena = rounds.Arena(trial, sqlite_victim.SqliteVictim("wal"), deployment_folder, "site")
        seeds = random.Random(base_seed)
        for number in range(ROUNDS):
            print(f"the follower's power goes: DK_SEED={base_seed}")
            with arena.clients(seeds.randrange(10**9), f"p{number}") as clients:
                clients.wait_for(acknowledged=rounds.WARM_UP)
                time.sleep(seeds.random() * MOMENT_MAX_S)
                cabinet.cut()  # its services meet errors of the disk for a moment, and must not call them success
                trial.kill_site("west")
                clients.wait_for(acknowledged=rounds.WARM_UP)
            cabinet.restore()
            trial.start_site("west")
            arena.paths["west"] = trial.wait_following(VOLUME, "west")
            assert problems(arena) == [], f"DK_SEED={base_seed}"
            assert trial.ask("verify", VOLUME)["ok"] is True, f"DK_SEED={base_seed}"


def put_on(disks: dict[str, power.Disk], trial: trials.Trial) -> None:
    """Move what each of these sites keeps to a disk of its own, which is mounted in its place."""
    trial.dkctl("down")
    for site, disk in disks.items():
        place = trial.directory / "sites" / site
        subprocess.run(["cp", "-a", f"{place}/.", str(disk.mount)], check=True)
        shutil.rmtree(place)
        place.mkdir()
        disk.detach()
        disk.mount = place
        disk.attach()
    trial.dkctl("up", "--detach")


def cut_under_load(
    arena: rounds.Arena, disk: power.Disk, trial: trials.Trial, seeds: random.Random
) -> tuple[str, str]:
    """The last receipt before it: position and hash."""
    noted = deployments.need(trial.directory).processes()
    doomed = {process.pid for process in noted} | set(trial_deployments.working_below(disk.mount))
    with arena.clients(seeds.randrange(10**9), f"c{seeds.randrange(10**9)}") as clients:
        clients.wait_for(acknowledged=rounds.WARM_UP)
        time.sleep(seeds.random() * MOMENT_MAX_S)
        receipt = trial.control().sync(VOLUME, "site", 30)
        # Stopped first: a machine without power does not hear of errors of its disk either.
        power.send(signal.SIGSTOP, doomed)
        disk.cut()
        power.send(signal.SIGKILL, doomed)
        power.send(signal.SIGKILL, set(trial_deployments.working_below(disk.mount)))
    assert clients.disconnected > 0, "the cut came in the middle of the load"
    return str(receipt["position"]), str(receipt["hash"])


def frames(trial: trials.Trial) -> set[tuple[str, str]]:
    """Position and hash of every frame of the log."""
    rows = trial.ask("log", VOLUME, "-n", "10000")["frames"]
    return {(str(row["position"]), str(row["hash"])) for row in rows}


def start_again(arena: rounds.Arena, trial: trials.Trial, durability: str) -> None:
    """As an operator would after such a night: the program is run again where it was."""
    state = arena.paths[arena.leader]
    log = trial.directory / "program.log"
    trial.run(VOLUME, arena.leader, state, arena.victim.command("{path}"), durability, log)
    victims.wait_ready(arena.victim)
    arena.paths[arena.other] = trial.wait_following(VOLUME, arena.other)


def problems(arena: rounds.Arena) -> list[str]:
    """Of everything that clients were ever told, against what the program has now."""
    found = arena.victim.found()
    verdict = operations.judge(arena.history.all(), found, None)
    arena.history.settle(found)
    return verdict.problems() + arena.victim.examine(arena.paths[arena.leader])
