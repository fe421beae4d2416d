"""Leaders that die one after the other before the other site saw a frame of theirs; then the volume goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.trial_deployments import deployment, deployment_folder

from diffkeeper import nats_server
from dkctl.bench import failover, trials

__all__ = ["deployment", "deployment_folder"]

VOLUME = "victim"


@pytest.mark.disaster
@pytest.mark.bpf
def test_a_replica_follows_after_reigns_of_which_it_saw_nothing(
    deployment: trials.Trial, deployment_folder: Path
) -> None:
    state = deployment_folder / "state"
    state.mkdir()
    port = nats_server.free_port()
    command = failover.program("{path}", port)
    deployment.run(VOLUME, "east", state, command, "observe", deployment_folder / "program.log")
    failover.first_answer(port, 30)
    deployment.wait_following(VOLUME, "west")
    leader, other = deployment.sites
    for _ in range(4):
        deployment.kill_site(leader)
        deployment.failover(VOLUME, other, "--accept-loss")
        leader, other = other, leader
        # Killed again as soon as this one write is answered: the other site has just come back.
        deployment.start_site(other)
        failover.first_answer(port, 30)
    replica = deployment.wait_following(VOLUME, other)
    leading = Path(str(deployment.control().volume(VOLUME)["path"]))
    assert (replica / "appended").read_bytes() == (leading / "appended").read_bytes()
