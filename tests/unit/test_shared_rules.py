"""``diffkeeper.yaml`` at the top of a shared volume: how it is read, what it does to files that are there, and what
sites make of it that have not all heard of it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.shared_sites import EngineSite, exchange, join

from diffkeeper.domain import errors
from diffkeeper_replicator.merging import globs, rules_file
from diffkeeper_replicator.merging_service import kinds, reports

RULES = "diffkeeper.yaml"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[EngineSite, EngineSite]:
    east, west = EngineSite(tmp_path, "east"), EngineSite(tmp_path, "west")
    join(east, west)
    return east, west


def strategy(site: EngineSite, path: str) -> str:
    state = site.engine.state
    entry = dict(state.tree.paths())[path.encode()]
    kept = site.engine.store.document(state.tree.entries[entry].object)
    assert kept is not None
    return kinds.parse(kept.merger).strategy


def written_at_both(pair: tuple[EngineSite, EngineSite], path: str, east: bytes, west: bytes) -> None:
    """At once: neither has heard of the other's edit."""
    for site, content in zip(pair, (east, west), strict=True):
        (site.path / path).write_bytes(content)
        site.settle()
    exchange(*pair)


def test_rules_are_read_in_their_order() -> None:
    found = rules_file.parse(b'# ours\nmerge:\n  "*.md": text\n  "logs/**": lines\n  visits: counter\n')
    assert found.rules == (("*.md", "text"), ("logs/**", "lines"), ("visits", "counter"))
    for nothing in (b"", b"# only words\n", b"merge:\n", b"---\nmerge: {}\n"):
        assert rules_file.parse(nothing).rules == ()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"merge:\n  a: tekst\n", "there is no merge strategy tekst (did you mean text?)"),
        (b"merge:\n  a: text\n  a: lines\n", "line 3: the glob 'a' stands twice"),
        (b"merge: {}\nmerge: {}\n", "line 2: 'merge' stands twice"),
        (b"merges:\n  a: text\n", "line 1: there is no key 'merges' here, only 'merge'"),
        (b"- a\n", "line 1: it is to be one mapping"),
        (b"merge: [a]\n", "line 1: it is to be one mapping"),
        (b"merge:\n  a: &x text\n  b: *x\n", "line 2: it is to be one mapping"),
        (b"merge:\n  a: !!python/name:os.system x\n", "line 2: it is to be one mapping"),
        (b"merge: {}\n---\nmerge: {}\n", "line 2: it is to be one mapping"),
        (b"merge:\n  a: 'text\n", "while scanning a quoted scalar"),
        (b"merge:\n  \xff: text\n", "byte 9 is not UTF-8"),
        (b"[" * 60_000, "line 1: it is to be one mapping"),
        (b"#" * (rules_file.MAX_BYTES + 1), "at most 65536 are read"),
        (b"merge:\n  " + b"a" * 300 + b": text\n", "is longer than 255 characters"),
    ],
)
def test_what_is_not_just_rules_is_refused_with_the_place(content: bytes, why: str) -> None:
    with pytest.raises(errors.Misconfigured) as refused:
        rules_file.parse(content)
    assert refused.value.message.startswith("the rules in diffkeeper.yaml are not in force: ")
    assert why in refused.value.message


@pytest.mark.parametrize(
    ("glob", "fitting", "others"),
    [
        ("*.md", ["a.md", ".md"], ["a/b.md", "a.mdx", "md"]),
        ("a/**/b", ["a/b", "a/x/b", "a/x/y/b"], ["ab", "a/xb", "x/a/b"]),
        ("**/b?", ["b1", "x/b1", "x/y/b1"], ["b", "xb1", "b/1"]),
        ("a**b", ["ab", "a/x/b", "axb"], ["a", "b"]),
        ("logs/**", ["logs/", "logs/a", "logs/a/b"], ["logs", "log/a"]),
        ("[x].(y)", ["[x].(y)"], ["x.y"]),
    ],
)
def test_globs_fit_what_they_say(glob: str, fitting: list[str], others: list[str]) -> None:
    made = globs.Glob(glob)
    assert [path for path in fitting + others if made.fits(path)] == fitting


