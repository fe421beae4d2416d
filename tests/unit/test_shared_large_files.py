"""Files too large to be merged are shared by reference: as a whole, block by block, and nothing of them is lost."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from tests.support.shared_sites import EngineSite, exchange, join

from diffkeeper.domain import clocks, errors, shared_ops
from diffkeeper_replicator.merging import blocks, rules, strategies
from diffkeeper_replicator.merging_service import kinds, reports
from diffkeeper_replicator.merging_service.large_files import FILE_MAX_BYTES

Pair = tuple[EngineSite, EngineSite]
SIZE = FILE_MAX_BYTES + 1234


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    east, west = EngineSite(tmp_path, "east"), EngineSite(tmp_path, "west")
    join(east, west)
    return east, west


def put(path: Path, content: bytes) -> None:
    """Written a while ago: nobody is in the middle of it."""
    path.write_bytes(content)
    os.utime(path, ns=(10**18, 10**18))


def made(seed: int, size: int = SIZE) -> bytes:
    return random.Random(seed).randbytes(size)


def forget(*sites: EngineSite) -> None:
    for _ in range(3):
        for site in sites:
            site.engine.say_seen()
        exchange(*sites)
    for site in sites:
        site.engine.fold()


def kept_blocks(site: EngineSite) -> int:
    return len(list((site.base / f"{site.name}-own" / "blocks").iterdir()))


def test_a_large_file_stands_at_the_other_site_and_only_changed_blocks_travel(pair: Pair) -> None:
    east, west = pair
    content = bytearray(made(1))
    put(east.path / "disk.img", bytes(content))
    exchange(east, west)
    assert (west.path / "disk.img").read_bytes() == content
    assert east.engine.status()["by_reference"] == 1 and not east.engine.left_out
    sent = sum(map(len, west.log))
    content[100:110] = b"0123456789"
    put(west.path / "disk.img", bytes(content))
    exchange(east, west)
    assert (east.path / "disk.img").read_bytes() == content
    assert sum(map(len, west.log)) - sent < blocks.BLOCK_BYTES + 10_000
    assert set(os.listdir(east.path)) == set(os.listdir(west.path)) == {"disk.img"}
    forget(east, west)
    assert kept_blocks(east) == kept_blocks(west) == -(-SIZE // blocks.BLOCK_BYTES)


def test_two_versions_of_a_large_file_are_both_kept(pair: Pair) -> None:
    east, west = pair
    put(east.path / "disk.img", made(1))
    exchange(east, west)
    of_east, of_west = made(2), made(3)
    put(east.path / "disk.img", of_east)
    east.settle()
    put(west.path / "disk.img", of_west)
    west.settle()
    exchange(east, west)
    for site in pair:
        found = sorted(site.path.iterdir())
        assert {path.read_bytes() for path in found} == {of_east, of_west}
        assert (site.path / "disk.img").read_bytes() == of_west
        told = [one for one in reports.conflicts(site.engine) if one["resolved"] is None]
        assert [one["path"] for one in told] == ["disk.img"]
    (conflict,) = reports.conflicts(east.engine)
    reports.resolve(east.engine, conflict["id"], "ours")
    exchange(east, west)
    assert [path.read_bytes() for path in west.path.iterdir()] == [of_east]
    forget(east, west)
    assert kept_blocks(west) == -(-SIZE // blocks.BLOCK_BYTES)


def test_a_file_that_grows_too_large_and_shrinks_again_goes_on(pair: Pair) -> None:
    east, west = pair
    put(east.path / "a.txt", b"small\n")
    exchange(east, west)
    large = b"a line of text\n" * (SIZE // 15)
    put(east.path / "a.txt", large)
    exchange(east, west)
    assert (west.path / "a.txt").read_bytes() == large
    put(west.path / "a.txt", b"small again\n")
    exchange(east, west)
    assert east.tree() == west.tree() == {"a.txt": "small again\n"}
    kept = west.engine.store.document(dict(west.engine.state.tree.paths())[b"a.txt"])
    assert kept is not None and kinds.parse(kept.merger).strategy == "text"
    forget(east, west)
    assert kept_blocks(east) == kept_blocks(west) == 0


def test_a_rule_that_cannot_be_followed_for_its_size_is_told(pair: Pair) -> None:
    east, west = pair
    (east.path / "diffkeeper.yaml").write_text("merge:\n  '*.txt': text\n")
    exchange(east, west)
    put(east.path / "big.txt", b"x" * SIZE)
    exchange(east, west)
    assert (west.path / "big.txt").stat().st_size == SIZE
    (told,) = east.engine.status()["not_as_ruled"]
    assert told["path"] == "big.txt" and "too many to merge as text" in told["why"]


def test_a_site_killed_between_blocks_goes_on(pair: Pair) -> None:
    east, west = pair
    content = made(1)
    put(east.path / "disk.img", content)
    east.settle()
    # Half of the records have come when the other site dies.
    half = len(east.log) // 2
    west.engine.take(shared_ops.decode(packed, "east") for packed in east.log[:half])
    west.engine.store.commit()
    west.engine.fold()
    west.restart()
    exchange(east, west)
    assert (west.path / "disk.img").read_bytes() == content


def test_what_a_program_writes_to_a_large_file_that_was_displaced_is_kept(pair: Pair) -> None:
    east, west = pair
    put(east.path / "disk.img", made(1))
    exchange(east, west)
    of_east = made(2)
    with (west.path / "disk.img").open("r+b") as held:
        put(east.path / "disk.img", of_east)
        exchange(east, west)
        held.write(b"held")
        held.flush()
        west.engine.look_at_displaced()
        exchange(east, west)
    west.engine.look_at_displaced()
    exchange(east, west)
    for site in pair:
        found = {path.read_bytes() for path in site.path.iterdir()}
        assert found == {of_east, b"held" + made(1)[4:]}


def test_a_damaged_block_is_told_and_never_written(pair: Pair) -> None:
    east, west = pair
    put(east.path / "disk.img", made(1))
    east.settle()
    west.hear(east)
    victim = next((west.base / "west-own" / "blocks").iterdir())
    victim.write_bytes(b"rot")
    with pytest.raises(errors.Corrupt) as refused:
        west.settle()
    assert refused.value.reason == "block-damaged"
    assert not (west.path / "disk.img").exists()


def test_blocks_and_lists_of_them_that_cannot_be_are_refused() -> None:
    stamp = clocks.tick(0, 1_700_000_000_000_000)
    forged = shared_ops.Record(shared_ops.Dot("west", 1), stamp, shared_ops.Block(b"x" * 32, b"data"))
    with pytest.raises(errors.Corrupt):
        shared_ops.decode(shared_ops.encode(forged), "west")
    merger = strategies.strategy("blocks")
    for content in (
        b"garbage",
        blocks.manifest(5, []),
        blocks.manifest(0, []),
        blocks.manifest(5, [b"short"]),
    ):
        with pytest.raises(errors.Corrupt):
            merger.new("east").edit(bytes(content), stamp, "east")
    with pytest.raises(errors.Misconfigured):
        rules.Rules.of({"*": "blocks"})
