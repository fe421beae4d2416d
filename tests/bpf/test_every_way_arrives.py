"""Every way of writing, followed to a replica: it is what the source is, and the log says how exactly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.bpf.following import Following
from tests.bpf.recording import Watched

from diffkeeper.domain import frames

pytestmark = pytest.mark.bpf

# Ways that are exact, whatever the timing: their bytes and names are in the records.
EXACT = [
    "flags_of_pwritev2",
    "direct",
    "synchronous",
    "links",
    "moves",
    "odd_names",
    "deep",
    "attributes",
]
# Ways of which something is read again, at once or at barriers; with the causes that the log must give.
READ_AGAIN = {
    "allocations": {"fallocate"},
    "holes": set(),
    "copies": {"copy_file_range", "sendfile", "splice"},
    "mapped": {"mmap"},
    "mapped_and_killed": {"mmap"},
    "mapped_late": {"mmap"},
    "mapped_and_cleaned": {"mmap"},
    "cut_under_a_mapping": {"mmap"},
    "mapped_through_another": {"mmap"},
    "nameless": {"nameless-file"},
    "times": set(),
    "extended": set(),
    "appends_at_once": set(),
    "one_position_for_many": set(),
    "threads_at_one_file": set(),
    "many_name_at_once": set(),
    "large": set(),
    "directories_in_a_storm": set(),
}
ASYNC = {
    "aio_buffered": {"AIO"},
    "aio_direct": {"AIO"},
    "uring_writes": {"io_uring"},
    "uring_direct": {"io_uring"},
    "uring_content": {"io_uring"},
    "uring_names": {"unseen-names"},
    "uring_silent": {"io_uring"},
}


@pytest.fixture
def following(volume: Watched, tmp_path: Path) -> Iterator[Following]:
    following = Following(volume, tmp_path)
    yield following
    following.close()


def causes(following: Following) -> set[str]:
    return {gap.args[0] for gap in following.check().gaps}


@pytest.mark.parametrize("way", EXACT)
def test_it_arrives_exactly(following: Following, way: str) -> None:
    following.settle()
    following.sink.fidelity = frames.Fidelity.EXACT
    following.run("ways.py", way)
    assert causes(following) == set()
    assert following.sink.fidelity is frames.Fidelity.EXACT


@pytest.mark.parametrize("way", READ_AGAIN)
def test_it_arrives(following: Following, way: str) -> None:
    following.run("ways.py", way)
    assert causes(following) >= READ_AGAIN[way]


@pytest.mark.parametrize("way", ASYNC)
def test_it_arrives_though_no_call_wrote_it(following: Following, way: str) -> None:
    following.run("ways_async.py", way)
    assert causes(following) >= ASYNC[way]
    assert not following.observer.unseen_writers, "nothing has to be compared whole at each barrier"


def test_what_a_container_does_to_its_mount_arrives(following: Following, outside: Path) -> None:
    following.run("ways.py", "seen_otherwise", outside)
    following.check()
    assert (following.root / "b").read_bytes() == b"by another path"