def test_a_glob_of_many_stars_takes_no_longer_than_its_path() -> None:
    assert not globs.Glob("**a*" * 60 + "b").fits("a" * 4000)


def test_a_rule_counts_for_files_that_are_new_at_every_site(pair: tuple[EngineSite, EngineSite]) -> None:
    east, west = pair
    (east.path / RULES).write_text("merge:\n  visits: counter\n")
    exchange(east, west)
    (west.path / "visits").write_text("10\n")
    exchange(east, west)
    written_at_both(pair, "visits", b"13\n", b"9\n")
    assert east.tree() == west.tree() == {RULES: "merge:\n  visits: counter\n", "visits": "12\n"}


def test_a_rule_counts_for_a_file_that_is_there_from_its_next_edit_on(
    pair: tuple[EngineSite, EngineSite],
) -> None:
    east, west = pair
    (east.path / "names").write_text("a\nb\n")
    exchange(east, west)
    (west.path / RULES).write_text("merge:\n  names: set\n")
    exchange(east, west)
    assert strategy(east, "names") == strategy(west, "names") == "text"
    written_at_both(pair, "names", b"a\nb\nc\n", b"b\nc\n")
    assert east.tree() == west.tree()
    # As a set, c that both added stands once; both began it with the same content, so nothing is beside it.
    assert east.tree()["names"] == "b\nc\n" and set(east.tree()) == {RULES, "names"}
    assert strategy(east, "names") == strategy(west, "names") == "set"


def test_an_edit_under_the_old_rule_that_comes_late_stands_beside_the_file_and_is_told(
    pair: tuple[EngineSite, EngineSite],
) -> None:
    east, west = pair
    (east.path / "names").write_text("a\nb\n")
    exchange(east, west)
    (east.path / RULES).write_text("merge:\n  names: set\n")
    east.settle()
    # West has not heard of the rule.
    written_at_both(pair, "names", b"a\nb\nof east\n", b"a\nb\nof west\n")
    found = east.tree()
    assert west.tree() == found
    assert found["names"] == "a\nb\nof east\n"
    copies = [path for path in found if path.startswith("names.conflict-")]
    assert [found[path] for path in copies] == ["a\nb\nof west\n"]
    for site in pair:
        told = [one for one in reports.conflicts(site.engine) if one["resolved"] is None]
        assert [(one["kind"], one["path"]) for one in told] == [("kind-changed", "names")]
    exchange(east, west)
    assert east.tree() == west.tree() == found


def test_rules_that_two_sites_set_apart_end_in_one_kind(pair: tuple[EngineSite, EngineSite]) -> None:
    east, west = pair
    (east.path / "names").write_text("a\n")
    (east.path / RULES).write_text("merge:\n")
    exchange(east, west)
    (east.path / RULES).write_text("merge:\n  names: set\n")
    (west.path / RULES).write_text("merge:\n  'na*': lines\n")
    east.settle()
    west.settle()
    written_at_both(pair, "names", b"a\nof east\n", b"a\nof west\n")
    assert east.tree() == west.tree()
    assert strategy(east, "names") == strategy(west, "names") == "lines"
    assert {"of east", "of west"} <= set("\n".join(east.tree().values()).split("\n"))
    assert east.engine.state.rules.rules == west.engine.state.rules.rules


def test_bad_rules_leave_the_defaults_in_force_and_say_so_until_they_are_mended(
    pair: tuple[EngineSite, EngineSite],
) -> None:
    east, west = pair
    (east.path / RULES).write_text("merge:\n  '*.txt': tekst\n")
    (east.path / "a.txt").write_text("one\n")
    exchange(east, west)
    for site in pair:
        shown = site.engine.status()["rules"]
        assert shown["count"] == 0 and "did you mean text?" in shown["trouble"]["message"]
        assert strategy(site, "a.txt") == "text"
    (west.path / RULES).write_text("merge:\n  '*.txt': lines\n")
    exchange(east, west)
    assert [site.engine.status()["rules"] for site in pair] == [{"count": 1, "trouble": None}] * 2
    (east.path / "a.txt").write_text("one\ntwo\n")
    exchange(east, west)
    assert strategy(west, "a.txt") == "lines"


