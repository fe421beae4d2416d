"""What people mean by an edit is what the merged file says, kind by kind."""

from __future__ import annotations

import random

import apsw
import pycrdt
import pytest

from diffkeeper.domain import errors
from diffkeeper_replicator.merging import strategies, text, wire
from diffkeeper_replicator.merging.merger import Conflict, Document
from diffkeeper_replicator.merging.opaque import OpaqueDocument
from diffkeeper_replicator.merging.sqlite_rows import SqliteDocument


def merged(
    strategy: str, first: bytes, east_writes: bytes, west_writes: bytes
) -> tuple[Document, Document, list[Conflict]]:
    """Two sites that know ``first`` write at once; west is the later one by its clock."""
    merger = strategies.strategy(strategy)
    east, west = merger.new("east"), merger.new("west")
    west.merge(east.edit(first, 1 << 12, "east"))
    of_east, of_west = east.edit(east_writes, 2 << 12, "east"), west.edit(west_writes, 3 << 12, "west")
    conflicts = [*west.merge(of_east), *east.merge(of_west)]
    assert east.content() == west.content()
    return east, west, conflicts


def test_two_people_typing_cut_off_from_each_other_get_what_yjs_makes_of_it() -> None:
    rng = random.Random(7)
    sites = {name: text.TextMerger().new(name) for name in ("east", "west")}
    twins: dict[str, pycrdt.Text] = {}
    for name in sites:
        document: pycrdt.Doc[pycrdt.Text] = pycrdt.Doc(client_id=text.client_of(name))
        twins[name] = document.get("text", type=pycrdt.Text)
    updates: dict[str, list[bytes]] = {"east": [], "west": []}
    for number in range(1, 1501):
        for name, document_of_site in sites.items():
            content = document_of_site.content().decode()
            at = rng.randint(0, len(content))
            # Each its own letters, so that where a letter was put shows in the bytes.
            typed = chr(0x4E00 + number) if name == "east" else chr(0xA000 + number % 1000)
            offset = len(content[:at].encode())
            if content and rng.random() < 0.2:
                at = min(at, len(content) - 1)
                offset, size = len(content[:at].encode()), len(content[at].encode())
                del twins[name][offset : offset + size]
                new = content[:at] + content[at + 1 :]
            else:
                twins[name].insert(offset, typed)
                new = content[:at] + typed + content[at:]
            updates[name].append(document_of_site.edit(new.encode(), number << 12, name))
    for update in updates["west"]:
        sites["east"].merge(update)
    sites["west"].merge(sites["east"].state())
    twins["east"].doc.apply_update(twins["west"].doc.get_update())
    assert sites["east"].content() == str(twins["east"]).encode()
    assert sites["west"].content() == sites["east"].content()


def test_an_edit_known_from_capture_is_found_without_a_diff_and_a_wrong_hint_does_no_harm() -> None:
    merger = text.TextMerger()
    content = b"".join(b"line %d\n" % number for number in range(1000))
    for hint in ([(700, 4)], [(100, 2), (700, 4)], [(0, 1)], []):
        east, west = merger.new("east"), merger.new("west")
        west.merge(east.edit(content, 1 << 12, "east"))
        new = content[:700] + "xé!".encode() + content[704:]
        update = east.edit(new, 2 << 12, "east", hint)
        west.merge(update)
        assert west.content() == new
        assert len(update) < 120


def test_a_whole_file_written_anew_keeps_what_both_sites_did_to_different_words() -> None:
    first = b"one two three four\nfive six\n"
    east, _, _ = merged("text", first, b"ONE two three four\nfive six\n", b"one two three 4\nfive 6\nseven\n")
    assert east.content() == b"ONE two three 4\nfive 6\nseven\n"


def test_json_keeps_the_comments_and_layout_of_both_sites() -> None:
    first = b'{\n  // the port\n  "port": 80,\n  "hosts": ["a", "b"]\n}\n'
    of_east = b'{\n  // the port\n  "port": 8080, // was 80\n  "hosts": ["a", "b"]\n}\n'
    of_west = b'{\n  // the port\n  "port": 80,\n  "hosts": ["a", "b", "c"],\n  "debug": true\n}\n'
    east, _, conflicts = merged("json", first, of_east, of_west)
    assert east.content() == (
        b'{\n  // the port\n  "port": 8080, // was 80\n  "hosts": ["a", "b", "c"],\n  "debug": true\n}\n'
    )
    assert conflicts == []


