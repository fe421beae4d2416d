"""How many storage nodes a deployment has, gets, and is refused; whose stream a configuration is."""

from __future__ import annotations

import pytest

from diffkeeper.domain import errors, volumes
from diffkeeper.log import nats_streams
from diffkeeper_control import storage_notes

SITES = ["east", "west"]


def test_without_a_wish_there_is_no_storage() -> None:
    assert storage_notes.wish(None, SITES, None, None) is None
    assert storage_notes.wish(None, SITES, 0, None) is None


def test_nodes_are_counted_to_the_sites_in_turn_and_have_ports_of_their_own() -> None:
    storage = storage_notes.wish(None, SITES, 5, "2+3")
    assert storage is not None
    assert [node.domain for node in storage.nodes.values()] == ["east", "west", "east", "west", "east"]
    assert list(storage.nodes) == [f"node-0{number}" for number in range(1, 6)]
    ports = [port for node in storage.nodes.values() for port in (node.nats_port, node.monitor_port)]
    assert len({*ports, storage.repair_port}) == 11


def test_parity_alone_says_how_many_nodes() -> None:
    storage = storage_notes.wish(None, SITES, None, "2+8")
    assert storage is not None and len(storage.nodes) == 10


def test_more_nodes_are_added_and_the_old_ones_keep_their_ports() -> None:
    storage = storage_notes.wish(None, SITES, 4, None)
    assert storage is not None
    before = {name: node.nats_port for name, node in storage.nodes.items()}
    grown = storage_notes.wish(storage, SITES, 6, None)
    assert grown is not None and len(grown.nodes) == 6
    assert {name: grown.nodes[name].nats_port for name in before} == before
    assert storage_notes.wish(grown, SITES, None, None) is grown


@pytest.mark.parametrize(
    ("count", "parity", "reason"),
    [
        (1, None, "bad-nodes"),
        (65, None, "bad-nodes"),
        (4, "4+2", "too-few-nodes"),
        (4, "four", "bad-geometry"),
        (None, "40+2", "bad-geometry"),
    ],
)
def test_what_cannot_be_is_refused(count: int | None, parity: str | None, reason: str) -> None:
    with pytest.raises(errors.Refused) as caught:
        storage_notes.wish(None, SITES, count, parity)
    assert caught.value.reason == reason


def test_fewer_nodes_than_before_are_refused() -> None:
    storage = storage_notes.wish(None, SITES, 4, None)
    with pytest.raises(errors.Refused) as caught:
        storage_notes.wish(storage, SITES, 3, None)
    assert caught.value.reason == "too-few-nodes"


@pytest.mark.parametrize(("volume", "site"), [("orders", "east"), ("a-b", "c-d"), ("a-b-c", "d")])
def test_the_origin_of_a_stream_is_known_from_its_configuration(volume: str, site: str) -> None:
    origin = volumes.Origin(volume, site)
    assert nats_streams.origin_of(nats_streams.origin_config(origin, 1)) == origin
    assert nats_streams.origin_of(nats_streams.mirror_config(origin, 1)) == origin


@pytest.mark.parametrize(
    "config",
    [
        {"name": "KV_x", "subjects": ["$KV.x.>"]},
        {"name": "dk-shards", "subjects": ["dks.>"]},
        {"name": "dk-a-b", "subjects": ["dk.a.c.frame"]},
        {"name": "dk-a-b", "mirror": {"name": "dk-a-b"}},
        {"name": "x"},
    ],
)
def test_strange_streams_are_nobodys(config: dict[str, object]) -> None:
    assert nats_streams.origin_of(config) is None
