"""Small segments become one large one: the frames stay the same, whatever dies meanwhile."""

from __future__ import annotations

from pathlib import Path

from tests.support import framing
from tests.support.repair_rig import ORIGIN, RepairRig

from diffkeeper.domain import frames, segments
from diffkeeper_repair import merger


async def rig_with_small_segments(
    path: Path, count: int = 12, nodes: int = 6
) -> tuple[RepairRig, list[bytes]]:
    rig = RepairRig(path, nodes, "2+3")
    await rig.begin()
    sent: list[frames.Frame] = []
    for number in range(count):
        tip = frames.Tip(sent[-1].position, sent[-1].hash) if sent else frames.ORIGIN_TIP
        sent += await rig.log(framing.chain(1 + number % 3, parent=tip, seed=number))
        await rig.seal()
    assert len(rig.service.catalogue.spans(ORIGIN)) == count
    return rig, [frame.wire for frame in sent]


def stored_bytes(rig: RepairRig) -> int:
    return sum(len(data) for store in rig.stores.values() for data in store.items.values())


async def check_merged(rig: RepairRig, wires: list[bytes], into: int = 1) -> None:
    assert len(rig.service.catalogue.spans(ORIGIN)) == into
    assert await rig.read_all() == wires
    assert len(rig.items()) == len(rig.items(manifests=True)) == 5 * into, "nothing of the small ones stays"
    assert rig.service.catalogue.frontier(ORIGIN) == len(wires)
    assert (await rig.service.scrub())["found"] == 0
    assert rig.service.health()["ok"], rig.service.health()


async def test_small_neighbours_become_one_and_the_next_start_knows_it(tmp_path: Path) -> None:
    rig, wires = await rig_with_small_segments(tmp_path)
    stored = stored_bytes(rig)
    await rig.service.merger.round()
    await check_merged(rig, wires)
    assert stored_bytes(rig) < stored / 2
    rig.lose_streams()
    for sequence in (1, 7, len(wires)):
        assert (await rig.service.finder.find(ORIGIN, sequence, "west")).wire == wires[sequence - 1]
    rig.make()
    await rig.begin()
    await rig.service.merger.round()
    await check_merged(rig, wires)


async def test_few_are_left_alone_and_what_comes_later_is_merged_with_the_large_one(tmp_path: Path) -> None:
    rig, wires = await rig_with_small_segments(tmp_path, count=7)
    before = rig.items()
    await rig.service.merger.round()
    assert rig.items() == before
    last = frames.open_frame(wires[-1])
    sent = await rig.log(framing.chain(1, parent=frames.Tip(last.position, last.hash), seed=50))
    await rig.seal()
    await rig.service.merger.round()
    await check_merged(rig, [*wires, sent[0].wire])


async def test_a_node_that_was_away_meanwhile_is_cleared_when_it_returns(tmp_path: Path) -> None:
    rig, wires = await rig_with_small_segments(tmp_path)
    # Every shard must stand before anything goes, so a node away keeps all as it is, unless it holds none of it.
    away = rig.stores["node-02"]
    away.down = True
    await rig.mend()
    await rig.service.merger.round()
    assert await rig.read_all() == wires
    away.down = False
    for _ in range(3):
        await rig.mend()
        await rig.service.merger.round()
    await check_merged(rig, wires)


async def test_a_segment_of_other_frames_covers_nothing(tmp_path: Path) -> None:
    rig, wires = await rig_with_small_segments(tmp_path, count=3)
    other = tuple(frame.wire for frame in framing.chain(len(wires), seed=99))
    await rig.service.io.write(segments.Segment("orders", "east", 1, other), rig.service.geometry)
    await rig.service.merger.round()
    assert len(rig.service.catalogue.spans(ORIGIN)) == 4
    small = [entry for span, entry in rig.service.catalogue.spans(ORIGIN) if span.count < len(wires)]
    found = [wire for entry in small for wire in (await rig.service.io.read(entry)).segment.wires]
    assert found == wires


async def test_runs_end_where_a_segment_is_full_and_where_neighbours_do_not_meet(tmp_path: Path) -> None:
    rig, wires = await rig_with_small_segments(tmp_path, count=20)
    placed = rig.service.catalogue.spans(ORIGIN)
    assert [len(run) for run in merger.runs(placed)] == [20]
    assert [len(run) for run in merger.runs([*placed[:9], *placed[10:]])] == [9, 10]
    assert merger.runs([*placed[:7], *placed[8:15]]) == []
    assert len(wires) == sum(span.count for span, _ in placed)