def test_json_written_at_once_in_one_place_is_the_later_value_and_says_so() -> None:
    east, _, conflicts = merged("json", b'{"name": "x"}', b'{"name": "east"}', b'{"name": "west"}')
    assert east.content() == b'{"name": "west"}'
    assert {(one.kind, one.automatic) for one in conflicts} == {("json", False)}
    assert {conflicts[0].ours, conflicts[0].theirs} == {b'/name: "east"', b'/name: "west"'}


def test_json_in_an_object_that_another_site_deleted_survives_when_it_was_edited() -> None:
    first = b'{"a": {"x": 1, "y": 2}, "b": 3}'
    east, _, _ = merged("json", first, b'{"b": 3}', b'{"a": {"x": 1, "y": 5}, "b": 3}')
    assert east.content() == b'{"b": 3, "a": {"y": 5}}'


def test_json_list_elements_are_the_same_ones_when_they_move_along() -> None:
    first = b'[{"id": 1, "n": "a"}, {"id": 2, "n": "b"}]'
    of_east = b'[{"id": 0, "n": "z"}, {"id": 1, "n": "a"}, {"id": 2, "n": "b"}]'
    of_west = b'[{"id": 1, "n": "a"}, {"id": 2, "n": "changed"}]'
    east, _, _ = merged("json", first, of_east, of_west)
    assert east.content() == b'[{"id": 0, "n": "z"}, {"id": 1, "n": "a"}, {"id": 2, "n": "changed"}]'


def test_json_that_does_not_parse_is_text_until_it_does() -> None:
    merger = strategies.strategy("json")
    east, west = merger.new("east"), merger.new("west")
    west.merge(east.edit(b'{"a": 1, "b": 2}', 1 << 12, "east"))
    west.merge(east.edit(b'{"a": 1, "b": ', 2 << 12, "east"))
    assert west.content() == b'{"a": 1, "b": '
    east.merge(west.edit(b'{"a": 1, "b": 7}', 3 << 12, "west"))
    assert east.content() == b'{"a": 1, "b": 7}'
    east.merge(west.edit(b'{"a": 1, "b": 8}', 4 << 12, "west"))
    west.merge(east.edit(b'{"a": 2, "b": 8}', 5 << 12, "east"))
    assert west.content() == b'{"a": 2, "b": 8}'


def test_logs_of_two_sites_stand_in_the_order_of_their_stamps() -> None:
    east, _, _ = merged("lines", b"start\n", b"start\ne1\ne2\n", b"start\nw1")
    assert east.content() == b"start\ne1\ne2\nw1"
    assert east.edit(b"start\ne1\ne2\nw1 goes on\n", 9 << 12, "east")
    assert east.content() == b"start\ne1\ne2\nw1 goes on\n"


def test_counters_lose_no_increment() -> None:
    east, _, conflicts = merged("counter", b"10\n", b"13\n", b"9\n")
    assert east.content() == b"12\n"
    assert conflicts == []


def test_sets_keep_what_another_site_added_while_it_was_taken_out() -> None:
    east, _, _ = merged("set", b"a\nb\n", b"b\nc\n", b"a\nb\nd\n")
    assert east.content() == b"b\nc\nd\n"


def test_the_loser_of_a_whole_file_is_kept_for_a_conflict_copy_until_compaction() -> None:
    east, west, conflicts = merged("opaque", b"first", b"of east", b"of west")
    assert isinstance(east, OpaqueDocument) and isinstance(west, OpaqueDocument)
    assert east.content() == b"of west"
    assert [loser.content for loser in east.losers()] == [b"of east"]
    assert east.losers() == west.losers()
    assert len(conflicts) == 2 and not conflicts[0].automatic
    east.compact()
    assert east.losers() == []


def database(content: bytes, statements: str) -> bytes:
    connection = apsw.Connection(":memory:")
    try:
        if content:
            connection.deserialize("main", content)
        connection.execute(statements)
        return connection.serialize("main")
    finally:
        connection.close()


def rows(content: bytes, query: str) -> list[object]:
    connection = apsw.Connection(":memory:")
    try:
        connection.deserialize("main", content)
        return list(connection.execute(query).fetchall())
    finally:
        connection.close()


