"""States and their checkpoints against a plain replay from the first frame; the chunk store under damage."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import histories
from tests.support.made_logs import FrameChain

from diffkeeper.domain import chunks, errors, frames
from diffkeeper.domain.deltas import ROOT_ID, Delta, Op, write
from diffkeeper_replicator import checkpoints
from diffkeeper_replicator.chunk_store import ChunkStore
from diffkeeper_replicator.states import State


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 30))
def test_a_state_is_the_replay_of_the_log(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    log = histories.made_frames(seed, 60)
    state = histories.state_of(log, tmp_path_factory.mktemp("s"))
    assert histories.snapshot(state) == histories.replayed(log)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1 << 30))
def test_a_chain_of_checkpoints_gives_the_replay_of_the_log(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("c")
    store = ChunkStore(folder / "chunks")
    log = histories.made_frames(seed, 80)
    state, rng = State.empty(folder), random.Random(seed)
    for count, frame in enumerate(log, 1):
        histories.step(state, frame)
        if rng.randrange(4) == 0:
            checkpoints.write(folder, "orders", state, store)
            state = checkpoints.read(checkpoints.path_of(folder, frame.position), "orders", store, folder)
            assert histories.snapshot(state) == histories.replayed(log, count)
            assert state.tip == frames.Tip(frame.position, frame.hash)
    store.close()


def large_file(chain: FrameChain, content: bytes) -> list[Delta]:
    return [
        Delta(Op.CREATE, 2, args=(ROOT_ID, b"big", 0o644, 0, 0)),
        *(write(2, at, content[at : at + 500_000]) for at in range(0, len(content), 500_000)),
    ]


@pytest.fixture
def big(tmp_path: Path) -> tuple[ChunkStore, State, bytes, FrameChain]:
    """A file of 6 MB in a checkpoint."""
    store, chain = ChunkStore(tmp_path / "chunks"), FrameChain()
    content = random.Random(5).randbytes(6_000_000)
    state = State.empty(tmp_path)
    histories.step(state, chain.frame(large_file(chain, content)))
    checkpoints.write(tmp_path, "orders", state, store)
    path = checkpoints.path_of(tmp_path, state.position)
    return store, checkpoints.read(path, "orders", store, tmp_path), content, chain


def test_a_second_checkpoint_keeps_only_what_changed(
    tmp_path: Path, big: tuple[ChunkStore, State, bytes, FrameChain]
) -> None:
    store, state, content, chain = big
    before = store.stored_bytes
    changed = bytearray(content)
    run = []
    for at in (100, 2_000_000, 4_500_000):
        run.append(write(2, at, b"x" * 8192))
        changed[at : at + 8192] = b"x" * 8192
    histories.step(state, chain.frame(run))
    checkpoints.write(tmp_path, "orders", state, store)
    again = checkpoints.read(checkpoints.path_of(tmp_path, state.position), "orders", store, tmp_path)
    assert histories.content(again, 2) == changed
    assert store.stored_bytes - before < 12 * chunks.AVERAGE_BYTES
    store.close()


def test_a_log_that_only_grows_is_not_kept_in_crumbs(
    tmp_path: Path, big: tuple[ChunkStore, State, bytes, FrameChain]
) -> None:
    store, state, content, chain = big
    rng = random.Random(3)
    for _ in range(40):
        more = rng.randbytes(1000)
        histories.step(state, chain.frame([write(2, len(content), more)]))
        content += more
        checkpoints.write(tmp_path, "orders", state, store)
        path = checkpoints.path_of(tmp_path, state.position)
        state = checkpoints.read(path, "orders", store, tmp_path)
    assert histories.content(state, 2) == content
    assert len(list(checkpoints.hashes(path))) < len(content) / chunks.MIN_BYTES
    store.close()


def test_equal_content_is_kept_once_over_files_and_volumes(tmp_path: Path) -> None:
    store = ChunkStore(tmp_path / "chunks")
    content = random.Random(1).randbytes(1_000_000)
    for volume in ("one", "two"):
        chain, state = FrameChain(volume), State.empty(tmp_path)
        run = [
            Delta(Op.CREATE, 2, args=(ROOT_ID, b"a", 0o644, 0, 0)),
            Delta(Op.CREATE, 3, args=(ROOT_ID, b"b", 0o644, 0, 0)),
            *(write(2 + n, 0, content[:900_000]) for n in range(2)),
            *(write(2 + n, 900_000, content[900_000:]) for n in range(2)),
        ]
        histories.step(state, chain.frame(run))
        (tmp_path / volume).mkdir()
        checkpoints.write(tmp_path / volume, volume, state, store)
    assert store.stored_bytes < 1_020_000
    store.close()


def damage(tmp_path: Path, at: int = 2000) -> None:
    pack = next((tmp_path / "chunks").glob("*.pack"))
    raw = bytearray(pack.read_bytes())
    raw[at] ^= 1
    pack.write_bytes(raw)


def test_a_damaged_chunk_is_refused_and_named(
    tmp_path: Path, big: tuple[ChunkStore, State, bytes, FrameChain]
) -> None:
    store, state, _, _ = big
    damage(tmp_path)
    with pytest.raises(errors.Corrupt) as refused:
        histories.content(state, 2)
    assert refused.value.reason == "chunk-damaged"
    assert refused.value.facts["chunk"] == state.contents.table.refs[0].hash.hex()
    store.close()


def test_a_damaged_chunk_is_asked_for_elsewhere_and_kept(
    tmp_path: Path, big: tuple[ChunkStore, State, bytes, FrameChain]
) -> None:
    store, state, content, _ = big
    damage(tmp_path)
    asked = []

    def elsewhere(ref: chunks.Ref) -> bytes:
        asked.append(ref)
        return content[: ref.size]

    store.elsewhere = elsewhere
    assert histories.content(state, 2) == content
    first = state.contents.table.refs[0]
    assert asked == [first]
    assert store.look(first) == content[: first.size], "it is good here now"
    store.close()


def test_wrong_bytes_from_elsewhere_are_not_served(
    tmp_path: Path, big: tuple[ChunkStore, State, bytes, FrameChain]
) -> None:
    store, state, _, _ = big
    damage(tmp_path)
    store.elsewhere = lambda ref: bytes(ref.size)
    with pytest.raises(errors.Corrupt):
        histories.content(state, 2)
    store.close()


def test_what_a_crash_left_beyond_the_index_is_cut_off(tmp_path: Path) -> None:
    store = ChunkStore(tmp_path)
    kept = store.put(b"kept" * 1000)
    store.flush()
    store.put(random.Random(2).randbytes(5000))  # never flushed: the index does not have it
    store._index.rollback()
    store._index.close()
    with next(tmp_path.glob("*.pack")).open("ab") as pack:
        pack.write(b"DKC1 torn")
    again = ChunkStore(tmp_path)
    assert again.get(kept) == b"kept" * 1000
    more = again.put(b"more" * 1000)
    again.flush()
    assert again.get(more) == b"more" * 1000
    again.close()
    assert sum(path.stat().st_size for path in tmp_path.glob("*.pack")) < 1000


@pytest.mark.parametrize("loss", ["gone", "garbage"])
def test_the_index_is_made_again_from_the_packs(tmp_path: Path, loss: str) -> None:
    store = ChunkStore(tmp_path)
    refs = [store.put(random.Random(n).randbytes(20_000)) for n in range(20)]
    store.close()
    for path in tmp_path.glob("index.db*"):
        path.unlink()
    if loss == "garbage":
        (tmp_path / "index.db").write_bytes(b"no database" * 1000)
    again = ChunkStore(tmp_path)
    assert [again.get(ref) for ref in refs] == [random.Random(n).randbytes(20_000) for n in range(20)]
    again.close()


def test_dropping_frees_the_disk_and_keeps_what_lives(tmp_path: Path) -> None:
    store = ChunkStore(tmp_path, pack_bytes=200_000)
    refs = [store.put(random.Random(n).randbytes(20_000)) for n in range(60)]
    store.flush()
    live = [ref for n, ref in enumerate(refs) if n % 5 == 0]
    would = store.would_free([ref.hash for ref in live])
    freed = store.drop_all_but([ref.hash for ref in live])
    assert freed.chunks == would.chunks == 48
    assert freed.bytes > 0.9 * would.bytes
    assert all(len(store.get(ref)) == 20_000 for ref in live)
    assert all(store.look(ref) is None for ref in refs if ref not in live)
    store.close()
    again = ChunkStore(tmp_path)
    assert all(again.look(ref) is not None for ref in live)
    again.close()


def test_a_checkpoint_with_a_flipped_bit_is_refused(
    tmp_path: Path, big: tuple[ChunkStore, State, bytes, FrameChain]
) -> None:
    store, state, _, _ = big
    path = checkpoints.path_of(tmp_path, state.position)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(errors.Corrupt):
        checkpoints.read(path, "orders", store, tmp_path)
    store.close()
