"""What a front door may be asked for, and what it is told."""

from __future__ import annotations

import msgspec
import pytest

from diffkeeper.domain import errors
from diffkeeper_control import door_orders, programs, registry
from diffkeeper_control.door_orders import Asked


def volume(name: str = "v", **changes: object) -> registry.Volume:
    made = registry.created(
        name,
        "east",
        f"/{name}",
        mode="exclusive",
        durability="remote",
        policy="block",
        probe="auto",
        now_us=1,
    )
    return msgspec.structs.replace(made, held_since_us=1, **changes)


def door(listen: str = "8080") -> registry.Door:
    made = door_orders.check(Asked(listen), "v", [])
    return msgspec.structs.replace(made, ports={"east": 9001, "west": 9002})


@pytest.mark.parametrize(
    ("listen", "place"),
    [
        ("8080", ("127.0.0.1", 8080, "http")),
        ("0.0.0.0:80", ("0.0.0.0", 80, "http")),
        ("tcp:5432", ("127.0.0.1", 5432, "tcp")),
        ("http:localhost:80", ("localhost", 80, "http")),
        ("tcp:[::1]:5432", ("::1", 5432, "tcp")),
    ],
)
def test_addresses_are_understood(listen: str, place: tuple[str, int, str]) -> None:
    found = door_orders.check(Asked(listen), "v", [])
    assert (found.host, found.port, found.protocol) == place


@pytest.mark.parametrize("listen", ["", "x", "0", "65536", "udp:1", "a:b:1", "::1:80", "8080/path", " 80"])
def test_what_is_no_address_is_refused(listen: str) -> None:
    with pytest.raises(errors.Refused) as refused:
        door_orders.check(Asked(listen), "v", [])
    assert refused.value.reason == "bad-listen" and refused.value.hint


@pytest.mark.parametrize(
    "asked",
    [
        Asked("80", forward=80),
        Asked("80", forward=0),
        Asked("80", hold_max=0),
        Asked("80", hold_ms=10_000_000),
        Asked("80", drain_ms=-1),
    ],
)
def test_what_cannot_work_is_refused(asked: Asked) -> None:
    with pytest.raises(errors.Refused):
        door_orders.check(asked, "v", [])


def test_two_volumes_do_not_share_an_address_while_both_run() -> None:
    other = volume("other", door=door())
    with pytest.raises(errors.Refused) as refused:
        door_orders.check(Asked("8080"), "v", [other])
    assert refused.value.reason == "listen-taken"
    ended = msgspec.structs.replace(other, held_since_us=None)
    assert door_orders.check(Asked("8080"), "v", [ended]).port == 8080
    assert door_orders.check(Asked("8080"), "other", [other]).port == 8080, "its own is no obstacle"


def test_door_leads_to_the_leaders_port_and_says_so_when_it_does() -> None:
    led = volume(door=door())
    order = door_orders.opened(led, "h")
    assert (order["site"], order["host"], order["port"], order["state"]) == ("east", "h", 9001, "open")
    assert door_orders.is_met(led, "h", {"state": "open", "order": {**order, "lapse_ms": 1}})
    assert not door_orders.is_met(led, "h", {"state": "hold", "order": order})
    assert not door_orders.is_met(led, "h", {"state": "open", "order": {**order, "port": 1}})
    assert not door_orders.is_met(led, "h", None)


def test_hold_ends_by_itself_only_when_nobody_can_be_waiting() -> None:
    led = volume(door=door())
    assert led.door is not None
    assert door_orders.held(led, "h", cut=False)["lapse_ms"] > led.door.hold_ms


def test_program_is_told_its_port_at_each_site() -> None:
    led = volume(door=door(), paths={"east": "/e", "west": "/w"})
    command = registry.Command(argv=["serve", "{path}", "--port={port}"], env={})
    start = programs.at(led, "west", "gate", command)
    assert start.argv == ["serve", "/w", "--port=9002"]
    assert start.env["DIFFKEEPER_PORT"] == "9002"
    without = programs.at(volume(paths={"east": "/e"}), "east", "gate", command)
    assert without.argv[2] == "--port={port}"
