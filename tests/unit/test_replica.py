"""A replica over a memory event log: following, promises, promotion, handover, chains, and every way to
refuse.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import msgspec
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
from tests.support.made_logs import FrameChain

from diffkeeper.domain import errors, frames, positions, trees, volumes
from diffkeeper.domain.deltas import ROOT_ID, Delta, Op, write
from diffkeeper.log import event_log
from diffkeeper_replicator import orphan_branches, reports
from diffkeeper_replicator.cursor import Reclaim, Role


async def _followed(east: Site, west: Site) -> Leader:
    leader = Leader(east.log)
    await west.replica.put_role(follow(link("east", 1)))
    await applied(west, await leader.base())
    return leader


async def _error_of(site: Site, reason: str) -> dict[str, object]:
    await until(
        lambda: (site.replica.status()["error"] or {}).get("reason") == reason,
        lambda: (reason, site.replica.status()),
    )
    found = site.replica.status()
    assert isinstance(found, dict)
    return found


async def test_a_follower_applies_what_the_leader_writes_and_equals_the_log(tmp_path: Path) -> None:
    async with sites(tmp_path, "east", "west") as (east, west):
        leader = await _followed(east, west)
        writes = random_writes(1)
        for _ in range(50):
            last = await leader.publish(*(next(writes) for _ in range(5)))
        await applied(west, last)
        status = west.replica.status()
        assert status["state"] == "following"
        assert status["journalled"] == status["applied"] == status["seen"] == str(last.position)
        assert status["lag"] == {"frames": 0, "bytes": 0, "ms": 0}
        proof = await reports.prove(west.replica)
        assert proof["ok"] is True
        assert proof["chain"]["frames"] == 51
        rows = await reports.log_rows(west.replica, None, 3)
        assert [row["position"] for row in rows] == ["1.49", "1.50", "1.51"]
        assert (await reports.log_rows(west.replica, positions.START, 1))[0]["flags"] == ["base", "base_end"]


async def test_confirmations_name_what_is_on_disk_and_are_said_again(tmp_path: Path) -> None:
    async with sites(tmp_path, "east", "west") as (east, west):
        heard: list[event_log.Confirmation] = []

        async def listen() -> None:
            async for confirmation in east.log.confirmations(volumes.Origin("orders", "east")):
                heard.append(confirmation)

        listening = asyncio.create_task(listen())
        leader = await _followed(east, west)
        last = await leader.publish(write(2, 0, b"x"))
        await until(lambda: sum(one.position == last.position for one in heard) >= 2)
        assert heard[-1].frame_hash == last.hash
        assert heard[-1].site == "west"
        listening.cancel()


@pytest.mark.parametrize("orderly", [True, False])
async def test_a_restart_goes_on_where_it_was(tmp_path: Path, orderly: bool) -> None:
    async with sites(tmp_path, "east", "west") as (east, west):
        leader = await _followed(east, west)
        writes = random_writes(2)
        for _ in range(5):
            for _ in range(10):
                last = await leader.publish(next(writes), next(writes))
            await west.restart(orderly=orderly)
        await leader.publish(Delta(Op.RENAME, 2, args=(ROOT_ID, b"data", ROOT_ID, b"moved", False)))
        last = await leader.publish(next(writes))
        await applied(west, last)
        assert west.replica.status()["base_complete"]
        await proven(west)
        assert os.listdir(west.path) == ["moved"]


async def test_after_an_orderly_end_nothing_is_reconciled(tmp_path: Path) -> None:
    async with sites(tmp_path, "east", "west") as (east, west):
        leader = await _followed(east, west)
        (west.path / "stranger").write_bytes(b"would be removed by reconcile")
        await west.restart(orderly=True)
        await applied(west, await leader.publish(write(2, 0, b"x")))
        assert (west.path / "stranger").exists()
        await west.restart(orderly=False)
        await applied(west, await leader.publish(write(2, 0, b"y")))
        assert not (west.path / "stranger").exists()


async def test_promote_gives_the_directory_away_with_a_state_that_names_its_files(tmp_path: Path) -> None:
    async with sites(tmp_path, "east", "west") as (east, west):
        leader = await _followed(east, west)
        last = await leader.publish(write(2, 4, b" and more"))
        assert (await west.replica.promise(2)).position >= leader.frames[0].position
        caught = await west.replica.catch_up(None, 5)
        assert (caught["position"], caught["hash"]) == (str(last.position), last.hash.hex())
        promotion = await west.replica.promote(2)
        assert (promotion.position, promotion.hash) == (str(last.position), last.hash.hex())
        assert promotion.path == str(west.path)
        assert promotion.stamp == last.header.last
        assert (west.path / "data").read_bytes() == b"base and more"
        state = trees.decode(Path(promotion.tree_state).read_bytes())
        assert state.position == last.position
        assert state.identities[2].inode == os.stat(west.path / "data").st_ino
        assert state.fingerprints[2][0] == 13
        assert await west.replica.promote(2) == promotion
        await west.restart(orderly=False)
        assert await west.replica.promote(2) == promotion
        assert west.replica.status()["state"] == "leading"
        assert (await west.replica.catch_up(last.position, 5))["position"] == str(last.position)


async def test_a_replica_without_the_whole_base_is_not_promoted_and_goes_on_following(tmp_path: Path) -> None:
    async with sites(tmp_path, "east", "west") as (east, west):
        leader = Leader(east.log)
        await west.replica.put_role(follow(link("east", 1)))
        await applied(west, await leader.publish(flags=frames.Flag.BASE))
        with pytest.raises(errors.Refused) as caught:
            await west.replica.promote(2)
        assert caught.value.reason == "base-incomplete"
        assert west.replica.status()["role"] == "follow"


async def test_after_a_promise_nothing_older_is_taken_or_confirmed_but_a_catch_up_may_ask(
    tmp_path: Path,
) -> None:
    async with sites(tmp_path, "east", "west") as (east, west):
        leader = await _followed(east, west)
        await west.replica.promise(2)
        heard: list[event_log.Confirmation] = []

        async def listen() -> None:
            async for confirmation in east.log.confirmations(volumes.Origin("orders", "east")):
                heard.append(confirmation)

        listening = asyncio.create_task(listen())
        late = await leader.publish(write(2, 0, b"late"))
        await asyncio.sleep(1.3)  # longer than confirmations are repeated
        assert west.replica.status()["journalled"] == str(leader.frames[0].position)
        await west.restart(orderly=False)
        await asyncio.sleep(1.3)
        assert west.replica.status()["journalled"] == str(leader.frames[0].position)
        caught = await west.replica.catch_up(None, 5)
        assert caught["position"] == str(late.position)
        await leader.publish(write(2, 0, b"later"))
        await asyncio.sleep(1.3)
        assert (await west.replica.promote(2)).position == str(late.position)
        assert heard == []
        listening.cancel()
        with pytest.raises(errors.Fenced):
            await west.replica.promise(1)
        with pytest.raises(errors.Fenced):
            await west.replica.put_role(follow(link("east", 1)))


async def test_a_site_that_promised_before_it_had_the_end_of_the_old_reign_takes_it_once_the_chain_names_it(
    tmp_path: Path,
) -> None:
    async with sites(tmp_path, "east", "west", "north") as (east, west, north):
        leader = await _followed(east, west)
        await north.replica.put_role(follow(link("east", 1)))
        await applied(north, leader.frames[0])
        # Both promise; only the one that is asked for a catch-up gets what comes late.
        await west.replica.promise(2)
        await north.replica.promise(2)
        late = await leader.publish(write(2, 0, b"late"))
        beyond = await leader.publish(write(2, 0, b"beyond"))
        await west.replica.catch_up(late.position, 5)
        tip = frames.Tip(late.position, late.hash)
        assert north.replica.status()["journalled"] == str(leader.frames[0].position)

        await north.replica.put_role(follow(link("east", 1), link("west", 2, tip)))
        reign = Leader(west.log, tip, epoch=2)
        await applied(north, await reign.publish(write(2, 0, b"anew")))
        assert (north.path / "data").read_bytes().startswith(b"anew")
        assert beyond.position > late.position, "what the chain left behind was there to be taken"
        await proven(north)


@pytest.mark.parametrize("told", [True, False])
async def test_a_planned_handover_is_followed_by_the_old_leader_and_by_a_third_site(
    tmp_path: Path, told: bool
) -> None:
    async with sites(tmp_path, "east", "west", "north") as (east, west, north):
        await north.replica.put_role(follow(link("east", 1)))
        leader = await _followed(east, west)
        handover = await leader.publish(write(2, 0, b"last"), flags=frames.Flag.HANDOVER, successor="west")
        tip = frames.Tip(handover.position, handover.hash)
        await west.replica.promise(2)
        await west.replica.catch_up(handover.position, 5)
        promotion = await west.replica.promote(2)
        # The old leader's directory, as its agent hands it over.
        east.path.mkdir(parents=True)
        (east.path / "data").write_bytes(b"last")
        inode, root = os.stat(east.path / "data"), os.stat(east.path)
        tree = trees.Tree()
        tree.apply(Delta(Op.CREATE, 2, args=(ROOT_ID, b"data", 0o644, 0, 0)))
        identities = {
            ROOT_ID: trees.Identity(root.st_dev, root.st_ino, 0),
            2: trees.Identity(inode.st_dev, inode.st_ino, 0),
        }
        state = trees.TreeState("orders", tip.position, tip.hash, handover.header.last, tree, identities)
        given = tmp_path / "handed-over.state"
        given.write_bytes(trees.encode(state))
        role = follow(
            link("east", 1),
            link("west", 2, tip if told else None),
            path=str(east.path),
            tree_state=str(given),
        )
        await east.replica.put_role(role)
        await north.replica.put_role(follow(link("east", 1), link("west", 2, tip if told else None)))
        reign = Leader(
            west.log, frames.Tip(positions.parse(promotion.position), bytes.fromhex(promotion.hash)), 2
        )
        for text in (b"new", b"newer"):
            last = await reign.publish(write(2, 0, text))
        await applied(east, last)
        await applied(north, last)
        for site in (east, north):
            assert (site.path / "data").read_bytes() == b"newer"
            await proven(site)
        # The same again changes nothing; neither does a restart.
        await east.replica.put_role(role)
        await east.restart(orderly=False)
        await applied(east, await reign.publish(write(2, 0, b"newest")))
        assert (east.path / "data").read_bytes() == b"newest"
        assert east.replica.status()["state"] == "following"


async def test_a_fence_in_the_old_stream_is_passed_by_when_the_site_leads_again(tmp_path: Path) -> None:
    async with sites(tmp_path, "east", "west") as (east, west):
        leader = await _followed(east, west)
        tip = leader.chain.tip
        await leader.append(
            FrameChain(origin="east", tip=frames.Tip(positions.Position(2, 1), tip.hash)).frame(
                flags=frames.Flag.FENCE
            )
        )
        again = Leader(east.log, tip, 3)
        last = await again.publish(write(2, 0, b"back"))
        await west.replica.put_role(follow(link("east", 1), link("east", 3, tip)))
        await applied(west, last)
        assert (west.path / "data").read_bytes() == b"back"


async def test_a_tail_beyond_a_parent_that_nobody_told_stalls_and_a_rebuild_sets_it_aside(
    tmp_path: Path,
) -> None:
    async with sites(tmp_path, "east", "west", "north") as (east, west, north):
        leader = await _followed(east, west)
        common = leader.chain.tip
        await north.replica.put_role(follow(link("east", 1)))
        for text in (b"tail one", b"tail two"):
            await applied(north, await leader.publish(write(2, 0, text)))
        reign = Leader(west.log, common, 2)
        last = await reign.publish(write(2, 0, b"main"))
        await north.replica.put_role(follow(link("east", 1), link("west", 2)))
        status = await _error_of(north, "tail-beyond-parent")
        assert status["state"] == "stalled"
        assert (north.path / "data").read_bytes() == b"tail two"
        await north.restart(orderly=False)
        await _error_of(north, "tail-beyond-parent")
        await north.replica.rebuild()
        await applied(north, last)
        assert (north.path / "data").read_bytes() == b"main"
        await proven(north)
        tail = sorted(path.name for path in (north.files.orphans / "1.2").iterdir())
        assert tail == ["1.2.frame", "1.3.frame"]
        (kept,) = north.path.parent.glob("orders.kept-*")
        assert (kept / "data").read_bytes() == b"tail two"


@pytest.mark.parametrize("end", ["running", "orderly", "killed"])
async def test_a_tail_beyond_the_parent_becomes_a_branch_and_the_directory_goes_back(
    tmp_path: Path, end: str
) -> None:
    async with sites(tmp_path, "east", "west", "north") as (east, west, north):
        leader = await _followed(east, west)
        common = leader.chain.tip
        await north.replica.put_role(follow(link("east", 1)))
        await applied(north, leader.frames[-1])
        await applied(north, await leader.publish(write(2, 0, b"tail one")))
        create = Delta(Op.CREATE, 3, args=(ROOT_ID, b"more", 0o644, 0, 0))
        await applied(north, await leader.publish(write(2, 0, b"tail two"), create, write(3, 0, b"more")))
        reign = Leader(west.log, common, 2)
        # The new leader gives the id anew.
        other = Delta(Op.CREATE, 3, args=(ROOT_ID, b"other", 0o644, 0, 0))
        last = await reign.publish(write(2, 0, b"main"), other, write(3, 0, b"new"))
        inode = (north.path / "data").stat().st_ino
        if end != "running":
            await north.restart(orderly=end == "orderly")
        await north.replica.put_role(follow(link("east", 1), link("west", 2, common)))
        await applied(north, last)
        found = {path.name: path.read_bytes() for path in north.path.iterdir()}
        assert found == {"data": b"main", "other": b"new"}
        if end != "killed":  # then what was made since the last checkpoint is made again
            assert (north.path / "data").stat().st_ino == inode, "nothing was copied"
        await proven(north)
        (branch,) = orphan_branches.find_all(north.files.orphans)
        assert (branch.note.parent, branch.note.end, branch.note.frames) == ("1.1", "1.3", 2)
        kept = {(c.path, c.kind): b"".join(map(branch.read, c.ranges)) for c in branch.changes()}
        assert kept == {(b"data", "changed"): b"tail two", (b"more", "added"): b"more"}
        assert [frame.hash for frame in branch.tail()] == [frame.hash for frame in leader.frames[1:]]


@pytest.mark.parametrize("end", ["running", "killed"])
async def test_the_directory_of_a_fenced_leader_is_taken_back_in_place(tmp_path: Path, end: str) -> None:
    async with sites(tmp_path, "east", "west") as (east, west):
        leader = await _followed(east, west)
        common = leader.chain.tip
        # What its program wrote: captured in part, and in part not.
        data = tmp_path / "data"
        data.mkdir()
        (data / "data").write_bytes(b"tail")
        (data / "lost").write_bytes(b"never captured")
        await leader.publish(write(2, 0, b"tail"))
        await west.replica.put_role(follow(link("east", 1)))
        reign = Leader(west.log, common, 2)
        first = await reign.publish(write(2, 4, b" main"))
        inode = (data / "data").stat().st_ino
        chain = (link("east", 1), link("west", 2, common))
        await east.replica.put_role(follow(*chain, path=str(data), reclaim=Reclaim(1)))
        await applied(east, first)
        if end == "killed":
            await east.restart(orderly=False)
        last = await reign.publish(write(2, 9, b" on"))
        await applied(east, last)
        assert {path.name: path.read_bytes() for path in data.iterdir()} == {"data": b"base main on"}
        assert (data / "data").stat().st_ino == inode
        await proven(east)
        (branch,) = orphan_branches.find_all(east.files.orphans)
        assert (branch.note.name, branch.note.frames) == ("east-1-1", 1)
        kept = {(c.path, c.kind): b"".join(map(branch.read, c.ranges)) for c in branch.changes()}
        assert kept == {(b"data", "changed"): b"tail", (b"lost", "added"): b"never captured"}


@pytest.mark.parametrize("why", ["out of reach", "damaged", "broken off"])
async def test_where_undo_does_not_lead_back_the_directory_is_compared_with_the_journal(
    tmp_path: Path, why: str
) -> None:
    async with sites(tmp_path, "east", "west", "north") as (east, west, north):
        leader = await _followed(east, west)
        common = leader.chain.tip
        await north.replica.put_role(follow(link("east", 1)))
        await applied(north, leader.frames[-1])
        await applied(north, await leader.publish(write(2, 0, b"tail one")))
        await north.replica.close()
        (segment,) = (north.files.directory / "undo").glob("*.undo")
        if why == "out of reach":
            segment.unlink()
        elif why == "damaged":
            segment.write_bytes(segment.read_bytes()[:-200] + bytes(200))
        else:
            note = north.files.note()
            assert note is not None
            north.files.write_note(msgspec.structs.replace(note, rewinding=str(common.position)))
        reign = Leader(west.log, common, 2)
        last = await reign.publish(write(2, 0, b"main"))
        await north.restart(orderly=False)
        await north.replica.put_role(follow(link("east", 1), link("west", 2, common)))
        await applied(north, last)
        assert {path.name: path.read_bytes() for path in north.path.iterdir()} == {"data": b"main"}
        await proven(north)
        (branch,) = orphan_branches.find_all(north.files.orphans)
        (change,) = branch.changes()
        assert b"".join(map(branch.read, change.ranges)) == b"tail one"


async def test_a_directory_that_cannot_be_taken_back_says_so_and_is_left_alone(tmp_path: Path) -> None:
    async with sites(tmp_path, "east", "west") as (east, west):
        leader = await _followed(east, west)
        common = leader.chain.tip
        data = tmp_path / "data"
        data.write_bytes(b"no directory at all")
        reign = Leader(west.log, common, 2)
        await reign.publish(write(2, 0, b"main"))
        chain = (link("east", 1), link("west", 2, common))
        await east.replica.put_role(follow(*chain, path=str(data), reclaim=Reclaim(1)))
        status = await _error_of(east, "not-reclaimed")
        assert status["state"] == "failed"
        assert data.read_bytes() == b"no directory at all"


async def test_a_forged_frame_a_fork_and_a_gap_stall_the_replica_and_are_not_applied(tmp_path: Path) -> None:
    async with sites(tmp_path, "east", "west") as (east, west):
        leader = await _followed(east, west)
        tip = leader.chain.tip
        stream = east.log._broker.streams[("west", volumes.Origin("orders", "east"))]
        good = leader.chain.frame([write(2, 0, b"good")])
        leader.chain.frame([write(2, 0, b"lost")])
        later = leader.chain.frame([write(2, 0, b"later")])
        fork = FrameChain(tip=frames.Tip(tip.position, bytes(32))).frame([write(2, 0, b"fork")])
        foreign = FrameChain(volume="other", tip=tip).frame([write(2, 0, b"bad")])
        forged = bytearray(good.wire)
        forged[good.body_at] ^= 1
        for wire, reason in (
            (fork.wire, "fork"),
            (later.wire, "gap"),
            (foreign.wire, "foreign-frame"),
            (b"noise", "malformed-frame"),
            (bytes(forged), "malformed-frame"),
            (None, "stream-gap"),
        ):
            stream.messages.append(wire)
            east.log._broker.changed()
            if wire is None:
                stream.messages.append(later.wire)
                east.log._broker.changed()
            status = await _error_of(west, reason)
            assert status["state"] == "stalled"
            assert status["journalled"] == str(tip.position)
            assert (west.path / "data").read_bytes() == b"base"
            del stream.messages[1:]
            west.replica.intake.change()  # type: ignore[union-attr]
        stream.messages.append(good.wire)
        east.log._broker.changed()
        await applied(west, good)
        assert west.replica.status()["error"] is None


async def test_a_stream_that_was_rolled_back_and_written_anew_is_found_by_hash(tmp_path: Path) -> None:
    async with sites(tmp_path, "east", "west") as (east, west):
        leader = await _followed(east, west)
        tip = leader.chain.tip
        for text in (b"one", b"two"):
            await applied(west, await leader.publish(write(2, 0, text)))
        stream = east.log._broker.streams[("west", volumes.Origin("orders", "east"))]
        other = FrameChain(tip=tip)
        stream.messages[1:] = [other.frame([write(2, 0, text)]).wire for text in (b"uno", b"due", b"tre")]
        await west.restart(orderly=True)
        status = await _error_of(west, "fork")
        assert status["journalled"] == str(leader.frames[-1].position)
        assert (west.path / "data").read_bytes() == b"twoe"


async def test_a_log_that_contradicts_itself_stalls_and_nothing_more_is_confirmed(tmp_path: Path) -> None:
    async with sites(tmp_path, "east", "west") as (east, west):
        leader = await _followed(east, west)
        bad = await leader.publish(write(2, 0, b"before"), Delta(Op.UNLINK, 9, args=(ROOT_ID, b"data")))
        status = await _error_of(west, "tree-contradiction")
        assert status["state"] == "stalled"
        for _ in range(3):
            await leader.publish(write(2, 0, b"after"))
        await asyncio.sleep(0.2)
        assert west.replica.status()["applied"] == str(leader.frames[0].position)
        assert positions.parse(west.replica.status()["journalled"]) <= leader.frames[-1].position
        with pytest.raises(errors.Corrupt):
            await west.replica.catch_up(bad.position, 5)
        with pytest.raises(errors.Corrupt):
            await west.replica.promote(2)


async def test_a_missing_or_replaced_directory_is_a_fault_and_a_rebuild_makes_it_anew(tmp_path: Path) -> None:
    async with sites(tmp_path, "east", "west") as (east, west):
        leader = await _followed(east, west)
        for damage, reason in (("gone", "replica-missing"), ("replaced", "replica-replaced")):
            await west.replica.close()
            other = west.path.with_name("other")
            if damage == "replaced":
                other.mkdir()  # while the old one is there, so that it has another inode number
            shutil.rmtree(west.path)
            if damage == "replaced":
                other.rename(west.path)
                (west.path / "somebody's").write_bytes(b"work")
            await west.restart(orderly=False)
            status = await _error_of(west, reason)
            assert status["state"] == "failed"
            frame = await leader.publish(write(2, 0, damage.encode()))
            await journalled(west, frame)
            with pytest.raises(errors.Misconfigured):
                await west.replica.promote(2)
            await west.replica.rebuild()
            await applied(west, frame)
            await proven(west)
        (kept,) = west.path.parent.glob("orders.kept-*")
        assert (kept / "somebody's").read_bytes() == b"work"


async def test_a_directory_with_something_in_it_does_not_become_a_replica(tmp_path: Path) -> None:
    async with sites(tmp_path, "east", "west") as (_east, west):
        west.path.mkdir(parents=True)
        (west.path / "precious").write_bytes(b"x")
        await west.replica.put_role(follow(link("east", 1)))
        assert (await _error_of(west, "directory-not-empty"))["state"] == "failed"
        assert os.listdir(west.path) == ["precious"]
        (west.path / "precious").unlink()
        await west.replica.put_role(follow(link("east", 1)))  # what was in the way is gone
        await until(lambda: west.replica.status()["error"] is None)


async def test_another_path_builds_the_replica_there_and_leaves_the_old_one(tmp_path: Path) -> None:
    async with sites(tmp_path, "east", "west") as (east, west):
        leader = await _followed(east, west)
        other = tmp_path / "elsewhere"
        await west.replica.put_role(follow(link("east", 1), path=str(other)))
        await applied(west, await leader.publish(write(2, 0, b"new ")))
        assert (other / "data").read_bytes() == b"new "
        assert (west.path / "data").read_bytes() == b"base"


async def test_a_leaders_directory_is_never_taken_for_a_replica_without_its_tree_state(
    tmp_path: Path,
) -> None:
    async with sites(tmp_path, "east", "west") as (east, west):
        leader = await _followed(east, west)
        await west.replica.promote(2)
        (west.path / "data").write_bytes(b"the program's own")
        chain = (link("east", 1), link("east", 3, leader.chain.tip))
        await west.replica.put_role(follow(*chain))
        await _error_of(west, "directory-left")
        assert (west.path / "data").read_bytes() == b"the program's own"


async def test_a_catch_up_to_what_never_comes_ends_with_what_holds_it(tmp_path: Path) -> None:
    async with sites(tmp_path, "east", "west") as (east, west):
        await _followed(east, west)
        with pytest.raises(errors.TimedOut) as caught:
            await west.replica.catch_up(positions.Position(1, 99), 0.3)
        assert caught.value.reason == "behind"


async def test_lead_without_having_followed_only_remembers_the_role(tmp_path: Path) -> None:
    async with sites(tmp_path, "east") as (east,):
        await east.replica.put_role(Role(role="lead", epoch=1, leader="east", path=str(tmp_path / "p")))
        await east.restart(orderly=False)
        assert east.replica.status()["state"] == "leading"
        with pytest.raises(errors.Refused):
            await east.replica.promote(2)
