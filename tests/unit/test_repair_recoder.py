"""Another geometry is wanted: what stands is recoded, whatever dies meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.support import framing
from tests.support.repair_rig import ORIGIN, RepairRig

from diffkeeper.domain import frames


async def sealed_rig(path: Path, geometry: str) -> tuple[RepairRig, Sequence[bytes]]:
    rig = RepairRig(path, 8, geometry)
    await rig.begin()
    sent: list[frames.Frame] = []
    for number in range(3):
        tip = frames.Tip(sent[-1].position, sent[-1].hash) if sent else frames.ORIGIN_TIP
        sent += await rig.log(framing.chain(8, parent=tip, seed=number))
        await rig.seal()
    return rig, [frame.wire for frame in sent]


async def begin_with(rig: RepairRig, geometry: str) -> None:
    rig.want(geometry)
    rig.make()
    await rig.begin()


def geometries(rig: RepairRig) -> set[str]:
    return {str(key.stripe.geometry) for _, key in [*rig.items(), *rig.items(manifests=True)]}


async def test_old_segments_are_recoded_and_nothing_of_the_old_stays(tmp_path: Path) -> None:
    rig, sent = await sealed_rig(tmp_path, "4+2")
    await begin_with(rig, "2+4")
    assert rig.service.health()["volumes"][0]["recoding"] == 3
    await rig.service.recoder.round()
    assert geometries(rig) == {"2+4"} and len(rig.items()) == 18
    assert await rig.read_all() == sent
    health = rig.service.health()
    assert health["ok"] and health["volumes"][0]["recoding"] == 0 and health["volumes"][0]["spare"] == 4
    assert (await rig.service.scrub())["found"] == 0
    # And the sealer knows that all of it is sealed.
    assert rig.service.catalogue.frontier(ORIGIN) == 24


async def test_a_service_killed_between_writing_and_removing_goes_on(tmp_path: Path) -> None:
    rig, sent = await sealed_rig(tmp_path, "4+2")
    rig.want("2+4")
    service = rig.make()
    await rig.begin()
    for entry in list(service.catalogue.entries.values())[:2]:
        found = await service.io.read(entry)
        await service.io.write(found.segment, service.geometry)
    # Of the second, half of the old is gone as well.
    for node, key in rig.items():
        if key.stripe == entry.stripe and key.index < 4:
            del rig.stores[node].items[key]
    rig.make()
    await rig.begin()
    assert len(rig.service.catalogue.retired) == 2
    await rig.mend()
    health = rig.service.health()["volumes"][0]
    assert not health["lost"] and health["recoding"] == 1 and rig.service.book.open == []
    await rig.service.recoder.round()
    assert geometries(rig) == {"2+4"} and await rig.read_all() == sent
    assert rig.service.health()["ok"]


async def test_the_old_stays_until_the_new_stands_whole_and_a_node_that_returns_is_cleared(
    tmp_path: Path,
) -> None:
    rig, sent = await sealed_rig(tmp_path, "4+2")
    away = rig.items()[0][0]
    rig.stores[away].down = True
    rig.want("4+4")
    rig.make()
    await rig.begin()
    await rig.service.recoder.round()
    assert geometries(rig) == {"4+2", "4+4"}, "eight shards have no eighth node: the old may not go"
    assert await rig.read_all() == sent
    rig.stores[away].down = False
    await rig.mend()
    await rig.service.recoder.round()
    assert geometries(rig) == {"4+4"} and await rig.read_all() == sent
    assert rig.service.health()["ok"], rig.service.health()
