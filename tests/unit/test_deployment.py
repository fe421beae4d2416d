"""The note of a deployment and the rules for its directory and its sites."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from diffkeeper.domain import errors
from diffkeeper_control import deployment, processes
from diffkeeper_control.deployment import DirLock, Layout, Process


def made(tmp_path: Path, sites: list[str] | None = None) -> tuple[Layout, deployment.Deployment]:
    layout = Layout(tmp_path / "d")
    layout.dir.mkdir()
    return layout, deployment.create(layout, sites or ["east", "west"], 1)


def test_new_deployment_has_ports_of_its_own_and_secrets_only_its_owner_reads(tmp_path: Path) -> None:
    layout, note = made(tmp_path)
    ports = [note.control_port]
    for site in note.sites.values():
        ports += [site.replicator_port, site.agent_port]
        for broker in site.nodes.values():
            ports += [broker.client_port, broker.monitor_port, broker.leaf_port, broker.route_port]
    assert len(set(ports)) == 13
    for secret in (layout.token, layout.secret):
        assert secret.stat().st_mode & 0o077 == 0
        assert len(secret.read_text().strip()) >= 32
    assert layout.token.read_text() != layout.secret.read_text()


def test_note_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    layout, note = made(tmp_path)
    note.sites["east"].processes["agent"] = Process(4711, 12345, 99)
    note.sites["west"].stopped = True
    deployment.save(layout, note)
    assert deployment.load(layout) == note


def test_directory_without_a_note_holds_no_deployment(tmp_path: Path) -> None:
    assert deployment.load(Layout(tmp_path)) is None


def test_damaged_note_is_an_error_and_is_left_as_it_is(tmp_path: Path) -> None:
    layout, _ = made(tmp_path)
    layout.note.write_text("{}")
    with pytest.raises(errors.Misconfigured) as caught:
        deployment.load(layout)
    assert caught.value.reason == "deployment-unreadable"
    assert layout.note.read_text() == "{}"


def test_directory_that_holds_anything_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letters").write_text("mine")
    with pytest.raises(errors.Refused) as caught:
        deployment.create(Layout(tmp_path), ["east", "west"], 1)
    assert caught.value.reason == "dir-not-empty"
    assert os.listdir(tmp_path) == ["letters"]


@pytest.mark.parametrize(
    ("sites", "reason"),
    [
        (["east"], "too-few-sites"),
        (["east", "east"], "bad-name"),
        (["east", "We st"], "bad-name"),
        (["east", ""], "bad-name"),
        (["east", "link-west", "west"], "bad-name"),
    ],
)
def test_sites_that_make_no_deployment_are_refused(sites: list[str], reason: str) -> None:
    with pytest.raises(errors.Refused) as caught:
        deployment.check_sites(sites)
    assert caught.value.reason == reason


def test_sites_of_an_existing_deployment_are_kept(tmp_path: Path) -> None:
    _, note = made(tmp_path)
    deployment.check_same_sites(note, None)
    deployment.check_same_sites(note, ["west", "east"])
    with pytest.raises(errors.Refused) as caught:
        deployment.check_same_sites(note, ["east", "north"])
    assert caught.value.reason == "sites-differ"


def test_numbers_of_nodes_that_have_no_majority_when_one_dies_are_refused() -> None:
    for nodes in (0, 2, 4, 7):
        with pytest.raises(errors.Refused) as caught:
            deployment.check_sites(["east", "west"], nodes)
        assert caught.value.reason == "bad-nodes"


def test_sites_are_not_named_like_nodes_of_others() -> None:
    deployment.check_sites(["east", "east-1"])
    with pytest.raises(errors.Refused):
        deployment.check_sites(["east", "east-1"], 3)


def test_a_note_of_the_first_version_is_read(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    old = {"nats_port": 1, "monitor_port": 2, "leaf_port": 3, "replicator_port": 4, "agent_port": 5}
    sites = {"east": {**old, "stopped": True}, "west": old}
    layout.note.write_text(
        json.dumps({"version": 1, "created_us": 1, "sites": sites, "control_port": 6, "control": None})
    )
    note = deployment.load(layout)
    assert note is not None and note.version == deployment.VERSION
    east = note.sites["east"]
    assert (east.nodes["east"].client_port, east.nodes["east"].leaf_port, east.stopped) == (1, 3, True)
    assert deployment.find_node(note, "west") == ("west", "nats")


def test_automatic_failover_is_refused_with_two_sites() -> None:
    deployment.check_failover(False, None, 2)
    deployment.check_failover(True, 500, 3)
    with pytest.raises(errors.Refused) as caught:
        deployment.check_failover(True, None, 2)
    assert caught.value.reason == "too-few-sites"
    with pytest.raises(errors.Refused):
        deployment.check_failover(None, 10, 3)


def test_nodes_are_found_by_their_names(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "d")
    layout.dir.mkdir()
    note = deployment.create(layout, ["east", "west", "north"], 1, nodes=3)
    assert deployment.find_node(note, "east-2") == ("east", "nats-2")
    assert deployment.find_node(note, "link-north") == ("north", "link")
    with pytest.raises(errors.NotFound) as caught:
        deployment.find_node(note, "east-4")
    assert "east-3" in caught.value.hint


def test_directory_in_use_is_refused_and_names_who_uses_it(tmp_path: Path) -> None:
    layout, note = made(tmp_path)
    lock = DirLock(layout)
    note.control = deployment.Control(4711, 1, "http://127.0.0.1:40123")
    deployment.save(layout, note)
    with pytest.raises(errors.Refused) as caught:
        DirLock(layout)
    assert caught.value.reason == "dir-busy"
    assert caught.value.facts == {"address": "http://127.0.0.1:40123", "pid": 4711}
    lock.close()
    DirLock(layout).close()


def test_process_is_known_by_its_start_time_and_not_by_its_number_alone() -> None:
    own = processes.identify(os.getpid())
    assert own is not None
    assert processes.is_running(own)
    assert not processes.is_running(processes.ProcessId(own.pid, own.start_ticks - 1))
    assert not processes.send(processes.ProcessId(own.pid, own.start_ticks - 1), 15)  # type: ignore[arg-type]
