"""What an edit of a text is taken for: in which place, and how much of it; and what two of them made at once become."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.shared_sites import EngineSite, exchange, join

from diffkeeper.domain import clocks, deltas, frames, positions
from diffkeeper_replicator.merging import strategies, text_edits
from diffkeeper_replicator.merging.text_edits import Splice
from diffkeeper_replicator.merging_service import touched_paths, written

Ranges = list[tuple[int, int]]

# First, what east and what west made of it at the same time, and what both are to have. Stamps of west are later;
# which of two texts in one place stands first is for Yjs to say, so there may be two right answers.
INTENTS = {
    "different words of one line": ("one two three\n", "ONE two three\n", "one two 3\n", ["ONE two 3\n"]),
    "a word that begins like the next one": (
        "x\nabc1\n",
        "x\nabc2\nabc1\n",
        "x\nabc3\nabc1\n",
        ["x\nabc2\nabc3\nabc1\n", "x\nabc3\nabc2\nabc1\n"],
    ),
    "one word made two others that begin alike": (
        "see alpha.\n",
        "see alpine.\n",
        "see alps.\n",
        ["see alpinealps.\n", "see alpsalpine.\n"],
    ),
    "letters put into one word": ("color\n", "colour\n", "colors\n", ["colours\n"]),
    "paragraphs that begin alike": (
        "# Log\n\n- first\n",
        "# Log\n\n- first of east\n- first\n",
        "# Log\n\n- first of west\n- first\n",
        [
            "# Log\n\n- first of east\n- first of west\n- first\n",
            "# Log\n\n- first of west\n- first of east\n- first\n",
        ],
    ),
    "a line taken out beside one that was changed": (
        "a 1\na 2\na 3\n",
        "a 1\na 3\n",
        "a 1\na 2\na 4\n",
        ["a 1\na 4\n"],
    ),
    "appended at both": ("x\n", "x\neast\n", "x\nwest\n", ["x\neast\nwest\n", "x\nwest\neast\n"]),
    "a block moved down and a word in another": (
        "one\ntwo\nthree\nfour\n",
        "two\nthree\none\nfour\n",
        "one\ntwo\nthree\nfour!\n",
        ["two\nthree\none\nfour!\n"],
    ),
    "letters with marks, and others": (
        "café 日本語 😀\n",
        "cafe 日本語 😀\n",
        "café 日本国 😁\n",
        ["cafe 日本国 😁\n"],
    ),
    "a line taken out twice": ("a\nb\nc\n", "a\nc\n", "a\nc\n", ["a\nc\n"]),
    "a word put before one like it": (
        "the cat\n",
        "the the cat\n",
        "the big cat\n",
        ["the the big cat\n", "the big the cat\n"],
    ),
}


@pytest.mark.parametrize("case", INTENTS)
def test_what_was_meant_at_two_sites_is_what_both_have(case: str) -> None:
    first, of_east, of_west, right = INTENTS[case]
    merger = strategies.strategy("text")
    east, west = merger.new("east"), merger.new("west")
    west.merge(east.edit(first.encode(), 1 << 12, "east"))
    updates = east.edit(of_east.encode(), 2 << 12, "east"), west.edit(of_west.encode(), 3 << 12, "west")
    west.merge(updates[0])
    east.merge(updates[1])
    assert east.content() == west.content()
    assert east.content().decode() in right


@pytest.mark.parametrize(
    ("old", "new", "changed", "edits"),
    [
        # Without the range it could as well stand before the line like it.
        ("b\n", "b\nb\n", [(2, 2)], [Splice(2, 2, b"b\n")]),
        ("ab ab\n", "ab ab ab\n", [(5, 4)], [Splice(5, 5, b" ab")]),
        ("12345 old", "12345 new tail", [(6, 8)], [Splice(6, 9, b"new tail")]),
        ("abcdef", "abc", [(3, written.TO_THE_END)], [Splice(3, 6, b"")]),
        ("id=17 n=17 z=17", "id=17 n=18 z=17", [(8, 2)], [Splice(8, 10, b"18")]),
        # In place, more than was changed: only that.
        ("one two three four", "one 222 three four", [(0, 18)], [Splice(4, 7, b"222")]),
        # A range that cuts a character is of the whole of it.
        ("aéb", "aèb", [(2, 1)], [Splice(1, 3, "è".encode())]),
        # A hint that is wrong is none.
        ("one two", "ONE two", [(4, 3)], [Splice(0, 3, b"ONE")]),
        ("one two", "ONE two!", [], [Splice(0, 3, b"ONE"), Splice(7, 7, b"!")]),
    ],
)
def test_what_a_program_wrote_in_place_or_behind_is_the_edit(
    old: str, new: str, changed: Ranges, edits: list[Splice]
) -> None:
    assert text_edits.splices(old.encode(), new.encode(), changed) == edits


PIECES = st.sampled_from(["al", "alp", "alpha", " ", "\n", "é", "日", "😀", "ab", ".", "beta", "\r\n", "\t"])
TEXTS = st.lists(PIECES, max_size=30).map("".join)
RANGES = st.none() | st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=4)


@settings(max_examples=2000, deadline=None)
@given(TEXTS, TEXTS, TEXTS, TEXTS, RANGES)
def test_edits_make_the_new_text_and_never_cut_a_character(
    head: str, out: str, put: str, tail: str, changed: Ranges | None
) -> None:
    old, new = (head + out + tail).encode(), (head + put + tail).encode()
    edits = text_edits.splices(old, new, changed)
    assert text_edits.apply(old, edits) == new
    at = 0
    for edit in edits:
        assert at <= edit.start <= edit.end
        for piece in (old[at : edit.start], old[edit.start : edit.end], edit.data):
            piece.decode()
        at = edit.end


def test_large_texts_with_hardly_anything_in_common_take_no_longer_than_their_size() -> None:
    rng = random.Random(3)
    old = "".join(rng.choice("ab \n") for _ in range(300_000)).encode()
    new = "".join(rng.choice("ab \n") for _ in range(300_000)).encode()
    assert text_edits.apply(old, text_edits.splices(old, new)) == new


def frame_of(*made: deltas.Delta) -> frames.Frame:
    columns = deltas.Columns()
    for delta in made:
        columns.add(delta)
    stamp = clocks.tick(0, 1_700_000_000_000_000)
    return frames.seal(
        frames.pack(columns, frames.Compressor()),
        volume="desk--east",
        origin="east",
        position=positions.Position(1, 1),
        parent=positions.START,
        parent_hash=frames.NO_HASH,
        first=stamp,
        last=stamp,
    )


def test_the_captured_log_says_where_files_were_written(tmp_path: Path) -> None:
    touched = touched_paths.TouchedPaths(tmp_path / "touched", "desk--east")
    made = deltas.Delta(deltas.Op.CREATE, 2, args=(1, b"a", 0o644, 0, 0))
    assert touched.take(1, frame_of(made, deltas.write(2, 0, b"one\n"))) == {b"a": None}
    wrote = [deltas.write(2, 4, b"two\n"), deltas.write(2, 8, b"three\n"), deltas.write(2, 0, b"O")]
    assert touched.take(2, frame_of(*wrote)) == {b"a": [(4, 10), (0, 1)]}
    cut = deltas.Delta(deltas.Op.TRUNCATE, 2, 3)
    assert touched.take(3, frame_of(cut)) == {b"a": [(3, written.TO_THE_END)]}
    assert touched.take(4, frame_of(deltas.Delta(deltas.Op.ATTR, 2, args=({"mode": 0o600},)))) == {b"a": []}
    gap = deltas.Delta(deltas.Op.GAP, 2, args=("overflow", ""))
    assert touched.take(5, frame_of(deltas.write(2, 0, b"x"), gap))[b"a"] is None


def test_more_writes_than_are_kept_apart_are_anything(tmp_path: Path) -> None:
    many: written.Ranges = [(3 * number, 1) for number in range(written.RANGES_MAX + 1)]
    assert written.joined([], many) is None
    one_after_the_other: written.Ranges = [(number, 1) for number in range(written.RANGES_MAX * 2)]
    assert written.joined([], one_after_the_other) == [(0, written.RANGES_MAX * 2)]
    kept = written.Written()
    kept.add(b"a", [(0, 1)])
    kept.add(b"a", None)
    kept.add(b"a", [(0, 1)])
    assert kept.take(b"a") is None


def test_a_line_appended_that_is_like_the_last_one_is_blamed_on_who_appended_it(tmp_path: Path) -> None:
    east, west = EngineSite(tmp_path, "east"), EngineSite(tmp_path, "west")
    join(east, west)
    (east.path / "notes.txt").write_text("one\nsame\n")
    exchange(east, west)
    with (west.path / "notes.txt").open("a") as file:
        file.write("same\n")
    west.engine.changes.written.add(b"notes.txt", [(9, 5)])
    west.engine.touch([b"notes.txt"])
    west.settle(scan=False)
    exchange(east, west)
    state = east.engine.state
    document = state.document(dict(state.tree.paths())[b"notes.txt"])
    assert document is not None and document.content() == b"one\nsame\nsame\n"
    assert [(row.where, row.site) for row in document.blame()] == [("1", "-"), ("2", "-"), ("3", "west")]
