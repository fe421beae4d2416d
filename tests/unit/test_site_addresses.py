"""Sites with addresses and network namespaces of their own: what is accepted, and where it ends up."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffkeeper import network_namespaces, topology
from diffkeeper.domain import errors
from diffkeeper_control import deployment, settings, site_addresses, storage_notes
from diffkeeper_control.deployment import Layout
from diffkeeper_control.site_addresses import Address

WORDS = ["east=10.77.0.2@dk-east", "west=10.77.0.3"]


def made(tmp_path: Path) -> tuple[Layout, deployment.Deployment]:
    layout = Layout(tmp_path / "d")
    note = deployment.create(layout, ["east", "west"], 1)
    site_addresses.give(note, site_addresses.parse(WORDS))
    return layout, note


def test_an_address_may_name_a_namespace() -> None:
    assert site_addresses.parse(WORDS) == {
        "east": Address("10.77.0.2", "dk-east"),
        "west": Address("10.77.0.3", None),
    }


@pytest.mark.parametrize(
    "word",
    [
        "",
        "east",
        "=10.77.0.2",
        "east=",
        "east=10.77.0.256",
        "east=example.org",
        "east=::1",
        "east=0.0.0.0",
        "east=224.0.0.1",
        "east=10.77.0.2@",
        "east=10.77.0.2@../../proc",
        "east=10.77.0.2@-x",
    ],
)
def test_what_is_no_address_is_refused(word: str) -> None:
    with pytest.raises(errors.Refused) as caught:
        site_addresses.parse([word])
    assert caught.value.reason == "bad-site-address" and "--site-address" in caught.value.hint


def test_a_site_with_two_addresses_is_refused() -> None:
    with pytest.raises(errors.Refused, match="two addresses"):
        site_addresses.parse(["east=10.0.0.1", "east=10.0.0.2"])


def test_each_site_has_an_address_or_none_has() -> None:
    wanted = site_addresses.parse(WORDS)
    site_addresses.check_sites({}, ["east", "west"], None)
    site_addresses.check_sites(wanted, ["west", "east"], None)
    for sites in (["east"], ["east", "west", "north"]):
        with pytest.raises(errors.Refused):
            site_addresses.check_sites(wanted, sites, None)


def test_storage_nodes_are_refused_beside_them() -> None:
    storage = storage_notes.Storage(geometry=None, repair_port=1)
    with pytest.raises(errors.Refused, match="storage nodes"):
        site_addresses.check_sites(site_addresses.parse(WORDS), ["east", "west"], storage)


def test_everything_of_a_site_listens_at_its_address_and_is_found_there(tmp_path: Path) -> None:
    layout, note = made(tmp_path)
    assert settings.of_agent(layout, note, "east")["host"] == "10.77.0.2"
    replicator = settings.of_replicator(layout, note, "west")
    assert replicator["host"] == "10.77.0.3"
    assert [peer.rpartition(":")[0] for peer in replicator["peers"]] == ["http://10.77.0.2"]
    assert all(url.startswith("nats://10.77.0.3:") for url in replicator["servers"])
    config = topology.node_config(deployment.places(layout, note), "west", "west", "secret")
    assert (config.host, config.netns) == ("10.77.0.3", None)
    assert config.leaf_remotes[0].startswith("10.77.0.2:")


def test_the_note_keeps_them_and_they_stay(tmp_path: Path) -> None:
    layout, note = made(tmp_path)
    deployment.save(layout, note)
    found = deployment.load(layout)
    assert found is not None and site_addresses.of(found) == site_addresses.parse(WORDS)
    site_addresses.check_same(found, {})
    site_addresses.check_same(found, site_addresses.parse(WORDS))
    with pytest.raises(errors.Refused, match=r"10\.77\.0\.2@dk-east"):
        site_addresses.check_same(found, site_addresses.parse(["east=10.77.0.9", "west=10.77.0.3"]))


def test_a_deployment_on_loopback_gets_no_addresses_later(tmp_path: Path) -> None:
    note = deployment.create(Layout(tmp_path / "d"), ["east", "west"], 1)
    assert site_addresses.of(note) == {}
    with pytest.raises(errors.Refused) as caught:
        site_addresses.check_same(note, site_addresses.parse(WORDS))
    assert caught.value.reason == "sites-differ"


def test_nothing_is_started_in_a_namespace_that_is_not_there() -> None:
    assert network_namespaces.inside(None, ["true"]) == ["true"]
    with pytest.raises(errors.Misconfigured) as caught:
        network_namespaces.inside("dk-no-such-namespace", ["true"])
    assert caught.value.reason == "no-network-namespace" and "ip netns add" in caught.value.hint
