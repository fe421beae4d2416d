"""Rescue from directories of shards, of which some are an attacker's."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from blake3 import blake3
from tests.support import framing, made_logs, replays

from diffkeeper.domain import errors, frames, segments, shard_headers, stripes
from diffkeeper.domain.deltas import ROOT_ID, Delta, Op, write
from diffkeeper.shards.file_shard_store import SUFFIX
from diffkeeper_repair import assembly, rescue
from diffkeeper_replicator import materialise

GEOMETRY = stripes.Geometry(2, 2)


def a_log() -> list[frames.Frame]:
    chain = made_logs.FrameChain()
    log = [chain.frame([Delta(Op.CREATE, 2, args=(ROOT_ID, b"file", 0o644, 0, 0))])]
    log += [chain.frame([write(2, 10 * number, b"%010d" % number)]) for number in range(20)]
    return log


def coded(log: list[frames.Frame], first: int, geometry: stripes.Geometry = GEOMETRY) -> assembly.Coded:
    return assembly.code(segments.Segment("orders", "east", first, tuple(one.wire for one in log)), geometry)


def put(directory: Path, made: assembly.Coded, *indexes: int) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for index in indexes:
        key, data = made.shard(index, 1)
        (directory / f"{key}{SUFFIX}").write_bytes(data)


async def test_volumes_come_back_whole_and_their_tree_is_made(tmp_path: Path) -> None:
    log = a_log()
    put(tmp_path / "one", coded(log[:9], 1), 0)
    put(tmp_path / "two", coded(log[:9], 1), 3)
    # The rest was sealed in another geometry; a second copy of a shard does no harm.
    put(tmp_path / "one", coded(log[9:], 10, stripes.Geometry(1, 1)), 1)
    put(tmp_path / "two", coded(log[9:], 10, stripes.Geometry(1, 1)), 1)
    report = await rescue.rescue([str(tmp_path / "one"), str(tmp_path / "two")], tmp_path / "back", None)
    (volume,) = report["volumes"]
    assert volume["whole"] and volume["position"] == "1.21" and volume["frames"] == 21
    materialise.materialise("orders", tmp_path / "back" / "orders" / "log", tmp_path / "tree")
    assert replays.snapshot(tmp_path / "tree")[b"file"][-1] == b"".join(b"%010d" % n for n in range(20))
    assert not list((tmp_path / "back").glob(".rescue-*"))


async def test_what_is_missing_is_named_and_the_rest_is_given_back(tmp_path: Path) -> None:
    log = a_log()
    put(tmp_path / "one", coded(log[:5], 1), 0, 1)
    put(tmp_path / "one", coded(log[5:9], 6), 2)
    put(tmp_path / "one", coded(log[9:], 10), 1, 2)
    report = await rescue.rescue([str(tmp_path / "one")], tmp_path / "back", None)
    (volume,) = report["volumes"]
    assert not volume["whole"]
    assert volume["position"] == "1.5"
    assert [(one["first"], one["last"]) for one in volume["lost"]] == [("1.6", "1.9")]
    assert volume["holes"] == [{"after": "1.5", "up_to": "1.9"}]
    assert volume["cut_off_frames"] == 12
    materialise.materialise("orders", tmp_path / "back" / "orders" / "log", tmp_path / "tree")
    assert replays.snapshot(tmp_path / "tree")[b"file"][-1] == b"".join(b"%010d" % n for n in range(4))


async def test_an_attackers_shards_are_named_and_harm_nobody(tmp_path: Path) -> None:
    rng = random.Random(3)
    log = a_log()
    made, place = coded(log, 1), tmp_path / "one"
    put(place, made, 1, 2)
    whole = made.shard(0, 1)[1]
    key = made.shard(0, 1)[0]
    # Random bytes, a cut shard, a size bomb that is mostly a hole, a link to elsewhere, names that climb.
    (place / f"orders.{'a' * 32}.2-2.1.0{SUFFIX}").write_bytes(rng.randbytes(700))
    (place / f"orders.{'b' * 32}.2-2.1.0{SUFFIX}").write_bytes(whole[:600])
    with (place / f"orders.{'c' * 32}.2-2.1.0{SUFFIX}").open("wb") as bomb:
        bomb.truncate(1 << 40)
    (place / f"orders.{'d' * 32}.2-2.1.0{SUFFIX}").symlink_to("/etc/passwd")
    os.mkfifo(place / f"orders.{'f' * 32}.2-2.1.0{SUFFIX}")
    (place / f"..{'e' * 32}.2-2.1.0{SUFFIX}").write_bytes(whole)
    # A shard that agrees with itself and lies about the segment.
    lie = rng.randbytes(len(made.payloads[0]))
    header = made.manifest(1, {}, 0).header(0)
    forged = shard_headers.Header(
        GEOMETRY, 0, 1, header.segment_hash, header.segment_bytes, blake3(lie).digest(), header.span
    )
    (place / f"{key}{SUFFIX}").write_bytes(shard_headers.encode(forged) + lie)
    report = await rescue.rescue([str(place)], tmp_path / "back", None)
    (volume,) = report["volumes"]
    assert volume["position"] == "1.21"
    assert [len(path.read_bytes()) for path in (tmp_path / "back").rglob("*.dkseg")] == [len(made.data)]
    named = {entry["item"] for entry in report["damaged"]}
    assert str(key) in named and len(named) == 6
    assert {one["segment"] for one in volume["lost"]} == {letter * 32 for letter in "abcdf"}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["back", "one"]


async def test_a_segment_whose_hash_holds_and_whose_frames_do_not_is_refused(tmp_path: Path) -> None:
    honest = segments.Segment("orders", "east", 1, tuple(frame.wire for frame in framing.chain(2)))
    forged = segments.Segment("orders", "east", 1, (honest.wires[0], b"DKF1" + bytes(90)))
    data = segments.encode(forged)
    stripe_of = assembly.code_bytes(honest, data, GEOMETRY)
    put(tmp_path / "one", stripe_of, 0, 1, 2)
    report = await rescue.rescue([str(tmp_path / "one")], tmp_path / "back", None)
    assert report["volumes"] == []
    assert "frame" in report["damaged"][0]["why"]


async def test_a_target_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "mine").write_text("x")
    with pytest.raises(errors.Refused) as caught:
        await rescue.rescue([str(tmp_path)], tmp_path / "back", None)
    assert caught.value.reason == "target-not-empty"


async def test_a_source_without_shards_is_called_unusable(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    report = await rescue.rescue([str(tmp_path / "empty"), "nats://127.0.0.1:1"], tmp_path / "back", None)
    assert [one["where"] for one in report["unusable"]] == [str(tmp_path / "empty"), "nats://127.0.0.1:1"]


def test_a_tree_is_not_made_from_a_segment_that_was_changed_after_the_rescue(tmp_path: Path) -> None:
    made = coded(a_log(), 1)
    log = tmp_path / "log" / "east"
    log.mkdir(parents=True)
    name = segments.name_of(made.segment_hash)
    (log / f"1-21.{name}.dkseg").write_bytes(bytes(made.data[:-1]) + b"x")
    with pytest.raises(errors.Corrupt) as caught:
        materialise.materialise("orders", tmp_path / "log", tmp_path / "tree")
    assert caught.value.reason == "damaged-segment"
