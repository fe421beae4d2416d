"""Two and more sites of a shared volume with real directories: what programs do at one shows at the others, and
nothing of what they did at the same time is lost.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from tests.support.shared_sites import EngineSite, exchange, join

from diffkeeper.domain import errors
from diffkeeper_replicator.merging_service import reports


@pytest.fixture
def pair(tmp_path: Path) -> tuple[EngineSite, EngineSite]:
    east, west = EngineSite(tmp_path, "east"), EngineSite(tmp_path, "west")
    join(east, west)
    return east, west


def test_files_links_and_modes_of_one_site_stand_at_the_other(pair: tuple[EngineSite, EngineSite]) -> None:
    east, west = pair
    (east.path / "box").mkdir()
    (east.path / "box" / "a.bin").write_bytes(b"\0\1")
    (east.path / "link").symlink_to("box/a.bin")
    os.link(east.path / "box" / "a.bin", east.path / "hard")
    os.chmod(east.path / "box" / "a.bin", 0o640)
    exchange(east, west)
    assert west.tree() == east.tree()
    assert (west.path / "hard").stat().st_ino == (west.path / "box" / "a.bin").stat().st_ino
    assert (west.path / "hard").stat().st_mode & 0o7777 == 0o640
    assert (west.path / "hard").stat().st_mtime_ns == (east.path / "hard").stat().st_mtime_ns


def test_a_rename_at_one_site_and_an_edit_at_the_other_both_show(pair: tuple[EngineSite, EngineSite]) -> None:
    east, west = pair
    (east.path / "one").write_bytes(b"\0old")
    exchange(east, west)
    (east.path / "one").rename(east.path / "two")
    (west.path / "one").write_bytes(b"\0new and longer")
    exchange(east, west)
    assert east.tree() == west.tree() == {"two": "\0new and longer"}


def test_two_versions_made_at_once_are_both_kept(pair: tuple[EngineSite, EngineSite]) -> None:
    east, west = pair
    (east.path / "data").write_bytes(b"\0")
    exchange(east, west)
    (east.path / "data").write_bytes(b"\0east")
    east.settle()
    (west.path / "data").write_bytes(b"\0west")
    west.settle()
    exchange(east, west)
    assert east.tree() == west.tree()
    assert sorted(east.tree().values()) == ["\0east", "\0west"]
    assert east.tree()["data"] == "\0west"
    conflicts = east.engine.store.conflicts()
    assert [fields["kind"] for _, fields, _ in conflicts] == ["opaque"]


@pytest.mark.parametrize(("choice", "winner"), [("ours", "east"), ("theirs", "west"), ("both", "west")])
@pytest.mark.parametrize("size", [10, 100_000])
def test_a_conflict_is_decided_at_one_site_and_the_others_follow(
    pair: tuple[EngineSite, EngineSite], choice: str, winner: str, size: int
) -> None:
    east, west = pair
    (east.path / "data").write_bytes(b"\0")
    exchange(east, west)
    for site in pair:
        (site.path / "data").write_bytes(b"\0" + site.name.encode() * size)
        site.settle()
    east.hear(west)
    east.settle()
    (found,) = [one for one in reports.conflicts(east.engine) if one["resolved"] is None]
    reports.resolve(east.engine, found["id"], choice)
    exchange(east, west)
    assert east.tree() == west.tree()
    assert west.tree()["data"] == "\0" + winner * size
    assert len(west.tree()) == (2 if choice == "both" else 1)
    for site in pair:
        assert [one["resolved"] for one in reports.conflicts(site.engine)] == [choice]


def test_blame_names_the_site_of_each_line(pair: tuple[EngineSite, EngineSite]) -> None:
    east, west = pair
    (east.path / "notes.txt").write_text("one\n")
    exchange(east, west)
    (west.path / "notes.txt").write_text("one\ntwo\n")
    exchange(east, west)
    for site in pair:
        lines = reports.blame(site.engine, b"notes.txt")["lines"]
        assert [(line["where"], line["site"]) for line in lines] == [("1", "east"), ("2", "west")]
    with pytest.raises(errors.NotFound):
        reports.blame(east.engine, b"nothing")


def test_one_name_made_at_both_sites_keeps_both(pair: tuple[EngineSite, EngineSite]) -> None:
    east, west = pair
    (east.path / "new").write_bytes(b"\0east")
    (west.path / "new").write_bytes(b"\0west")
    exchange(east, west)
    assert east.tree() == west.tree()
    assert sorted(east.tree().values()) == ["\0east", "\0west"]


def test_what_both_sites_had_alike_stands_once(pair: tuple[EngineSite, EngineSite]) -> None:
    east, west = pair
    for site in pair:
        (site.path / "box").mkdir()
        (site.path / "box" / "same").write_bytes(b"\0same")
    exchange(east, west)
    assert east.tree() == west.tree() == {"box": "/", "box/same": "\0same"}


def test_a_removal_here_and_an_edit_there_keep_the_file(pair: tuple[EngineSite, EngineSite]) -> None:
    east, west = pair
    (east.path / "kept").write_bytes(b"\0")
    exchange(east, west)
    (east.path / "kept").unlink()
    (west.path / "kept").write_bytes(b"\0edited")
    exchange(east, west)
    assert east.tree() == west.tree() == {"kept": "\0edited"}
    assert any(fields["kind"] == "removed-and-edited" for _, fields, _ in east.engine.store.conflicts())


def test_a_tree_that_is_removed_at_one_site_goes_at_the_other(pair: tuple[EngineSite, EngineSite]) -> None:
    east, west = pair
    (east.path / "a" / "b").mkdir(parents=True)
    (east.path / "a" / "b" / "c").write_bytes(b"\0")
    exchange(east, west)
    assert west.tree() == east.tree()
    (west.path / "a" / "b" / "c").unlink()
    (west.path / "a" / "b").rmdir()
    (west.path / "a").rmdir()
    exchange(east, west)
    assert east.tree() == west.tree() == {}


def test_names_that_were_swapped_are_swapped_everywhere(pair: tuple[EngineSite, EngineSite]) -> None:
    east, west = pair
    for name in ("a", "b"):
        (east.path / name).mkdir()
        (east.path / name / f"in-{name}").write_bytes(b"\0" + name.encode())
    exchange(east, west)
    (east.path / "a").rename(east.path / "c")
    (east.path / "b").rename(east.path / "a")
    (east.path / "c").rename(east.path / "b")
    exchange(east, west)
    assert east.tree() == west.tree()
    assert (west.path / "b" / "in-a").read_bytes() == b"\0a"


def test_an_editor_that_saves_by_rename_edits_the_file(pair: tuple[EngineSite, EngineSite]) -> None:
    east, west = pair
    (east.path / "text").write_bytes(b"\0one")
    exchange(east, west)
    entry = dict(west.engine.disk.children(b""))[b"text"]
    (east.path / ".text.swp").write_bytes(b"\0two")
    (east.path / ".text.swp").rename(east.path / "text")
    exchange(east, west)
    assert east.tree() == west.tree() == {"text": "\0two"}
    assert dict(west.engine.disk.children(b""))[b"text"] == entry


def test_a_file_moved_into_a_new_directory_stays_the_same_file(pair: tuple[EngineSite, EngineSite]) -> None:
    east, west = pair
    (east.path / "file").write_bytes(b"\0one")
    exchange(east, west)
    (east.path / "new").mkdir()
    (east.path / "file").rename(east.path / "new" / "file")
    (west.path / "file").write_bytes(b"\0edited")
    exchange(east, west)
    assert east.tree() == west.tree() == {"new": "/", "new/file": "\0edited"}


def test_a_program_that_holds_a_replaced_file_open_loses_nothing(pair: tuple[EngineSite, EngineSite]) -> None:
    east, west = pair
    (east.path / "log").write_bytes(b"\0one")
    exchange(east, west)
    with (west.path / "log").open("ab") as held:
        (east.path / "log").write_bytes(b"\0from east")
        exchange(east, west)
        assert (west.path / "log").read_bytes() == b"\0from east"
        held.write(b" and two")
        held.flush()
        west.engine.look_at_displaced()
        exchange(east, west)
    west.engine.look_at_displaced()
    exchange(east, west)
    assert east.tree() == west.tree()
    assert sorted(east.tree().values()) == ["\0from east", "\0one and two"]
    assert len(west.engine.displaced) == 0
    assert os.listdir(west.engine.directory.aside) == []


def test_a_site_that_was_killed_goes_on_with_what_programs_did_meanwhile(
    pair: tuple[EngineSite, EngineSite],
) -> None:
    east, west = pair
    (east.path / "a").write_bytes(b"\0a")
    exchange(east, west)
    (east.path / "a").write_bytes(b"\0changed")
    (east.path / "b").write_bytes(b"\0b")
    east.restart()
    exchange(east, west)
    assert east.tree() == west.tree() == {"a": "\0changed", "b": "\0b"}


def test_links_that_lead_outside_are_not_made_elsewhere(pair: tuple[EngineSite, EngineSite]) -> None:
    east, west = pair
    (east.path / "out").symlink_to("/etc/passwd")
    (east.path / "up").symlink_to("../secret")
    (east.path / "in").symlink_to("here")
    exchange(east, west)
    assert west.tree() == {"in": "-> here"}
    assert set(west.engine.left_out) == {b"out", b"up"}
    assert set(east.tree()) == {"in", "out", "up"}


def test_removed_things_are_forgotten_once_all_sites_have_seen_it(
    pair: tuple[EngineSite, EngineSite],
) -> None:
    east, west = pair
    for number in range(20):
        (east.path / str(number)).write_bytes(b"\0" + bytes([number]))
    exchange(east, west)
    for number in range(20):
        (west.path / str(number)).unlink()
    exchange(east, west)
    for site in pair:
        site.engine.say_seen()
    exchange(east, west)
    for site in pair:
        site.engine.say_seen()
    exchange(east, west)
    for site in pair:
        site.engine.fold()
        assert site.engine.state.tree.entries == {}
        assert site.engine.state.tree.log == []
        assert site.engine.store.document_bytes() == 0


def test_a_directory_that_was_copied_to_another_place_is_taken_for_what_it_is(tmp_path: Path) -> None:
    east, west = EngineSite(tmp_path, "east"), EngineSite(tmp_path, "west")
    join(east, west)
    (east.path / "box").mkdir()
    (east.path / "box" / "a.txt").write_text("one\n")
    (east.path / "b.txt").write_text("two\n")
    exchange(east, west)
    said = len(west.log)
    west.engine.close()
    west.path.rename(tmp_path / "old")
    shutil.copytree(tmp_path / "old", west.path)
    (west.path / "b.txt").write_text("changed meanwhile\n")
    west.begin()
    exchange(east, west)
    assert east.tree() == west.tree()
    assert sorted(west.tree().values()) == ["/", "changed meanwhile\n", "one\n", "two\n"]
    assert {"box", "box/a.txt", "b.txt"} < set(west.tree())
    assert len(west.log) <= said + 5


def test_documents_stay_within_three_times_their_content(pair: tuple[EngineSite, EngineSite]) -> None:
    east, west = pair
    text = ""
    for number in range(300):
        text = f"line {number} {number * 7919 % 1009}\n" + text[: 20_000 if number % 50 else 5_000]
        (east.path / "notes.txt").write_text(text)
        east.engine.touch([b"notes.txt"])
        east.settle(scan=False)
    exchange(east, west)
    for _ in range(2):
        for site in pair:
            site.engine.say_seen()
        exchange(east, west)
    for site in pair:
        site.engine.fold()
        assert site.engine.store.document_bytes() <= 3 * len(text) + 4096
        assert site.tree() == {"notes.txt": text}
