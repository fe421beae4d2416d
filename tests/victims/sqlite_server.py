"""A small key-value server on SQLite, as its author would write it; the SQLite victim.

Requests are a line and, for PUT and ABORT, the bytes it announces: ``PUT key size``, ``ABORT key size``
(insert, then roll back), ``DUMP`` (every key with the digest of its payload), ``CHECK`` (PRAGMA
integrity_check). ``OK`` follows the commit.
"""

from __future__ import annotations

import argparse
import hashlib
import socketserver
import sqlite3
import threading
from pathlib import Path
from typing import ClassVar


class Store:
    def __init__(self, path: Path, journal: str) -> None:
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._database.execute(f"PRAGMA journal_mode={journal}").fetchone()
        # With a rollback journal the unlink of the journal commits; only EXTRA syncs the directory after it, and
        # FULL lets the last commit go with the power.
        self._database.execute(f"PRAGMA synchronous={'EXTRA' if journal == 'delete' else 'FULL'}")
        # Small, so that a short run sees checkpoints too.
        self._database.execute("PRAGMA wal_autocheckpoint=100").fetchone()
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, payload BLOB NOT NULL)"
        )
        self._database.execute("CREATE INDEX IF NOT EXISTS by_size ON entries (length(payload))")

    def put(self, key: str, payload: bytes, keep: bool) -> None:
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                self._database.execute("INSERT INTO entries VALUES (?, ?)", (key, payload))
            except sqlite3.Error:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT" if keep else "ROLLBACK")

    def dump(self) -> list[str]:
        with self._lock:
            rows = self._database.execute("SELECT key, payload FROM entries").fetchall()
        return [f"{key} {hashlib.blake2b(payload, digest_size=16).hexdigest()}" for key, payload in rows]

    def check(self) -> list[str]:
        with self._lock:
            try:
                return [str(row[0]) for row in self._database.execute("PRAGMA integrity_check")]
            except sqlite3.DatabaseError as error:
                return [str(error)]


class Handler(socketserver.StreamRequestHandler):
    store: ClassVar[Store]

    def handle(self) -> None:
        for line in self.rfile:
            match line.decode().split():
                case ["PUT" | "ABORT" as verb, key, size]:
                    self._put(key, self.rfile.read(int(size)), keep=verb == "PUT")
                case ["DUMP"]:
                    self._list(self.store.dump())
                case ["CHECK"]:
                    self._list(self.store.check())
                case _:
                    return

    def _put(self, key: str, payload: bytes, *, keep: bool) -> None:
        try:
            self.store.put(key, payload, keep)
        except sqlite3.Error as error:
            self.wfile.write(f"NO {error}\n".encode())
            return
        self.wfile.write(b"OK\n" if keep else b"NO rolled back\n")

    def _list(self, lines: list[str]) -> None:
        self.wfile.write("".join(f"{line}\n" for line in [*lines, "END"]).encode())


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--path", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--journal", choices=["wal", "delete"], required=True)
    arguments = parser.parse_args()
    Handler.store = Store(arguments.path / "entries.db", arguments.journal)
    with Server(("127.0.0.1", arguments.port), Handler) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
