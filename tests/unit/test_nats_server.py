"""What is written into a server's configuration, which servers are refused, and how their
processes are known.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
from tests.support import brokers as support

from diffkeeper import nats_server
from diffkeeper.domain import errors, limits

FIT: dict[str, Any] = {
    "server_name": "dk-east",
    "port": 4222,
    "max_payload": limits.BROKER_MAX_PAYLOAD_BYTES,
    "auth_required": True,
    "jetstream": {"config": {"sync_always": True, "domain": "east"}},
}


def config(directory: Path, **changes: Any) -> nats_server.ServerConfig:
    made = nats_server.ServerConfig("east", directory, 4222, 8222, "secret")
    return dataclasses.replace(made, **changes)


def test_the_configuration_holds_what_receipts_rest_on(tmp_path: Path) -> None:
    text = nats_server.render(config(tmp_path))
    assert "sync_interval: always" in text
    assert 'domain: "east"' in text
    assert f"max_payload: {limits.BROKER_MAX_PAYLOAD_BYTES}" in text
    assert 'listen: "127.0.0.1:4222"' in text
    assert "leafnodes" not in text


def test_the_secret_does_not_show_in_the_text_of_a_config(tmp_path: Path) -> None:
    assert "hunter2" not in repr(config(tmp_path, secret="hunter2"))


def test_a_setting_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.Misconfigured):
        nats_server.render(config(tmp_path, secret="two\nlines"))


def test_a_server_that_is_fit_is_accepted(tmp_path: Path) -> None:
    nats_server.check_fitness(config(tmp_path), FIT)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"jetstream": {"config": {"sync_always": False, "domain": "east"}}}, "sync_always"),
        ({"jetstream": {"config": {"domain": "east"}}}, "sync_always"),
        ({"jetstream": {"config": {"sync_always": True, "domain": "west"}}}, "domain"),
        ({"jetstream": {}}, "sync_always"),
        ({"max_payload": 1 << 20}, "max_payload"),
        ({"auth_required": False}, "auth_required"),
        ({"server_name": "dk-west"}, "server_name"),
        ({"port": 4333}, "port"),
    ],
)
def test_a_server_that_is_not_fit_is_refused_by_name_of_the_field(
    tmp_path: Path, change: dict[str, Any], field: str
) -> None:
    with pytest.raises(errors.Misconfigured) as caught:
        nats_server.check_fitness(config(tmp_path), {**FIT, **change})
    assert caught.value.facts["field"] == field


def test_a_process_is_known_by_its_start_and_not_by_its_number_alone() -> None:
    mine = nats_server.start_ticks(os.getpid())
    assert mine is not None and mine == nats_server.start_ticks(os.getpid())
    first = nats_server.start_ticks(1)
    assert first is not None and first < mine
    assert nats_server.start_ticks(2**22 + 1) is None


async def test_a_started_server_is_adopted_and_stopped_by_another(brokers: support.Brokers) -> None:
    server = await brokers.start("east")
    adopted = await nats_server.NatsServer.adopt(server.config)
    assert adopted is not None and adopted.process == server.process
    await adopted.stop()
    assert not server.is_running()
    assert await nats_server.NatsServer.adopt(server.config) is None
    await adopted.stop()


async def test_a_killed_server_is_not_adopted_and_starts_again_on_its_ports(brokers: support.Brokers) -> None:
    server = await brokers.start("east")
    await server.kill()
    assert await nats_server.NatsServer.adopt(server.config) is None
    await brokers.restart("east")
    assert brokers.servers["east"].process != server.process


async def test_a_process_that_took_the_number_is_not_adopted(brokers: support.Brokers) -> None:
    server = await brokers.start("east")
    server.config.process_path.write_text(json.dumps({"pid": os.getpid(), "start_ticks": 1}))
    assert await nats_server.NatsServer.adopt(server.config) is None


async def test_a_secret_with_odd_characters_opens_client_and_leaf_connections(
    brokers: support.Brokers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(support, "SECRET", 'a "b"/@:% c$d#é\\')
    await brokers.start("east")
    server = await brokers.start("west", hub="east")
    assert await server.leaf_links() == ["dk-east"]
    await brokers.log("west")


async def test_files_that_hold_the_secret_are_private(brokers: support.Brokers) -> None:
    server = await brokers.start("east")
    assert stat.S_IMODE(server.config.config_path.stat().st_mode) == 0o600


async def test_a_port_in_use_is_told_with_what_the_server_logged(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        made = dataclasses.replace(support.site_config("east", tmp_path), client_port=taken.getsockname()[1])
        with pytest.raises(errors.Misconfigured) as caught:
            await nats_server.NatsServer.start(made)
    assert "address already in use" in caught.value.message


async def test_another_server_at_the_monitor_port_is_not_taken_for_ours(brokers: support.Brokers) -> None:
    server = await brokers.start("east")
    made = dataclasses.replace(
        support.site_config("east", brokers.under / "again"), monitor_port=server.config.monitor_port
    )
    with pytest.raises(errors.Misconfigured):
        await nats_server.NatsServer.start(made)
    assert server.is_running()
