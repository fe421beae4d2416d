"""Which strategy a file gets: by rule, by name, by bytes, and what is said when it cannot have the one it should."""

from __future__ import annotations

import sqlite3

import pytest

from diffkeeper.domain import errors
from diffkeeper_replicator.merging import rules, strategies
from diffkeeper_replicator.merging.rules import Choice, Rules


def choose(content: bytes, path: str, **mapping: str) -> Choice:
    return Rules.of(mapping).choose(path, len(content), lambda: content)


def unread() -> bytes:
    raise AssertionError("the file is too large to be read")


@pytest.mark.parametrize(
    ("path", "content", "strategy"),
    [
        ("notes.md", b"text", "text"),
        ("a/settings.json", b"{}", "json"),
        ("a/broken.json", b"{", "json"),
        ("app.log", b"line\n", "lines"),
        ("image.png", b"\x89PNG\x00", "opaque"),
        ("latin.txt", b"caf\xe9", "opaque"),
        ("empty", b"", "text"),
    ],
)
def test_name_and_bytes_decide_where_no_rule_does(path: str, content: bytes, strategy: str) -> None:
    assert choose(content, path) == Choice(strategy)


def test_a_database_is_known_by_its_bytes() -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute("create table t (id integer primary key)")
    content = connection.serialize()
    connection.close()
    assert choose(content, "anything").strategy == "sqlite"
    assert choose(content[:600], "anything").strategy == "opaque"


def test_the_first_rule_that_fits_counts() -> None:
    made = Rules.of({"visits": "counter", "conf/**/*.md": "opaque", "*.md": "text"})
    assert made.wanted("a/b/visits") == "counter"
    assert made.wanted("conf/x/y/z.md") == "opaque"
    assert made.wanted("conf/z.md") == "opaque"
    assert made.wanted("other/z.md") == "text"
    assert made.wanted("z.mdx") is None


def test_two_gigabytes_matched_as_text_are_kept_whole_unread_and_say_why() -> None:
    choice = Rules.of({"*.txt": "text"}).choose("big.txt", 2 << 30, unread)
    assert choice.strategy == "opaque"
    assert choice.why == f"{2 << 30} bytes are too many to merge as text (at most {rules.LIMITS['text']})"
    assert Rules().choose("big.txt", 2 << 30, unread) == Choice("opaque")


def test_text_that_is_not_utf8_is_kept_whole_and_says_why() -> None:
    made = Rules.of({"*.txt": "text"})
    assert made.choose("a.txt", 4, lambda: b"caf\xe9") == Choice(
        "opaque", "the file is not UTF-8 and cannot be merged as text"
    )


def test_an_unknown_strategy_is_misconfigured_and_suggests_one() -> None:
    with pytest.raises(errors.Misconfigured) as error:
        Rules.of({"*.md": "txt"})
    assert error.value.reason == "unknown-strategy"
    assert "text" in error.value.hint


def test_every_strategy_says_its_name_and_has_a_limit_or_takes_all() -> None:
    assert [strategies.strategy(name).name for name in strategies.NAMES] == list(strategies.NAMES)
    assert set(rules.LIMITS) == set(strategies.NAMES) - {"opaque"}
