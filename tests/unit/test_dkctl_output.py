"""Answers and exit codes, without a server."""

from __future__ import annotations

import json

import pytest

from diffkeeper.domain import errors
from dkctl import exits, output
from dkctl.output import Answer, Column, Table

ANSWER = Answer(
    "Two things were found.",
    {"things": [{"name": "a", "size": 1}, {"name": "b", "size": None}], "total": 2, "none": [], "yes": "yes"},
    tables=[
        Table(
            [Column("NAME", "name"), Column("SIZE", "size"), Column("MORE", "more", wide=True)],
            [{"name": "a", "size": 1, "more": "x"}, {"name": "longer", "size": None, "more": "y"}],
        )
    ],
    items=[{"name": "a"}, {"name": "b"}],
    names=["a", "b"],
)


def test_a_table_begins_with_the_verdict_and_aligns_its_columns() -> None:
    assert output.render(ANSWER, "table") == (
        "Two things were found.\n\nNAME     SIZE\na        1\nlonger   -\n"
    )


def test_wide_shows_the_wide_columns_too() -> None:
    assert "NAME     SIZE   MORE\na        1      x\n" in output.render(ANSWER, "wide")


def test_json_is_the_data_and_jsonl_a_line_for_each_item() -> None:
    assert json.loads(output.render(ANSWER, "json")) == ANSWER.data
    assert output.render(ANSWER, "jsonl") == '{"name": "a"}\n{"name": "b"}\n'


def test_names_are_one_a_line() -> None:
    assert output.render(ANSWER, "name") == "a\nb\n"


def test_yaml_is_block_style_with_json_scalars() -> None:
    assert output.render(ANSWER, "yaml") == (
        "things:\n"
        '  - name: "a"\n'
        "    size: 1\n"
        '  - name: "b"\n'
        "    size: null\n"
        "total: 2\n"
        "none: []\n"
        '"yes": "yes"\n'
    )


def test_a_hostile_name_cannot_speak_to_the_terminal() -> None:
    table = Table([Column("PATH", "path")], [{"path": "a\x1b[2Jb\nc"}])
    shown = output.render(Answer("v", {}, tables=[table]), "table")
    assert "\x1b" not in shown
    assert "a\\x1b[2Jb\\nc" in shown


def test_an_empty_table_leaves_only_the_verdict() -> None:
    assert output.render(Answer("None.", {}, tables=[Table([Column("A", "a")], [])]), "table") == "None.\n"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (5 * 2**20, "5.0 MiB"),
        (3 * 2**50, "3072.0 TiB"),
        (None, None),
    ],
)
def test_sizes_for_people_are_iec(count: int | None, text: str | None) -> None:
    assert output.size(count) == text


@pytest.mark.parametrize(
    ("ms", "text"), [(0.4, "0 ms"), (999, "999 ms"), (1500, "1.5 s"), (61_000, "1m01s"), (None, None)]
)
def test_durations_for_people_have_a_unit(ms: float | None, text: str | None) -> None:
    assert output.duration(ms) == text


def test_a_path_that_is_not_utf8_keeps_its_bytes() -> None:
    assert output.path_fields(b"a/b") == {"path": "a/b"}
    assert output.path_fields(b"a\xff") == {"path": "a\ufffd", "path_b64": "Yf8="}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.Refused("x"), 6),
        (errors.Fenced("x"), 6),
        (errors.Refused("x", reason="bad-name"), 2),
        (errors.NotFound("x", reason="unknown-volume"), 5),
        (errors.Unauthorised("x"), 7),
        (errors.Unreachable("x"), 4),
        (errors.TimedOut("x"), 8),
        (errors.Misconfigured("x"), 2),
        (errors.Corrupt("x"), 3),
        (errors.Transient("x"), 3),
        (errors.DiffKeeperError("x"), 3),
    ],
)
def test_each_family_of_errors_has_its_exit_code(error: errors.DiffKeeperError, code: int) -> None:
    assert exits.of_error(error) == code


def test_exit_codes_never_change_their_meaning() -> None:
    assert {one.name: one.value for one in exits.Exit} == {
        "DONE": 0,
        "ATTENTION": 1,
        "USAGE": 2,
        "FAILED": 3,
        "CANNOT_REACH": 4,
        "NOT_FOUND": 5,
        "REFUSED": 6,
        "NOT_AUTHORISED": 7,
        "TIMED_OUT": 8,
        "PARTLY": 9,
    }


def test_an_error_is_told_in_three_parts_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    output.complain(errors.Refused("it was not done", reason="volume-held", hint="dkctl status", site="east"))
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == "dkctl: it was not done\n  cause: volume-held (site=east)\n  try:   dkctl status\n"