def merged_databases(first: str, of_east: str, of_west: str) -> tuple[SqliteDocument, list[Conflict]]:
    base = database(b"", first)
    east, west, conflicts = merged("sqlite", base, database(base, of_east), database(base, of_west))
    assert isinstance(east, SqliteDocument) and isinstance(west, SqliteDocument)
    assert east.aside() == west.aside()
    return east, conflicts


def test_cells_of_one_row_written_at_two_sites_are_both_there() -> None:
    east, conflicts = merged_databases(
        "create table t (id integer primary key, a, b); insert into t values (1, 'x', 'y')",
        "update t set a = 'east'; insert into t values (2, 'new', 'e')",
        "update t set b = 'west'; insert into t values (3, 'new', 'w')",
    )
    found = rows(east.content(), "select * from t order by id")
    assert found == [(1, "east", "west"), (2, "new", "e"), (3, "new", "w")]
    assert conflicts == []


def test_a_row_that_a_constraint_refuses_is_kept_aside_through_later_edits() -> None:
    east, conflicts = merged_databases(
        "create table t (id integer primary key, name unique)",
        "insert into t values (1, 'same')",
        "insert into t values (2, 'same')",
    )
    kept = rows(east.content(), "select id from t")
    assert len(kept) == 1
    assert {one.kind for one in conflicts} == {"sqlite-constraint"}
    east.edit(database(east.content(), "insert into t values (9, 'later')"), 9 << 12, "east")
    east.compact()
    assert [(one.row["name"], one.why) for one in east.aside()] == [
        ("same", "UNIQUE constraint failed: t.name")
    ]


def test_a_child_whose_parent_was_deleted_is_kept_aside_and_old_orphans_are_left_alone() -> None:
    east, _ = merged_databases(
        "create table p (id integer primary key); create table c (id integer primary key, p references p);"
        "insert into p values (1); insert into c values (7, 99)",
        "delete from p",
        "insert into c values (8, 1)",
    )
    assert rows(east.content(), "select id from c") == [(7,)]
    assert [one.key for one in east.aside()] == [(8,)]


def test_a_new_column_at_one_site_and_a_later_row_at_another_are_both_there() -> None:
    east, _ = merged_databases(
        "create table t (id integer primary key, a); insert into t values (1, 2)",
        "alter table t add column b default 5",
        "update t set a = 3",
    )
    assert rows(east.content(), "select * from t") == [(1, 3, 5)]


def test_a_database_in_wal_mode_is_merged_and_stays_in_wal_mode() -> None:
    base = bytearray(database(b"", "create table t (id integer primary key); insert into t values (1)"))
    base[18:20] = b"\2\2"
    document = strategies.strategy("sqlite").new("east")
    document.edit(bytes(base), 1 << 12, "east")
    assert document.content() == bytes(base)


def test_triggers_of_a_database_from_elsewhere_do_not_run() -> None:
    east, _ = merged_databases(
        "create table t (id integer primary key); create table log (id integer primary key);"
        "create trigger spy after insert on t begin insert into log values (new.id); end",
        "insert into t values (1)",
        "insert into t values (2)",
    )
    # Each site's own trigger ran there, once.
    assert rows(east.content(), "select id from log order by id") == [(1,), (2,)]


def test_text_under_the_name_of_another_site_is_corrupt() -> None:
    merger = text.TextMerger()
    east, west = merger.new("east"), merger.new("west")
    message = list(wire.unpack(east.edit(b"mine", 1 << 12, "east")))
    message[3] = "north"
    with pytest.raises(errors.Corrupt):
        west.merge(wire.pack(message))
    assert west.content() == b""


def test_a_state_that_claims_to_be_huge_is_refused_before_memory_is_taken() -> None:
    # The head of a zstd frame that says it holds a tebibyte.
    bomb = b"Z\x28\xb5\x2f\xfd\xe0" + (1 << 40).to_bytes(8, "little") + b"\x01\x00\x00"
    with pytest.raises(errors.Corrupt):
        strategies.strategy("text").new("east").merge(bomb)


def test_a_clock_that_fell_behind_loses_no_edit() -> None:
    merger = strategies.strategy("opaque")
    east, west = merger.new("east"), merger.new("west")
    east.merge(west.edit(b"an hour ahead", (3600 * 10**6) << 12, "west"))
    west.merge(east.edit(b"and now", 5 << 12, "east"))
    assert west.content() == east.content() == b"and now"
