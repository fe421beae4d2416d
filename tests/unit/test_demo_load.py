"""The demo's client against the real order service, which comes and goes."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from examples.demo import checker, load
from examples.orders import orders

from diffkeeper import nats_server

WAIT_S = 10.0


class Service:
    def __init__(self, directory: Path, port: int) -> None:
        self.store = orders.Store(directory)
        self.server = orders.OrderServer(self.store, port)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def wait_for(client: load.Load, count: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while client.counts().acknowledged < count:
        assert time.monotonic() < deadline, f"{client.counts()} after {WAIT_S} s"
        time.sleep(0.01)


def test_orders_are_placed_written_down_and_found(tmp_path: Path) -> None:
    port = nats_server.free_port()
    service = Service(tmp_path / "data", port)
    client = load.Load(port, tmp_path / "client.jsonl", workers=2, seed=1)
    client.start()
    wait_for(client, 20)
    client.stop()
    acknowledged = client.counts().acknowledged
    service.stop()
    service.store.close()
    judgement = checker.check(tmp_path / "client.jsonl", tmp_path / "data")
    assert judgement.ok
    assert judgement.acknowledged == acknowledged


def test_the_client_waits_for_a_service_that_is_not_there_yet_and_knows_how_long(
    tmp_path: Path,
) -> None:
    port = nats_server.free_port()
    client = load.Load(port, tmp_path / "client.jsonl", workers=2, seed=1)
    since = load.now_us()
    client.start()
    deadline = time.monotonic() + WAIT_S
    while client.counts().unanswered < 4:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert client.outage_after(since) is None
    service = Service(tmp_path / "data", port)
    wait_for(client, 4)
    client.stop()
    outage = client.outage_after(since)
    assert outage is not None
    assert since < outage[0] < outage[1] < load.now_us()
    assert client.outage_after(load.now_us()) is None
    service.stop()
    service.store.close()
    assert checker.check(tmp_path / "client.jsonl", tmp_path / "data").ok


def test_the_same_seed_orders_the_same_things(tmp_path: Path) -> None:
    seen = []
    for attempt in range(2):
        port = nats_server.free_port()
        service = Service(tmp_path / f"data{attempt}", port)
        client = load.Load(port, tmp_path / f"client{attempt}.jsonl", workers=1, seed=7)
        client.start()
        wait_for(client, 5)
        client.stop()
        service.stop()
        service.store.close()
        rows, _ = checker.read_database(tmp_path / f"data{attempt}")
        seen.append([one.hash for one in sorted(rows, key=lambda one: one.seq)][:5])
    assert seen[0] == seen[1]
