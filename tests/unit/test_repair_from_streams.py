"""Segments that parity cannot give back, whose frames still stand in a stream; and stripes that no stream knows."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.support import framing
from tests.support.repair_rig import ORIGIN, RepairRig

from diffkeeper.domain import errors, frames


def tip_of(sent: list[frames.Frame]) -> frames.Tip:
    return frames.Tip(sent[-1].position, sent[-1].hash)


async def rig_with_two_segments(path: Path) -> tuple[RepairRig, list[frames.Frame]]:
    rig = RepairRig(path, 5, "2+3")
    await rig.begin()
    sent = await rig.log(framing.chain(6, size=400))
    await rig.seal()
    sent += await rig.log(framing.chain(6, parent=tip_of(sent), size=400, seed=1))
    await rig.seal()
    return rig, sent


def lose_shards(rig: RepairRig, place: int, keep: int = 1) -> None:
    """All but one shard of a stripe, on nodes that answer; the manifests stay."""
    stripe = rig.service.catalogue.spans(ORIGIN)[place][1].stripe
    for node, key in [item for item in rig.items() if item[1].stripe == stripe][keep:]:
        del rig.stores[node].items[key]


async def test_a_segment_without_enough_shards_is_made_again_from_the_streams(tmp_path: Path) -> None:
    rig, sent = await rig_with_two_segments(tmp_path)
    lose_shards(rig, 0)
    # One site has lost the middle of it, and the other its beginning.
    rig.broker.stream("east", ORIGIN).messages[3] = None
    rig.broker.stream("west", ORIGIN).messages[0] = b"DKF1 nonsense"
    await rig.service.scrub()
    await rig.mend()
    assert rig.service.book.open == [] and rig.service.health()["ok"], rig.service.health()
    rig.lose_streams()
    assert await rig.read_all() == [frame.wire for frame in sent]


async def test_a_frame_too_few_makes_nothing_again_and_the_segment_is_named(tmp_path: Path) -> None:
    rig, sent = await rig_with_two_segments(tmp_path)
    lose_shards(rig, 0)
    for site in ("east", "west"):
        rig.broker.stream(site, ORIGIN).messages[3] = None
    await rig.service.scrub()
    await rig.mend()
    (lost,) = rig.service.health()["volumes"][0]["lost"]
    assert lost["words"] == "orders from east, positions 1.1 to 1.6"
    # What is lost does not keep what comes later from being sealed.
    more = await rig.log(framing.chain(4, parent=tip_of(sent), seed=2))
    rig.make()
    await rig.begin()
    await rig.seal()
    assert rig.service.catalogue.frontier(ORIGIN) == 12 + len(more)


async def test_streams_of_other_frames_do_not_pass_for_the_segment(tmp_path: Path) -> None:
    rig, _ = await rig_with_two_segments(tmp_path)
    lose_shards(rig, 0)
    for site in ("east", "west"):
        rig.broker.stream(site, ORIGIN).messages[:6] = [one.wire for one in framing.chain(6, seed=9)]
    with pytest.raises(errors.Corrupt) as caught:
        await rig.service.io.read(rig.service.catalogue.spans(ORIGIN)[0][1])
    assert caught.value.reason == "too-few-shards"
    (lost,) = rig.service.health()["volumes"][0]["lost"]
    assert lost["words"].endswith("the streams hold other frames there")


@pytest.mark.parametrize("foreign", [4, 8, 30])
async def test_the_disk_of_another_deployments_volume_of_that_name_stops_no_sealing(
    tmp_path: Path, foreign: int
) -> None:
    """It says that the stream is sealed further than it is."""
    other = RepairRig(tmp_path / "other", 5, "2+3")
    await other.begin()
    await other.log(framing.chain(foreign, seed=77))
    await other.seal()
    rig = RepairRig(tmp_path / "one", 5, "2+3")
    await rig.begin()
    sent = await rig.log(framing.chain(6))
    rig.stores["node-02"].items.update(other.stores["node-02"].items)
    await rig.service.fleet.relist("node-02")
    await rig.service.survey()
    # The service begins to follow the stream where the disk says it is, before anything has been read.
    assert rig.service.catalogue.frontier(ORIGIN) == foreign
    sent += await rig.log(framing.chain(12, parent=tip_of(sent), seed=1))
    await rig.mend()
    await rig.seal()
    await rig.mend()
    assert rig.service.catalogue.frontier(ORIGIN) == 18
    strange = {
        entry.stripe for _, entry in rig.service.catalogue.spans(ORIGIN)
    } & rig.service.catalogue.strange
    assert len(strange) == 1
    for sequence, frame in enumerate(sent, 1):
        rig.lose_streams(count=sequence)
        assert (await rig.service.finder.find(ORIGIN, sequence, "west")).wire == frame.wire
    volume = rig.service.health()["volumes"][0]
    assert (volume["spare"], volume["lost_segments"]) == (3, 1)


async def test_a_sealer_that_began_behind_a_strange_segment_goes_back(tmp_path: Path) -> None:
    other = RepairRig(tmp_path / "other", 5, "2+3")
    await other.begin()
    await other.log(framing.chain(8, seed=77))
    await other.seal()
    rig = RepairRig(tmp_path / "one", 5, "2+3")
    await rig.begin()
    rig.stores["node-02"].items.update(other.stores["node-02"].items)
    await rig.service.fleet.relist("node-02")
    await rig.service.survey()
    sent = await rig.log(framing.chain(12))
    sealing = asyncio.create_task(rig.service.sealers.run())
    try:
        async with asyncio.timeout(60):
            await rig.service.sealers.flush(50)
            assert [span.first_sequence for span, _ in rig.service.catalogue.spans(ORIGIN)] == [1, 9]
            await rig.mend()
            assert rig.service.catalogue.frontier(ORIGIN) == 0
            await rig.service.sealers.flush(50)
    finally:
        sealing.cancel()
        await asyncio.gather(sealing, return_exceptions=True)
    assert rig.service.catalogue.frontier(ORIGIN) == 12
    rig.lose_streams()
    assert (await rig.service.finder.find(ORIGIN, 5, "west")).wire == sent[4].wire
