"""What every merge strategy must do. A new one is given a ``Kind`` that says how its files are edited."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from tests.support.merge_histories import History
from tests.support.merge_kinds import KINDS, Kind

from diffkeeper.domain import errors
from diffkeeper_replicator.merging import strategies
from diffkeeper_replicator.merging.merger import Document

by_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.strategy)


def history(kind: Kind, seed_of_history: int, sites: int) -> History:
    return History(kind, strategies.strategy(kind.strategy), seed_of_history, sites)


# Histories for each strategy in parts, so that no test takes long on a slow machine: 10,900 in all.
PART = 100
PARTS = {"json": 7, "sqlite": 2}
BY_PART = [(kind, part) for kind in KINDS for part in range(PARTS.get(kind.strategy, 20))]


@pytest.mark.parametrize(("kind", "part"), BY_PART, ids=[f"{k.strategy}-{part}" for k, part in BY_PART])
def test_any_history_ends_with_the_same_bytes_everywhere_and_no_edit_lost(kind: Kind, part: int) -> None:
    @seed(part)
    @settings(
        max_examples=PART,
        phases=[Phase.generate, Phase.shrink],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 2**32), st.integers(3, 5), st.integers(4, 24))
    def law(seed_of_history: int, sites: int, steps: int) -> None:
        made = history(kind, seed_of_history, sites)
        made.run(steps)
        made.deliver_all()
        _expect_converged(made)
        _expect_all_kept(made)
        _expect_nothing_changes_when_heard_again(made)
        _expect_compaction_is_not_seen(made)
        # And on from there.
        made.run(steps // 3)
        made.deliver_all()
        _expect_converged(made)
        _expect_all_kept(made)

    law()


def _expect_converged(made: History) -> None:
    assert len(made.contents()) == 1, [site.document.content() for site in made.sites]


def _expect_all_kept(made: History) -> None:
    if made.kind.items is None:
        return
    added = frozenset[object]().union(*(edited.added for edited in made.edits))
    removed = frozenset[object]().union(*(edited.removed for edited in made.edits))
    found = made.kind.items(made.sites[0].document.content())
    assert added - removed <= found
    assert found <= (added if made.kind.edits_beat_deletes else added - removed)


def _expect_nothing_changes_when_heard_again(made: History) -> None:
    before = made.contents()
    states = [site.document.state() for site in made.sites]
    updates = [update for site in made.sites for update in site.sent]
    for site in made.sites:
        for one in [*reversed(states), *reversed(updates)]:
            site.document.merge(one)
    merger = strategies.strategy(made.kind.strategy)
    newcomer = merger.new("newcomer")
    for one in reversed(updates):
        newcomer.merge(one)
    assert made.contents() | {newcomer.content(), merger.load(states[0], "east").content()} == before


def _expect_compaction_is_not_seen(made: History) -> None:
    before = made.contents()
    old = [site.document.state() for site in made.sites]
    made.compact()
    assert made.contents() == before
    for site, state in zip(made.sites, reversed(old), strict=True):
        site.document.merge(state)
    for update in made.sites[-1].sent:
        made.sites[0].document.merge(update)
    assert made.contents() == before


@by_kind
def test_an_edit_is_what_the_file_then_holds(kind: Kind) -> None:
    if kind.strategy == "set":
        pytest.skip("a set puts its lines in an order of its own")
    rng = random.Random(1)
    document = strategies.strategy(kind.strategy).new("east")
    content = kind.first
    for number in range(1, 40):
        content = kind.edit(rng, content, number).content
        document.edit(content, number << 12, "east")
        assert document.content() == content


@by_kind
def test_an_edit_that_changes_nothing_sends_nothing(kind: Kind) -> None:
    document = strategies.strategy(kind.strategy).new("east")
    content = kind.edit(random.Random(1), kind.first, 1).content
    assert document.edit(content, 1 << 12, "east")
    assert document.edit(content, 2 << 12, "east") == b""


@by_kind
def test_garbage_is_corrupt_and_leaves_the_document_alone(kind: Kind) -> None:
    made = history(kind, 5, 3)
    made.run(20)
    made.deliver_all()
    rng = random.Random(2)
    sound = made.contents()
    documents = [site.document for site in made.sites]
    messages = [made.sites[0].sent[-1], documents[0].state(), *made.sites[1].sent[-1:]]
    refused = 0
    for message in messages:
        for _ in range(150):
            refused += _is_refused(documents[0], _spoiled(rng, message))
        for end in range(0, len(message), max(1, len(message) // 40)):
            assert _is_refused(documents[1], message[:end])
    assert refused > 200
    # A spoiled update may still be a sound one of another time; what never heard one is as it was.
    assert {documents[1].content(), documents[2].content()} == sound


def _spoiled(rng: random.Random, message: bytes) -> bytes:
    spoiled = bytearray(message)
    for _ in range(rng.randint(1, 4)):
        spoiled[rng.randrange(len(spoiled))] = rng.randrange(256)
    return bytes(spoiled)


def _is_refused(document: Document, message: bytes) -> bool:
    try:
        document.merge(message)
    except (errors.Corrupt, errors.Refused):
        return True
    document.content()
    document.state()
    return False


@by_kind
def test_content_that_does_not_fit_is_refused_and_the_document_goes_on(kind: Kind) -> None:
    if kind.garbage is None:
        pytest.skip("this strategy takes any bytes")
    document = strategies.strategy(kind.strategy).new("east")
    content = kind.edit(random.Random(1), kind.first, 1).content
    document.edit(content, 1 << 12, "east")
    with pytest.raises(errors.Refused) as refused:
        document.edit(kind.garbage, 2 << 12, "east")
    assert refused.value.reason
    assert document.content() == content
    assert document.edit(kind.edit(random.Random(2), content, 2).content, 3 << 12, "east")


@by_kind
def test_a_document_of_one_strategy_takes_nothing_of_another(kind: Kind) -> None:
    other = KINDS[(KINDS.index(kind) + 1) % len(KINDS)]
    update = (
        strategies.strategy(other.strategy)
        .new("west")
        .edit(other.edit(random.Random(1), other.first, 1).content, 1 << 12, "west")
    )
    with pytest.raises(errors.Corrupt):
        strategies.strategy(kind.strategy).new("east").merge(update)


@by_kind
def test_blame_names_the_site_and_time_of_each_edit_that_is_left(kind: Kind) -> None:
    merger = strategies.strategy(kind.strategy)
    east, west = merger.new("east"), merger.new("west")
    first = kind.edit(random.Random(1), kind.first, 1).content
    west.merge(east.edit(first, 1 << 12, "east"))
    edits = (kind.edit(random.Random(number), first, 2) for number in range(100))
    adding = next(edited for edited in edits if edited.added or kind.strategy == "opaque")
    east.merge(west.edit(adding.content, 2 << 12, "west"))
    told = {(blame.site, blame.stamp) for blame in east.blame()}
    assert ("west", 2 << 12) in told
    assert told <= {("east", 1 << 12), ("west", 2 << 12)}
    assert east.blame() == west.blame()


@by_kind
def test_the_state_after_compaction_is_at_most_three_times_the_content(kind: Kind) -> None:
    if kind.strategy == "counter":
        pytest.skip("a few bytes of content: the state is some bytes for each site")
    made = history(kind, 9, 3)
    for _ in range(300):
        made.edit()
        made.deliver_all()
    made.compact()
    content = made.sites[0].document.content()
    # What a state of nothing takes, with the names of the sites.
    fixed = 600
    assert len(made.sites[0].document.state()) <= 3 * len(content) + fixed
