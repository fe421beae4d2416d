"""What sites make ready before a planned move: the successor's tree state, and the journal of the one that is relieved."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.followers import (
    Leader,
    Site,
    applied,
    follow,
    journalled,
    link,
    proven,
    random_writes,
    sites,
    until,
)

from diffkeeper import tree_files
from diffkeeper.domain import errors, frames, tree_increments, trees
from diffkeeper.domain.deltas import ROOT_ID, Delta, Op, write
from diffkeeper_replicator import early_journal
from diffkeeper_replicator.cursor import Role


async def _followed(east: Site, west: Site) -> Leader:
    leader = Leader(east.log)
    await west.replica.put_role(follow(link("east", 1)))
    await applied(west, await leader.base())
    return leader


def _lead(site: str, epoch: int, *before: object) -> Role:
    return Role(role="lead", epoch=epoch, leader=site, chain=(*before, link(site, epoch)))  # type: ignore[arg-type]


async def test_a_promotion_tells_only_what_became_of_the_state_that_was_prepared(tmp_path: Path) -> None:
    async with sites(tmp_path, "east", "west") as (east, west):
        leader = await _followed(east, west)
        await leader.publish(Delta(Op.CREATE, 3, args=(ROOT_ID, b"kept", 0o644, 0, 0)), write(3, 0, b"kept"))
        gone = await leader.publish(Delta(Op.CREATE, 4, args=(ROOT_ID, b"gone", 0o644, 0, 0)))
        await applied(west, gone)
        prepared = await west.replica.prepare_promote()
        assert (prepared.position, prepared.hash) == (str(gone.position), gone.hash.hex())
        await leader.publish(Delta(Op.CREATE, 5, args=(ROOT_ID, b"new", 0o600, 0, 0)), write(5, 0, b"new"))
        await leader.publish(Delta(Op.RENAME, 5, args=(ROOT_ID, b"new", ROOT_ID, b"gone", False)))
        last = await leader.publish(write(2, 4, b" and more"))
        await applied(west, last)
        await west.replica.promise(2)
        promotion = await west.replica.promote(2)

        increment = tree_files.read(Path(promotion.tree_state))
        assert isinstance(increment, tree_increments.Increment)
        assert increment.touched == {2, 4, 5}
        state = tree_files.load(Path(promotion.tree_state))
        assert (state.position, state.frame_hash) == (last.position, last.hash)
        assert [path for path, _ in state.tree.paths()] == [b"data", b"gone", b"kept"]
        for path, file_id in state.tree.paths():
            found = (west.path / path.decode()).stat()
            assert state.identities[file_id].inode == found.st_ino
            assert state.fingerprints[file_id] == (found.st_size, found.st_mtime_ns, found.st_ctime_ns)


async def test_a_promotion_without_preparation_or_after_a_restart_tells_all(tmp_path: Path) -> None:
    async with sites(tmp_path, "east", "west") as (east, west):
        leader = await _followed(east, west)
        await west.replica.prepare_promote()
        await west.restart(orderly=True)
        await applied(west, await leader.publish(write(2, 0, b"later")))
        await west.replica.promise(2)
        state = tree_files.read(Path((await west.replica.promote(2)).tree_state))
        assert isinstance(state, trees.TreeState)
        assert state.fingerprints[2][0] == 5


async def test_a_promotion_promises_also_across_a_kill(tmp_path: Path) -> None:
    async with sites(tmp_path, "east", "west") as (east, west):
        await _followed(east, west)
        promotion = await west.replica.promote(5)
        await west.restart(orderly=False)
        assert await west.replica.promote(5) == promotion
        with pytest.raises(errors.Fenced):
            await west.replica.promise(4)
        await until(lambda: west.files.promised() == 5)


async def test_who_is_relieved_follows_with_the_journal_that_was_made_ready(tmp_path: Path) -> None:
    async with sites(tmp_path, "east", "west") as (east, west):
        leader = Leader(east.log)
        await leader.base()
        writes = random_writes(3)
        for _ in range(30):
            last = await leader.publish(next(writes))
        await east.replica.put_role(_lead("east", 1))
        assert await east.replica.prepare_follow(5) == last.position
        last = await leader.publish(next(writes))
        end = await leader.publish(flags=frames.Flag.HANDOVER, successor="west")
        assert await east.replica.prepare_follow(5) == end.position
        assert east.replica.status()["state"] == "leading"

        early = east.replica._early
        assert early is not None
        successor = Leader(west.log, frames.Tip(end.position, end.hash), 2)
        parent = frames.Tip(end.position, end.hash)
        await east.replica.put_role(follow(link("east", 1), link("west", 2, parent)))
        assert east.replica.intake is early.intake
        await journalled(east, await successor.publish(write(2, 0, b"from west")))
        await until(lambda: east.replica.status()["base_complete"], lambda: east.replica.status())
        await applied(east, successor.frames[-1])
        await proven(east)


async def test_what_was_made_ready_for_nothing_ends_by_itself_and_by_a_new_reign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sites(tmp_path, "east", "west") as (east, _):
        leader = Leader(east.log)
        await leader.base()
        with pytest.raises(errors.Refused) as caught:
            await east.replica.prepare_follow(1)
        assert caught.value.reason == "not-leading"
        await east.replica.put_role(_lead("east", 1))
        monkeypatch.setattr(early_journal, "WAITS_S", 0.05)
        await east.replica.prepare_follow(1)
        await until(lambda: east.replica._early is None)
        monkeypatch.setattr(early_journal, "WAITS_S", 60.0)
        await east.replica.prepare_follow(1)
        await east.replica.put_role(_lead("east", 3, link("east", 1)))
        assert east.replica._early is None


async def test_frames_of_ones_own_that_the_chain_left_behind_are_set_aside_before_following(
    tmp_path: Path,
) -> None:
    """A move was prepared and came to nothing; then the leader died with frames that nobody else had."""
    async with sites(tmp_path, "east", "west") as (east, west):
        leader = Leader(east.log)
        parent = await leader.base()
        await east.replica.put_role(_lead("east", 1))
        tail = await leader.publish(write(2, 0, b"nobody has it"))
        assert await east.replica.prepare_follow(5) == tail.position
        await east.restart(orderly=False)

        at = frames.Tip(parent.position, parent.hash)
        successor = Leader(west.log, at, 2)
        first = await successor.publish(write(2, 0, b"goes on"))
        await east.replica.put_role(follow(link("east", 1), link("west", 2, at)))
        await journalled(east, first)
        kept = east.files.orphans / str(tail.position) / f"{tail.position}.frame"
        assert kept.read_bytes() == tail.wire