def test_rules_say_nothing_of_their_own_file(pair: tuple[EngineSite, EngineSite]) -> None:
    east, west = pair
    (east.path / RULES).write_text("merge:\n  '*': opaque\n")
    exchange(east, west)
    (west.path / RULES).write_text("merge:\n  '*': opaque\n  # more\n")
    exchange(east, west)
    assert strategy(east, RULES) == strategy(west, RULES) == "text"


def test_a_file_that_cannot_be_what_its_rule_wants_is_told_until_it_can(
    pair: tuple[EngineSite, EngineSite],
) -> None:
    east, west = pair
    (east.path / RULES).write_text("merge:\n  visits: counter\n  latin: text\n")
    exchange(east, west)
    (east.path / "visits").write_text("many\n")
    (east.path / "latin").write_bytes(b"caf\xe9")
    exchange(east, west)
    assert west.tree()["visits"] == "many\n"
    told = {one["path"]: one["why"] for one in east.engine.status()["not_as_ruled"]}
    assert "not one whole number" in told["visits"] and "not UTF-8" in told["latin"]
    east.restart()
    assert len(east.engine.status()["not_as_ruled"]) == 2
    (east.path / "visits").write_text("7\n")
    exchange(east, west)
    assert strategy(west, "visits") == "counter"
    assert [one["path"] for one in east.engine.status()["not_as_ruled"]] == ["latin"]


def test_a_file_that_its_strategy_cannot_hold_any_more_is_whole_at_every_site(
    pair: tuple[EngineSite, EngineSite],
) -> None:
    east, west = pair
    (east.path / "a.json").write_text('{"a": 1}')
    exchange(east, west)
    (east.path / "a.json").write_bytes(b"\xff\xfe")
    exchange(east, west)
    (west.path / "a.json").write_bytes(b"\xff\xfe more")
    exchange(east, west)
    assert (east.path / "a.json").read_bytes() == (west.path / "a.json").read_bytes() == b"\xff\xfe more"
    assert set(east.tree()) == set(west.tree()) == {"a.json"}


def test_a_program_that_holds_a_file_of_another_kind_open_loses_nothing(
    pair: tuple[EngineSite, EngineSite],
) -> None:
    east, west = pair
    (east.path / "log").write_text("one\n")
    exchange(east, west)
    with (west.path / "log").open("a") as held:
        (east.path / RULES).write_text("merge:\n  log: lines\n")
        exchange(east, west)
        (east.path / "log").write_text("one\nof east\n")
        exchange(east, west)
        held.write("held\n")
        held.flush()
        west.engine.look_at_displaced()
        exchange(east, west)
    west.engine.look_at_displaced()
    exchange(east, west)
    assert east.tree() == west.tree()
    assert "".join(east.tree().values()).count("held\n") == 1
    assert east.tree()["log"].startswith("one\nof east\n")


def test_documents_of_former_kinds_are_let_go_once_all_sites_have_seen_the_change(
    pair: tuple[EngineSite, EngineSite],
) -> None:
    east, west = pair
    (east.path / "names").write_text("a\n")
    (east.path / RULES).write_text("merge:\n  names: set\n")
    exchange(east, west)
    (east.path / "names").write_text("a\nb\n")
    exchange(east, west)
    for _ in range(2):
        for site in pair:
            site.engine.say_seen()
        exchange(east, west)
    for site in pair:
        site.engine.fold()
        rows = site.engine.store._db.execute("select id from documents where length(id) > 16").fetchall()
        assert rows == []
