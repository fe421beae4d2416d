"""A small order service: HTTP in front of one SQLite database in WAL mode.

An order is answered with 201 only after its transaction is committed with ``synchronous=FULL``, so what the
client was told is on the disk. The client chooses the order's id, which makes a retry harmless: the same
order again is 200, another order under the same id is 409.

    POST /orders            {"id": "a-1", "item": "tea", "qty": 2}   -> 201, 200 or 409
    GET  /orders/ID                                                  -> 200 or 404
    GET  /orders?after=SEQ&limit=N                                   -> {"orders": [...], "next": SEQ or null}
    GET  /healthz                                                    -> {"ok": true, "orders": N}
"""

from __future__ import annotations

import argparse
import json
import signal
import sqlite3
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

DATABASE = "orders.db"
MAX_BODY_BYTES = 64 * 1024
MAX_PAGE = 1000
BUSY_TIMEOUT_S = 10.0

SCHEMA = """
CREATE TABLE IF NOT EXISTS orders (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    item TEXT NOT NULL,
    qty INTEGER NOT NULL CHECK (qty > 0),
    placed_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
)
"""
FIELDS = "seq, id, item, qty, placed_at"


class BadRequest(Exception):
    """The client sent what is not an order or not a page."""


class Store:
    """The orders. Each thread brings its own connection; one lock orders the writers, so none has to poll."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / DATABASE
        self._writing = threading.Lock()
        # Held open to the end, so that the write-ahead log is folded in when the service stops, not earlier.
        self._anchor = self.connect()
        self._anchor.execute(SCHEMA)

    def connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        return connection

    def place(self, connection: sqlite3.Connection, order: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """(HTTP status, the order as stored); on return from 201 the order is committed."""
        with self._writing:
            inserted = connection.execute(
                "INSERT INTO orders (id, item, qty) VALUES (:id, :item, :qty) ON CONFLICT (id) DO NOTHING",
                order,
            ).rowcount
        stored = self.find(connection, order["id"])
        assert stored is not None, "an order is never deleted"
        if inserted:
            return 201, stored
        same = stored["item"] == order["item"] and stored["qty"] == order["qty"]
        return (200 if same else 409), stored

    def find(self, connection: sqlite3.Connection, order_id: str) -> dict[str, Any] | None:
        row = connection.execute(f"SELECT {FIELDS} FROM orders WHERE id = ?", (order_id,)).fetchone()
        return dict(row) if row is not None else None

    def page(self, connection: sqlite3.Connection, after: int, limit: int) -> list[dict[str, Any]]:
        rows = connection.execute(
            f"SELECT {FIELDS} FROM orders WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit)
        )
        return [dict(row) for row in rows]

    def count(self, connection: sqlite3.Connection) -> int:
        return int(connection.execute("SELECT count(*) FROM orders").fetchone()[0])

    def close(self) -> None:
        self._anchor.close()


class OrderServer(ThreadingHTTPServer):
    # Handlers of idle keep-alive connections must not hold up the end of the service.
    daemon_threads = True
    block_on_close = False

    def __init__(self, store: Store, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.store = store


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.store = cast(OrderServer, self.server).store
        self.connection_to_db = self.store.connect()

    def finish(self) -> None:
        self.connection_to_db.close()
        super().finish()

    def do_POST(self) -> None:
        if urlsplit(self.path).path != "/orders":
            self._answer(404, {"error": "no such resource"})
            return
        try:
            order = parse_order(self._body())
        except BadRequest as error:
            self.close_connection = True  # the body may not have been read to its end
            self._answer(400, {"error": str(error)})
            return
        status, stored = self.store.place(self.connection_to_db, order)
        if status == 409:
            self._answer(409, {"error": "another order has this id", "order": stored})
        else:
            self._answer(status, stored)

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/healthz":
            self._answer(200, {"ok": True, "orders": self.store.count(self.connection_to_db)})
        elif url.path == "/orders":
            try:
                after, limit = parse_page(parse_qs(url.query))
            except BadRequest as error:
                self._answer(400, {"error": str(error)})
                return
            orders = self.store.page(self.connection_to_db, after, limit)
            self._answer(200, {"orders": orders, "next": orders[-1]["seq"] if len(orders) == limit else None})
        elif url.path.startswith("/orders/"):
            order = self.store.find(self.connection_to_db, unquote(url.path.removeprefix("/orders/")))
            self._answer(*((200, order) if order else (404, {"error": "no such order"})))
        else:
            self._answer(404, {"error": "no such resource"})

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: a line a request would be most of what the service does."""

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            raise BadRequest(f"a body of at most {MAX_BODY_BYTES} bytes with its Content-Length is needed")
        return self.rfile.read(int(length))

    def _answer(self, status: int, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


def parse_order(body: bytes) -> dict[str, Any]:
    try:
        order = json.loads(body)
    except ValueError as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    if not isinstance(order, dict) or set(order) != {"id", "item", "qty"}:
        raise BadRequest("an order has id, item and qty, and nothing else")
    for field in ("id", "item"):
        if not isinstance(order[field], str) or not 1 <= len(order[field]) <= 200:
            raise BadRequest(f"{field} must be a text of 1 to 200 characters")
    if not isinstance(order["qty"], int) or isinstance(order["qty"], bool) or not 1 <= order["qty"] < 2**31:
        raise BadRequest("qty must be a whole number from 1 on")
    return order


def parse_page(query: dict[str, list[str]]) -> tuple[int, int]:
    values = {"after": "0", "limit": str(MAX_PAGE)} | {name: texts[-1] for name, texts in query.items()}
    if not all(values[name].isdecimal() and len(values[name]) < 19 for name in ("after", "limit")):
        raise BadRequest("after and limit must be whole numbers")
    return int(values["after"]), max(1, min(int(values["limit"]), MAX_PAGE))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="a small order service on SQLite")
    parser.add_argument("--data", type=Path, required=True, help="directory of the database")
    parser.add_argument("--port", type=int, required=True, help="port on 127.0.0.1; 0 takes a free one")
    arguments = parser.parse_args(argv)
    store = Store(arguments.data)
    server = OrderServer(store, arguments.port)
    for number in (signal.SIGTERM, signal.SIGINT):
        # shutdown() waits for serve_forever() to return, which runs in this thread.
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"orders on http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever(poll_interval=0.05)
    server.server_close()
    store.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
