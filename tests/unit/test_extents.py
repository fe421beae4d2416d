"""Runs of a file against the obvious twin: a list with one address a byte."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from diffkeeper_replicator.extents import HOLE, Extents, changes

ACTS = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "write", "append", "truncate", "punch"]),
        st.integers(0, 60),
        st.integers(0, 25),
    ),
    max_size=40,
)


def done(acts: list[tuple[str, int, int]], first_address: int = 0) -> tuple[Extents, list[int]]:
    extents, address = Extents(), first_address
    twin: list[int] = []
    for act, offset, length in acts:
        if act == "append":
            offset = len(twin)
        if act in ("write", "append"):
            extents.write(offset, length, address)
            if length:
                twin += [HOLE] * (offset + length - len(twin))
                twin[offset : offset + length] = range(address, address + length)
            address += length
        elif act == "truncate":
            extents.truncate(offset)
            twin = twin[:offset] + [HOLE] * (offset - len(twin))
        else:
            extents.punch(offset, length)
            end = min(offset + length, len(twin))
            if offset < end:
                twin[offset:end] = [HOLE] * (end - offset)
    return extents, twin


def flat(extents: Extents, start: int, end: int) -> list[int]:
    found: list[int] = []
    for begin, stop, address in extents.pieces(start, end):
        assert begin == start + len(found), "pieces follow each other"
        found += [HOLE if address == HOLE else address + at for at in range(stop - begin)]
    return found


@given(ACTS, st.integers(0, 80), st.integers(0, 80))
def test_extents_hold_what_a_list_of_bytes_would(acts: list[tuple[str, int, int]], a: int, b: int) -> None:
    extents, twin = done(acts)
    assert extents.size == len(twin)
    assert flat(extents, 0, 1000) == twin
    assert flat(extents, min(a, b), max(a, b)) == twin[min(a, b) : max(a, b)]
    assert all(end <= start for end, start in zip(extents.ends, extents.starts[1:], strict=False))


@given(ACTS, ACTS)
def test_changes_are_exactly_the_places_with_other_addresses(
    common: list[tuple[str, int, int]], later: list[tuple[str, int, int]]
) -> None:
    old, before = done(common)
    new, after = done([*common, *later])
    before += [HOLE] * (len(after) - len(before))
    found: dict[int, tuple[int, int]] = {}
    for start, end, left, right in changes(old, new):
        for at in range(start, end):
            found[at] = tuple(x if x == HOLE else x + at - start for x in (left, right))  # type: ignore[assignment]
    assert found == {at: (before[at], after[at]) for at in range(len(after)) if before[at] != after[at]}
