"""What one site did to a file of a shared volume is taken back, and what the others did stays."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.shared_sites import EngineSite, exchange, join

from diffkeeper.domain import clocks, errors, shared_ops
from diffkeeper_replicator.merging import strategies, undo
from diffkeeper_replicator.merging_service import undoing

Pair = tuple[EngineSite, EngineSite]


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    east, west = EngineSite(tmp_path, "east"), EngineSite(tmp_path, "west")
    join(east, west)
    return east, west


def undo_at(site: EngineSite, others: list[EngineSite], asked: undoing.Asked) -> dict[str, Any]:
    history = undoing.begin(site.engine, asked)
    for other in [site, *others]:
        for packed in other.log:
            history.take(shared_ops.decode(packed, other.name))
    done = undoing.finish(site.engine, asked, history)
    assert done is not None, "all logs were read"
    return done


def write(site: EngineSite, path: str, content: str, *others: EngineSite) -> None:
    (site.path / path).write_text(content)
    exchange(site, *others)


CASES: dict[str, tuple[str, list[tuple[str, str]], str]] = {
    # File and first content; what the sites made of it, one after the other; what is left without west.
    "words put in and taken out": (
        "one two three\n",
        [("west", "one three and WEST\n"), ("east", "EAST one three and WEST\n")],
        "EAST one two three\n",
    ),
    "an edit of the other within what goes": (
        "a\n",
        [("west", "a\nlong line of west\n"), ("east", "a\nlong line (east!) of west\n")],
        "a\n(east!) \n",
    ),
    "what it took out of the other's": (
        "first\n",
        [("east", "first\nsecond\n"), ("west", "first\n")],
        "first\nsecond\n",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_text_without_the_edits_of_one_site(pair: Pair, case: str) -> None:
    east, west = pair
    first, edits, left = CASES[case]
    write(east, "a.txt", first, west)
    for name, content in edits:
        site, other = (east, west) if name == "east" else (west, east)
        write(site, "a.txt", content, other)
    done = undo_at(east, [west], undoing.Asked(b"a.txt", "west"))
    exchange(east, west)
    assert east.tree() == west.tree()
    found = east.tree()["a.txt"]
    # Spaces at the seams belong to whoever put them there.
    assert found.split() == left.split()
    assert done["edits"] == sum(name == "west" for name, _ in edits)


def test_json_loses_the_keys_of_one_site_and_keeps_its_layout(pair: Pair) -> None:
    east, west = pair
    write(east, "a.json", '{\n  // why\n  "port": 80,\n  "gone": 1\n}\n', west)
    write(west, "a.json", '{\n  // why\n  "port": 81,\n  "debug": true\n}\n', east)
    write(east, "a.json", '{\n  // why\n  "port": 81,\n  "debug": true,\n  "name": "x"\n}\n', west)
    undo_at(west, [east], undoing.Asked(b"a.json", "west"))
    exchange(east, west)
    text = east.tree()["a.json"]
    assert east.tree() == west.tree()
    assert '"port": 80' in text and '"gone": 1' in text and '"name": "x"' in text and "// why" in text
    assert "debug" not in text


def test_lines_sets_and_counters_without_one_site(pair: Pair) -> None:
    east, west = pair
    (east.path / "diffkeeper.yaml").write_text("merge:\n  names: set\n  visits: counter\n")
    exchange(east, west)
    for name, content in (("a.log", "start\n"), ("names", "a\nb\n"), ("visits", "10\n")):
        write(east, name, content, west)
    for name, content in (("a.log", "start\nof west\n"), ("names", "b\nc\n"), ("visits", "15\n")):
        write(west, name, content, east)
    for name, content in (("a.log", "start\nof west\nof east\n"), ("names", "b\nc\nd\n"), ("visits", "16\n")):
        write(east, name, content, west)
    for path in (b"a.log", b"names", b"visits"):
        undo_at(east, [west], undoing.Asked(path, "west"))
    exchange(east, west)
    assert east.tree() == west.tree()
    found = east.tree()
    assert (found["a.log"], found["visits"]) == ("start\nof east\n", "11\n")
    assert sorted(found["names"].split()) == ["a", "b", "d"]


def test_only_edits_from_a_time_on(pair: Pair) -> None:
    east, west = pair
    write(east, "a.txt", "one\n", west)
    write(west, "a.txt", "one\nearly\n", east)
    since = west.engine.state.tick()
    write(west, "a.txt", "one\nearly\nlate\n", east)
    dry = undo_at(east, [west], undoing.Asked(b"a.txt", "west", since, dry_run=True))
    assert (dry["edits"], dry["bytes_taken_out"], dry["bytes_put_back"]) == (1, 5, 0)
    exchange(east, west)
    assert east.tree()["a.txt"] == "one\nearly\nlate\n"
    done = undo_at(east, [west], undoing.Asked(b"a.txt", "west", since))
    assert done["first_us"] >= clocks.to_micros(since)
    exchange(east, west)
    assert east.tree() == west.tree() == {"a.txt": "one\nearly\n"}


def test_what_was_taken_back_is_not_taken_back_again_and_later_edits_are(pair: Pair) -> None:
    east, west = pair
    write(east, "a.txt", "one two\n", west)
    write(west, "a.txt", "one\n", east)
    undo_at(east, [west], undoing.Asked(b"a.txt", "west"))
    exchange(east, west)
    assert west.tree()["a.txt"] == "one two\n"
    with pytest.raises(errors.NotFound) as refused:
        undo_at(west, [east], undoing.Asked(b"a.txt", "west"))
    assert refused.value.reason == "no-edits"
    write(west, "a.txt", "one two three\n", east)
    assert undo_at(west, [east], undoing.Asked(b"a.txt", "west"))["edits"] == 1
    exchange(east, west)
    assert east.tree() == west.tree() == {"a.txt": "one two\n"}
    # The undo itself was an edit of the site that did it.
    undo_at(west, [east], undoing.Asked(b"a.txt", "east"))
    exchange(east, west)
    assert east.tree() == west.tree() == {"a.txt": "one\n"}


def test_what_is_written_meanwhile_is_merged_with_the_undo(pair: Pair) -> None:
    east, west = pair
    write(east, "a.txt", "one\ntwo\n", west)
    write(west, "a.txt", "one\ntwo\nthree\n", east)
    (west.path / "a.txt").write_text("ONE\ntwo\nthree\n")
    west.settle()
    (east.path / "a.txt").write_text("one\n2\ntwo\nthree\n")
    undo_at(east, [west], undoing.Asked(b"a.txt", "west"))
    exchange(east, west)
    assert east.tree() == west.tree() == {"a.txt": "ONE\n2\ntwo\n"}


@pytest.mark.parametrize(
    ("path", "content", "by", "reason"),
    [
        ("a.bin", b"\0\1", "west", "cannot-undo"),
        ("a.txt", b"text\n", "west", "no-edits"),
        # What a file was at first is nobody's edit.
        ("a.txt", b"text\n", "east", "no-edits"),
    ],
)
def test_what_cannot_be_taken_back_is_refused_with_the_reason(
    pair: Pair, path: str, content: bytes, by: str, reason: str
) -> None:
    east, west = pair
    (east.path / path).write_bytes(content)
    exchange(east, west)
    with pytest.raises(errors.DiffKeeperError) as refused:
        undo_at(east, [west], undoing.Asked(path.encode(), by))
    assert refused.value.reason == reason
    assert (west.path / path).read_bytes() == content
    with pytest.raises(errors.NotFound):
        undoing.begin(east.engine, undoing.Asked(b"nothing", by))


def test_edits_that_were_not_read_yet_are_asked_for_first(pair: Pair) -> None:
    east, west = pair
    write(east, "a.txt", "one\n", west)
    asked = undoing.Asked(b"a.txt", "west")
    history = undoing.begin(east.engine, asked)
    write(west, "a.txt", "one\ntwo\n", east)
    assert undoing.finish(east.engine, asked, history) is None
    assert east.tree()["a.txt"] == "one\ntwo\n"


def test_an_update_that_rests_on_a_missing_one_is_refused() -> None:
    made = strategies.strategy("text").new("east")
    made.edit(b"one\n", 1 << 12, "east")
    second = made.edit(b"one\ntwo\n", 2 << 12, "east")
    with pytest.raises(errors.Refused) as refused:
        undo.without("text", [(second, False)])
    assert refused.value.reason == "updates-missing"


def _typed(rng: random.Random, content: str, letters: Callable[[], str]) -> str:
    at = rng.randint(0, len(content))
    if content and rng.random() < 0.3:
        return content[:at] + content[at + 2 :]
    return content[:at] + letters() + content[at:]


@pytest.mark.parametrize("seed", range(5))
def test_no_letter_of_the_others_is_lost_and_none_of_the_site_is_left(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    sites = {name: strategies.strategy("text").new(name) for name in ("east", "west", "north")}
    letters = {"east": "E", "west": "W", "north": "N"}
    updates: list[tuple[str, bytes]] = []
    put_in = 0
    for number in range(1, 300):
        name = rng.choice(sorted(sites))
        content = sites[name].content().decode()
        # Only west deletes, so every other letter has to be there again without it.
        new = content + letters[name]
        if name == "west":
            new = _typed(rng, content, lambda: "W")
        elif content:
            at = rng.randint(0, len(content))
            new = content[:at] + letters[name] + content[at:]
        put_in += name != "west"
        update = sites[name].edit(new.encode(), number << 12, name)
        if update:
            updates.append((name, update))
        if rng.random() < 0.5:
            for other in sites.values():
                for _, sent in updates:
                    other.merge(sent)
    found = undo.without("text", [(update, name == "west") for name, update in updates]).decode()
    assert "W" not in found
    assert len(found) == put_in
