"""How the brokers of a deployment are joined, as a function of its sites alone."""

from __future__ import annotations

from pathlib import Path

from diffkeeper import nats_config, topology


def places(*sites: str, nodes: int = 3) -> dict[str, topology.SitePlaces]:
    ports = iter(range(1000, 9000))

    def place(name: str) -> topology.Place:
        client, monitor, leaf, route = (next(ports) for _ in range(4))
        return topology.Place(Path("/srv") / name, client, monitor, leaf, route, host=name)

    linked = topology.needs_links(len(sites))
    return {
        site: topology.SitePlaces(
            {node: place(node) for node in topology.node_names(site, nodes)},
            place(f"link-{site}") if linked else None,
        )
        for site in sites
    }


def hosts(addresses: tuple[str, ...]) -> list[str]:
    return [address.partition(":")[0] for address in addresses]


def test_a_site_of_three_is_one_cluster_with_routes_to_all_others() -> None:
    known = places("east", "west")
    config = topology.node_config(known, "east", "east-2", "secret")
    assert config.cluster == "east" and config.jetstream_domain == "east"
    assert config.server_name == "dk-east-2"
    assert hosts(config.routes) == ["east-1", "east-3"]
    text = nats_config.render(config)
    assert "sync_interval: always" in text and 'name: "east"' in text and "nats-route://" in text


def test_a_site_of_one_is_no_cluster() -> None:
    config = topology.node_config(places("east", "west", nodes=1), "east", "east", "secret")
    assert config.cluster is None and config.routes == () and "cluster" not in nats_config.render(config)


def test_of_two_sites_each_server_of_the_second_links_to_another_one_of_the_first() -> None:
    known = places("east", "west")
    links = [
        hosts(topology.node_config(known, "west", f"west-{number}", "s").leaf_remotes) for number in (1, 2, 3)
    ]
    assert links == [
        ["east-1", "east-2", "east-3"],
        ["east-2", "east-3", "east-1"],
        ["east-3", "east-1", "east-2"],
    ]
    assert topology.node_config(known, "east", "east-1", "s").leaf_remotes == ()


def test_from_three_sites_on_every_server_links_to_link_servers_alone() -> None:
    known = places("east", "west", "north")
    for site, site_places in known.items():
        for node in site_places.nodes:
            links = hosts(topology.node_config(known, site, node, "s").leaf_remotes)
            assert links[0] == f"link-{site}" and sorted(links) == ["link-east", "link-north", "link-west"]
    link = topology.link_config(known, "west", "s")
    assert link.cluster == topology.LINK_DOMAIN and link.leaf_remotes == ()
    assert hosts(link.routes) == ["link-east", "link-north"]


def test_links_of_any_number_of_sites_without_link_servers_lead_to_earlier_sites_only() -> None:
    known = {
        site: topology.SitePlaces(one.nodes) for site, one in places("a", "b", "c", "d", nodes=1).items()
    }
    names = list(known)
    for index, site in enumerate(names):
        assert hosts(topology.node_config(known, site, site, "s").leaf_remotes) == names[:index]
