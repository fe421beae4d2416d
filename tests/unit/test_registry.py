"""The registry survives what it was told, and admissions refuse with the reason the API promises."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from diffkeeper.domain import errors
from diffkeeper_control import admissions, left_directories, programs, registry, roles
from diffkeeper_control.admissions import Asked, PathFacts
from diffkeeper_control.registry import Command, Point, Registry, Reign, Resume, Volume

PARENT = Point(position="1.40", hash="aa" * 32)
SITES = ["east", "west"]
WEST = "/deployment/sites/west/volumes/orders"


def orders(path: str = "/srv/orders") -> Volume:
    made = registry.created(
        "orders",
        "east",
        path,
        mode="exclusive",
        durability="remote",
        policy="block",
        probe="auto",
        now_us=1,
    )
    return msgspec.structs.replace(
        made, paths={"east": path, "west": "/deployment/sites/west/volumes/orders"}
    )


def moved(volume: Volume) -> Volume:
    return registry.with_reign(
        volume,
        Reign(site="west", epoch=2, parent=PARENT),
        path=volume.paths["west"],
        resume=Resume(point=PARENT, tree_state="/tree"),
    )


def test_volume_put_is_there_after_the_registry_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "registry.json"
    command = Command(argv=["orders", "{path}"], env={"A": "b"}, cwd="/", uid=0, gid=0)
    volume = msgspec.structs.replace(moved(orders()), command=command, operation="orders-2")
    Registry(path).put(volume)
    assert Registry(path).get("orders") == volume


def test_registry_file_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "registry.json"
    Registry(path).put(orders())
    assert path.stat().st_mode & 0o077 == 0


def test_unknown_volume_is_not_found_and_the_known_ones_are_named(tmp_path: Path) -> None:
    known = Registry(tmp_path / "registry.json")
    known.put(orders())
    with pytest.raises(errors.NotFound) as caught:
        known.get("invoices")
    assert caught.value.reason == "unknown-volume"
    assert "orders" in caught.value.hint


def test_damaged_registry_is_an_error_and_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "registry.json"
    path.write_text('{"version": 1, "volumes": [{"name": 3}]}')
    with pytest.raises(errors.Misconfigured) as caught:
        Registry(path)
    assert caught.value.reason == "registry-unreadable"
    assert path.read_text().startswith('{"version": 1')


def test_recording_the_same_reign_again_changes_nothing() -> None:
    once = moved(orders())
    assert moved(once) == once
    assert once.leader == "west"
    assert once.epoch == 2


def test_epochs_are_never_handed_out_twice() -> None:
    volume, first = registry.with_next_epoch(orders())
    volume, second = registry.with_next_epoch(volume)
    assert (first, second) == (2, 3)
    assert volume.highest_epoch == 3
    assert registry.with_next_epoch(registry.without_reign(moved(orders()), 2))[1] == 3


def test_reign_that_never_wrote_can_be_taken_back() -> None:
    assert registry.without_reign(moved(orders()), 2).leader == "east"
    assert registry.without_reign(orders(), 2) == orders()


def refusal(check: object, *arguments: object) -> errors.Refused:
    assert callable(check)
    with pytest.raises(errors.Refused) as caught:
        check(*arguments)
    return caught.value


ASKED = Asked("orders", "east", "/srv/orders", "exclusive")


def test_unknown_site_is_not_found() -> None:
    error = refusal(admissions.check_request, replace(ASKED, site="north"), SITES)
    assert isinstance(error, errors.NotFound)
    assert error.reason == "unknown-site"


def test_bad_volume_name_is_refused() -> None:
    assert refusal(admissions.check_request, replace(ASKED, volume="Orders!"), SITES).reason == "bad-name"


def test_names_of_the_directories_of_shared_volumes_are_kept_for_them() -> None:
    error = refusal(admissions.check_request, replace(ASKED, volume="orders--east"), SITES)
    assert error.reason == "reserved-name"
    admissions.check_request(replace(ASKED, volume="orders--east", mode="shared"), SITES)


def test_missing_path_and_file_are_refused() -> None:
    missing = PathFacts("/x", exists=False, is_directory=False)
    file = PathFacts("/x", exists=True, is_directory=False)
    assert refusal(admissions.check_path, missing, "/x").reason == "path-missing"
    assert refusal(admissions.check_path, file, "/x").reason == "path-not-directory"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/srv/orders", "path-captured"),
        ("/srv/orders/inside", "path-overlaps"),
        ("/srv", "path-overlaps"),
        ("/deployment/sites/west/volumes/orders", "path-captured"),
        ("/deployment/sites/west/volumes", "path-overlaps"),
        ("/deployment/sites/east/new", "path-of-deployment"),
        ("/deployment", "path-overlaps"),
        ("/", "path-overlaps"),
    ],
)
def test_path_that_touches_another_volume_or_the_deployment_is_refused(path: str, reason: str) -> None:
    assert refusal(admissions.check_apart, "invoices", path, [orders()], "/deployment").reason == reason


def test_path_beside_others_is_accepted() -> None:
    for path in ("/srv/orders2", "/srv/invoices", "/deployment/data"):
        admissions.check_apart("invoices", path, [orders()], "/deployment")


def test_deployment_directory_cannot_be_captured_even_without_volumes() -> None:
    assert (
        refusal(admissions.check_apart, "a", "/deployment", [], "/deployment").reason == "path-of-deployment"
    )


def test_second_writer_is_refused_and_told_who_holds_the_volume() -> None:
    error = refusal(
        admissions.check_volume, replace(ASKED, site="west"), orders(), admissions.Holder("east", 4711, 5)
    )
    assert error.reason == "volume-held"
    assert error.facts == {"site": "east", "pid": 4711, "since_us": 5}
    assert "4711" in error.message


def test_run_at_a_site_that_does_not_lead_says_how_to_move_the_volume() -> None:
    error = refusal(admissions.check_volume, replace(ASKED, site="west"), orders(), None)
    assert error.reason == "led-elsewhere"
    assert error.hint == "dkctl failover orders --to west"


def test_run_during_a_failover_is_refused_and_names_the_operation() -> None:
    moving = msgspec.structs.replace(orders(), operation="orders-2")
    error = refusal(admissions.check_volume, ASKED, moving, None)
    assert (error.reason, error.facts) == ("failover-running", {"operation": "orders-2"})


def test_known_volume_is_found_by_its_site_and_by_the_path_its_program_sees() -> None:
    volume = moved(orders())
    west = replace(ASKED, site="west")
    for path in (None, "/srv/orders", volume.paths["west"]):
        assert admissions.choose_path(volume, west, path) == volume.paths["west"]
    assert refusal(admissions.choose_path, volume, west, "/elsewhere").reason == "path-differs"
    assert refusal(admissions.choose_path, None, west, None).reason == "path-missing"


def test_program_at_another_site_sees_its_files_where_it_had_them() -> None:
    command = Command(argv=["serve"], env={"HOME": "/root"}, cwd="/srv/orders")
    body = programs.start_body(moved(orders()), "west", "/gate.sock", command)
    assert body["bind"] == "/srv/orders"
    assert body["env"]["DIFFKEEPER_PATH"] == "/srv/orders"
    assert body["env"]["HOME"] == "/root"


def test_program_that_is_told_its_path_needs_no_mount() -> None:
    command = Command(argv=["serve", "--db={path}/db"], env={}, cwd=None)
    body = programs.start_body(moved(orders()), "west", "/gate.sock", command)
    assert body["argv"] == ["serve", f"--db={WEST}/db"]
    assert body["bind"] is None
    assert body["env"]["DIFFKEEPER_PATH"] == WEST


def test_wrapper_binds_only_where_the_directories_differ() -> None:
    command = Command(argv=["serve"], env={}, cwd="/srv/orders")
    assert "--bind" not in programs.wrapper(orders(), "east", "/gate.sock", command)
    words = programs.wrapper(moved(orders()), "west", "/gate.sock", command)
    assert words[words.index("--bind") + 1] == "/deployment/sites/west/volumes/orders=/srv/orders"
    assert words[-1] == "--"


def test_follower_of_a_handover_keeps_its_directory_and_the_leader_is_told_to_lead() -> None:
    volume = moved(orders())
    tree = Resume(point=PARENT, tree_state="/tree-of-east")
    volume = msgspec.structs.replace(volume, tree_states={"east": tree})
    east, west = roles.wanted(volume, "east"), roles.wanted(volume, "west")
    assert (east["role"], east["path"], east["tree_state"]) == ("follow", "/srv/orders", "/tree-of-east")
    assert (west["role"], west["tree_state"]) == ("lead", None)
    assert [reign["epoch"] for reign in east["chain"]] == [1, 2]


def test_role_is_met_only_when_role_epoch_leader_and_path_are() -> None:
    volume = moved(orders())
    status = {"role": "follow", "epoch": 2, "leader": "west", "path": "/srv/orders"}
    assert roles.is_met(volume, "east", status)
    for key, value in (("role", "lead"), ("epoch", 1), ("leader", "east"), ("path", "/old")):
        assert not roles.is_met(volume, "east", {**status, key: value})
    assert not roles.is_met(volume, "east", None)


def test_directory_of_a_dead_leader_is_kept_and_another_takes_its_place() -> None:
    volume = moved(orders())
    orphan = registry.Orphan(site="east", epoch=1, path="/srv/orders", since_us=9)
    left = registry.with_orphan(volume, orphan, "/deployment/sites/east/volumes/orders.2")
    assert left.orphans == (orphan,)
    assert left.paths["east"] == "/deployment/sites/east/volumes/orders.2"
    assert left.bind == "/srv/orders", "the program still finds its files where it knows them"


def test_what_a_dead_leader_left_is_taken_back_in_its_place_until_the_site_leads_again() -> None:
    volume = moved(orders())
    left = registry.with_reclaim(volume, "east", registry.Reclaim(epoch=1, path="/srv/orders", since_us=9))
    assert left.paths["east"] == "/srv/orders"
    assert left_directories.is_pending(left, "east") and not left_directories.is_pending(left, "west")
    assert roles.wanted(left, "east")["reclaim"] == {"epoch": 1, "tail": None, "tree_state": None}
    given = msgspec.structs.replace(left.reclaims["east"], surrendered=True)
    surrendered = registry.with_reclaim(left, "east", given)
    assert not left_directories.is_pending(surrendered, "east")
    parent = registry.Point(position="2.9", hash="cc" * 32)
    again = registry.with_reign(
        surrendered, registry.Reign(site="east", epoch=3, parent=parent), path="/srv/orders", resume=None
    )
    assert again.reclaims == {}


def test_what_cannot_be_taken_back_is_kept_apart() -> None:
    volume = moved(orders())
    left = registry.with_reclaim(volume, "east", registry.Reclaim(epoch=1, path="/srv/orders", since_us=9))
    said = {"path": "/srv/orders", "error": {"reason": "not-reclaimed"}}
    assert left_directories.is_lost(left, "east", said)
    assert not left_directories.is_lost(left, "east", {"path": "/srv/orders", "error": None})
    apart = registry.without_reclaim(left, "east", "/deployment/orders.2")
    assert (apart.reclaims, apart.paths["east"]) == ({}, "/deployment/orders.2")
    assert [orphan.path for orphan in apart.orphans] == ["/srv/orders"]
    assert not left_directories.is_lost(apart, "east", said), "that was said of another directory"
