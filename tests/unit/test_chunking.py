"""Chunks: the fast cutter against the definition, and what content-defined cutting is for."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffkeeper.domain import chunks
from diffkeeper_replicator import chunking


def made(seed: int, size: int) -> bytes:
    """Like files: random, repeated and empty stretches."""
    rng = random.Random(seed)
    parts: list[bytes] = []
    while sum(map(len, parts)) < size:
        kind = rng.randrange(4)
        length = rng.randrange(1, 60_000)
        if kind == 0:
            parts.append(bytes(length))
        elif kind == 1:
            parts.append(rng.randbytes(50) * (length // 50 + 1))
        else:
            parts.append(rng.randbytes(length))
    return b"".join(parts)[:size]


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(0, 400_000), st.lists(st.integers(1, 90_000), max_size=8))
def test_the_fast_cutter_cuts_where_the_definition_does(seed: int, size: int, sizes: list[int]) -> None:
    data = made(seed, size)
    blocks, at = [], 0
    for length in [*sizes, size]:
        blocks.append(data[at : at + length])
        at += length
    found = [bytes(chunk) for chunk in chunking.cut(blocks)]
    assert b"".join(found) == data
    ends, at = [], 0
    for chunk in found:
        at += len(chunk)
        ends.append(at)
    assert ends == chunks.cut_points(data)


def test_long_content_is_cut_the_same_however_it_comes() -> None:
    data = made(7, 5_000_000)
    whole = [bytes(chunk) for chunk in chunking.cut([data])]
    pieces = [bytes(c) for c in chunking.cut(data[at : at + 70_001] for at in range(0, len(data), 70_001))]
    assert whole == pieces
    assert all(chunks.MIN_BYTES <= len(chunk) <= chunks.MAX_BYTES for chunk in whole[:-1])


@pytest.mark.parametrize("seed", [1, 2])
def test_an_insertion_changes_few_chunks(seed: int) -> None:
    before = random.Random(seed).randbytes(4_000_000)
    after = before[:2_000_000] + b"a few bytes" + before[2_000_000:]
    old = {bytes(chunk) for chunk in chunking.cut([before])}
    new = [bytes(chunk) for chunk in chunking.cut([after])]
    assert sum(chunk not in old for chunk in new) <= 4
    assert 16_000 < len(before) / len(old) < 64_000
