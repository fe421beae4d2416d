"""The order service of the examples, over real HTTP in this process."""

from __future__ import annotations

import http.client
import json
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from examples.orders import orders


@pytest.fixture
def service(tmp_path: Path) -> Iterator[orders.OrderServer]:
    store = orders.Store(tmp_path / "data")
    server = orders.OrderServer(store, 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
    store.close()


def ask(server: orders.OrderServer, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def place(server: orders.OrderServer, order_id: str, item: str = "tea", qty: int = 2) -> tuple[int, Any]:
    return ask(server, "POST", "/orders", json.dumps({"id": order_id, "item": item, "qty": qty}).encode())


def test_a_placed_order_is_committed_when_it_is_answered(service: orders.OrderServer) -> None:
    status, stored = place(service, "a-1")
    assert (status, stored["id"], stored["item"], stored["qty"]) == (201, "a-1", "tea", 2)
    with sqlite3.connect(service.store.path) as database:
        assert database.execute("SELECT id, item, qty FROM orders").fetchall() == [("a-1", "tea", 2)]
    database.close()
    assert ask(service, "GET", "/orders/a-1") == (200, stored)


def test_a_retry_of_the_same_order_is_harmless(service: orders.OrderServer) -> None:
    _, first = place(service, "a-1")
    assert place(service, "a-1") == (200, first)
    assert ask(service, "GET", "/healthz") == (200, {"ok": True, "orders": 1})


def test_another_order_under_a_taken_id_is_a_conflict(service: orders.OrderServer) -> None:
    _, first = place(service, "a-1")
    status, answer = place(service, "a-1", item="coffee")
    assert (status, answer["order"]) == (409, first)


def test_orders_are_listed_in_the_order_of_commit_page_by_page(service: orders.OrderServer) -> None:
    for number in range(5):
        place(service, f"a-{number}")
    _, page = ask(service, "GET", "/orders?limit=3")
    assert [order["id"] for order in page["orders"]] == ["a-0", "a-1", "a-2"]
    _, rest = ask(service, "GET", f"/orders?limit=3&after={page['next']}")
    assert [order["id"] for order in rest["orders"]] == ["a-3", "a-4"]
    assert rest["next"] is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"tea",
        b"[]",
        b'{"id": "a-1"}',
        b'{"id": "a-1", "item": "tea", "qty": 0}',
        b'{"id": "a-1", "item": "tea", "qty": true}',
        b'{"id": "", "item": "tea", "qty": 1}',
        b'{"id": "a-1", "item": "tea", "qty": 1, "price": 3}',
        b'{"id": "a-1", "item": "' + b"t" * 70_000 + b'", "qty": 1}',
    ],
)
def test_what_is_no_order_is_refused_and_stores_nothing(service: orders.OrderServer, body: bytes) -> None:
    status, answer = ask(service, "POST", "/orders", body)
    assert status == 400
    assert answer["error"]
    assert ask(service, "GET", "/healthz") == (200, {"ok": True, "orders": 0})


@pytest.mark.parametrize("path", ["/", "/orders/unknown", "/order"])
def test_what_does_not_exist_is_not_found(service: orders.OrderServer, path: str) -> None:
    assert ask(service, "GET", path)[0] == 404


def test_a_page_that_is_no_number_is_refused(service: orders.OrderServer) -> None:
    assert ask(service, "GET", "/orders?after=x")[0] == 400


def test_many_clients_at_once_each_get_their_own_order_once(service: orders.OrderServer) -> None:
    answers: list[int] = []

    def client(name: str) -> None:
        answers.extend(place(service, f"{name}-{number}")[0] for number in range(10))

    threads = [threading.Thread(target=client, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [201] * 40
    _, page = ask(service, "GET", "/orders")
    assert len({order["id"] for order in page["orders"]}) == 40


def test_the_database_is_in_wal_mode_and_keeps_its_orders_over_a_restart(tmp_path: Path) -> None:
    store = orders.Store(tmp_path)
    connection = store.connect()
    assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2
    assert store.place(connection, {"id": "a", "item": "tea", "qty": 1})[0] == 201
    connection.close()
    store.close()
    again = orders.Store(tmp_path)
    connection = again.connect()
    assert again.count(connection) == 1
    connection.close()
    again.close()
