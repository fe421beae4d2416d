"""Merge logs: records into frames and back through a log in memory, whatever their size and whenever the writer dies;
and logs that somebody else wrote, which are refused with everything before the bad place kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from tests.support.shared_sites import EngineSite, exchange, join

from diffkeeper.domain import deltas, errors, frames, limits, shared_ops, volumes
from diffkeeper.domain.shared_ops import Dot, Edit, Record
from diffkeeper.log.memory_event_log import MemoryBroker, MemoryEventLog
from diffkeeper_replicator.merging_service import merge_log
from diffkeeper_replicator.merging_service.publisher import Publisher

ORIGIN = volumes.Origin("desk", "east")


def packed(number: int, size: int = 3) -> tuple[int, bytes]:
    record = Record(Dot("east", number), number, Edit(bytes(16), "text", bytes(size)))
    return number, shared_ops.encode(record)


async def read_all(log: MemoryEventLog) -> list[Record]:
    """Every record of the log, as a site reads it."""
    found: list[Record] = []
    assembler, tip = merge_log.Assembler(ORIGIN), frames.ORIGIN_TIP
    last = await log.last(ORIGIN)
    for sequence in range(1, (last.stream_sequence if last is not None else 0) + 1):
        stored = await log.get(ORIGIN, sequence)
        assert stored is not None
        frame = frames.open_frame(stored.wire)
        merge_log.check(ORIGIN, tip, frame)
        tip = merge_log.tip_of(frame)
        found += assembler.take(frame)
    return found


async def published(log: MemoryEventLog, records: Sequence[tuple[int, bytes]]) -> int:
    publisher = Publisher(ORIGIN, log)
    await publisher.find_end()
    return await publisher.append(records, 1)


async def test_small_and_large_records_come_back_as_they_were() -> None:
    log = MemoryEventLog(MemoryBroker(), "east")
    records = [packed(1), packed(2, 3 * limits.FRAME_TARGET_BYTES), packed(3), packed(4, 0)]
    assert await published(log, records) == 4
    assert [shared_ops.encode(record) for record in await read_all(log)] == [wire for _, wire in records]


async def test_a_writer_that_died_within_a_large_record_begins_it_again() -> None:
    log = MemoryEventLog(MemoryBroker(), "east")
    publisher = Publisher(ORIGIN, log)
    await publisher.find_end()
    large = packed(2, 3 * limits.FRAME_TARGET_BYTES)
    pieces = list(merge_log.cut([packed(1), large]))
    for columns, _ in pieces[:2]:
        frame = merge_log.seal(ORIGIN, publisher.end, columns, 1, frames.Compressor())
        sequence = await log.append(ORIGIN, frame, publisher.end.sequence)
        publisher.end = merge_log.End(merge_log.tip_of(frame), sequence)
    again = Publisher(ORIGIN, log)
    await again.find_end()
    assert again.end.number == 1
    await again.append([large, packed(3)], 1)
    assert [record.dot.number for record in await read_all(log)] == [1, 2, 3]


async def test_another_writer_of_the_same_log_makes_the_publisher_look_again() -> None:
    log = MemoryEventLog(MemoryBroker(), "east")
    one, other = Publisher(ORIGIN, log), Publisher(ORIGIN, log)
    await one.find_end()
    await other.find_end()
    await one.append([packed(1)], 1)
    with pytest.raises(errors.Transient):
        await other.append([packed(1)], 1)
    await other.find_end()
    assert other.end.number == 1


def frame_of(*some: deltas.Delta, origin: volumes.Origin = ORIGIN) -> frames.Frame:
    columns = deltas.Columns()
    for delta in some:
        columns.add(delta)
    return merge_log.seal(origin, merge_log.End(), columns, 1, frames.Compressor())


@pytest.mark.parametrize(
    ("some", "why"),
    [
        ([deltas.write(1, 5, b"x")], "wrong place"),
        ([deltas.write(1, 0, b"x"), deltas.Delta(deltas.Op.TRUNCATE, 1, 7)], "ends where it does not"),
        ([deltas.write(1, 0, b"x"), deltas.Delta(deltas.Op.TRUNCATE, 2, 1)], "ends where it does not"),
        ([deltas.Delta(deltas.Op.TRUNCATE, 1, 0)], "ends where it does not"),
        ([deltas.Delta(deltas.Op.PUNCH, 1, 0, 1)], "no record"),
        (
            [deltas.write(9, 0, packed(1)[1]), deltas.Delta(deltas.Op.TRUNCATE, 9, len(packed(1)[1]))],
            "says it is 1",
        ),
    ],
)
def test_frames_that_are_no_merge_log_are_refused(some: list[deltas.Delta], why: str) -> None:
    with pytest.raises(errors.Corrupt, match=why):
        merge_log.Assembler(ORIGIN).take(frame_of(*some))


def test_a_frame_of_another_site_or_volume_is_refused() -> None:
    for origin in (volumes.Origin("desk", "west"), volumes.Origin("other", "east")):
        frame = frame_of(deltas.write(1, 0, b"x"), origin=origin)
        with pytest.raises(errors.Corrupt, match="says it is of"):
            merge_log.check(ORIGIN, frames.ORIGIN_TIP, frame)


# -- what a dishonest site may say ---------------------------------------------------------------------------


def last_edit(site: EngineSite) -> Record:
    records = [shared_ops.decode(wire, site.name) for wire in site.log]
    return next(record for record in reversed(records) if isinstance(record.op, Edit) and record.op.update)


@pytest.fixture
def sites(tmp_path_factory: pytest.TempPathFactory) -> tuple[EngineSite, EngineSite]:
    base = tmp_path_factory.mktemp("sites")
    east, west = EngineSite(base, "east"), EngineSite(base, "west")
    join(east, west)
    (east.path / "a.txt").write_text("one\n")
    exchange(east, west)
    (east.path / "a.txt").write_text("one\ntwo\n")
    east.settle()
    return east, west


def test_an_edit_in_the_name_of_another_site_is_refused_and_nothing_of_it_shows(
    sites: tuple[EngineSite, EngineSite],
) -> None:
    east, west = sites
    stolen = last_edit(east)
    north = Record(Dot("north", 1), stolen.stamp, stolen.op)
    with pytest.raises(errors.Corrupt, match="in the name of east"):
        west.engine.take_frame("north", 1, [north])
    west.settle()
    assert west.tree() == {"a.txt": "one\n"}
    assert "north" not in west.engine.state.peers
    west.hear(east)
    west.settle()
    assert west.tree() == {"a.txt": "one\ntwo\n"}


def test_a_clock_an_hour_ahead_is_taken_and_one_of_two_hours_is_refused(
    sites: tuple[EngineSite, EngineSite],
) -> None:
    _, west = sites
    record = Record(Dot("north", 1), west.engine.state.clock, shared_ops.Seen({}))
    hour = 3600 * 10**6 << 12
    west.engine.take_frame("north", 1, [replace(record, stamp=record.stamp + hour)])
    before = west.engine.state.clock
    with pytest.raises(errors.Refused, match="ahead of this clock"):
        west.engine.take_frame(
            "north", 2, [Record(Dot("north", 2), record.stamp + 2 * hour, shared_ops.Seen({}))]
        )
    assert west.engine.state.clock == before
    assert west.engine.state.peers["north"].number == 1


def test_sites_whose_clocks_are_an_hour_apart_converge(tmp_path_factory: pytest.TempPathFactory) -> None:
    base = tmp_path_factory.mktemp("clocks")
    east, west = EngineSite(base, "east", ahead_us=3600 * 10**6), EngineSite(base, "west")
    join(east, west)
    for site in (east, west):
        (site.path / "same").write_bytes(b"\0" + site.name.encode())
        (site.path / f"{site.name}.txt").write_text("hello\n")
    exchange(east, west)
    (west.path / "east.txt").write_text("hello\nfrom west\n")
    exchange(east, west)
    assert east.tree() == west.tree()
    assert east.tree()["east.txt"] == "hello\nfrom west\n"
    assert sorted(text for name, text in east.tree().items() if name.startswith("same")) == [
        "\0east",
        "\0west",
    ]


def test_records_that_skip_a_number_or_go_back_in_time_are_refused(
    sites: tuple[EngineSite, EngineSite],
) -> None:
    _, west = sites
    stamp = west.engine.state.clock
    west.engine.take_frame("north", 1, [Record(Dot("north", 1), stamp + 5, shared_ops.Seen({}))])
    for number, at in ((3, stamp + 6), (2, stamp + 5)):
        with pytest.raises(errors.Corrupt, match="does not follow"):
            west.engine.take_frame("north", 2, [Record(Dot("north", number), at, shared_ops.Seen({}))])


def test_a_directory_that_was_replaced_is_a_fault_and_removes_nothing(
    sites: tuple[EngineSite, EngineSite],
) -> None:
    east, west = sites
    exchange(east, west)
    west.path.rename(west.path.with_name("gone"))
    west.path.mkdir()
    with pytest.raises(errors.Misconfigured, match="nothing was removed anywhere"):
        west.engine.scan()
    assert west.engine.store.outbox(1 << 20) == []
    (west.path).rmdir()
    west.path.with_name("gone").rename(west.path)
    exchange(east, west)
    assert east.tree() == west.tree() == {"a.txt": "one\ntwo\n"}
