"""PostgreSQL with fsync on: recorded transactions, pgbench beside them, then pg_amcheck and pgbench's sums.

The server refuses to run as root, so root starts it as the system user ``postgres``.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.victims import operations, postgres_wire, victims

from diffkeeper import nats_server

BINARIES = ("initdb", "postgres", "pg_ctl", "pgbench", "pg_amcheck")
USER = "postgres"

CONFIG = """
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = ''
fsync = on
synchronous_commit = on
full_page_writes = on
max_connections = 20
shared_buffers = 8MB
# Small, so that a short run sees checkpoints and recycled segments.
min_wal_size = 2MB
max_wal_size = 4MB
autovacuum_naptime = 5s
# A lost server notices at once that its clients are gone.
logging_collector = off
log_min_messages = warning
"""

# The tables of pgbench, small; recorded transactions have a table of their own.
SCHEMA = """
CREATE EXTENSION amcheck;
CREATE TABLE recorded (key text PRIMARY KEY, payload bytea NOT NULL);
CREATE TABLE branches (bid int PRIMARY KEY, balance int NOT NULL, filler char(88));
CREATE TABLE tellers (tid int PRIMARY KEY, bid int NOT NULL, balance int NOT NULL, filler char(84));
CREATE TABLE accounts (aid int PRIMARY KEY, bid int NOT NULL, balance int NOT NULL, filler char(84));
CREATE TABLE history (tid int, bid int, aid int, delta int NOT NULL, at timestamp, filler char(22));
INSERT INTO branches SELECT 1, 0;
INSERT INTO tellers SELECT n, 1, 0 FROM generate_series(1, 10) n;
INSERT INTO accounts SELECT n, 1, 0 FROM generate_series(1, 1000) n;
CHECKPOINT;
"""

# pgbench's own TPC-B transaction over these tables.
SCRIPT = """\
\\set aid random(1, 1000)
\\set tid random(1, 10)
\\set delta random(-5000, 5000)
BEGIN;
UPDATE accounts SET balance = balance + :delta WHERE aid = :aid;
SELECT balance FROM accounts WHERE aid = :aid;
UPDATE tellers SET balance = balance + :delta WHERE tid = :tid;
UPDATE branches SET balance = balance + :delta WHERE bid = 1;
INSERT INTO history (tid, bid, aid, delta, at) VALUES (:tid, 1, :aid, :delta, CURRENT_TIMESTAMP);
END;
"""

SUMS = """
SELECT (SELECT sum(balance) FROM accounts), (SELECT sum(balance) FROM tellers),
       (SELECT sum(balance) FROM branches), (SELECT coalesce(sum(delta), 0) FROM history)
"""


def folder() -> str | None:
    """Where the newest installed server keeps its programs (Debian does not put them on PATH)."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    return str(found[-1]) if found else None


def binary(name: str) -> str:
    return victims.program(name, folder()) or name


def as_server_user(command: list[str]) -> list[str]:
    """``command``, run by the unprivileged user when we are root."""
    if os.geteuid() != 0:
        return command
    user = pwd.getpwnam(USER)
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--init-groups", *command]


class PostgresClient:
    def __init__(self, port: int) -> None:
        self._connection = postgres_wire.Connection(port, USER, "postgres")

    def put(self, key: str, payload: bytes) -> None:
        self._connection.query(f"INSERT INTO recorded VALUES ('{key}', '\\x{payload.hex()}')")

    def abort(self, key: str, payload: bytes) -> None:
        """The division by zero takes the insert of the same transaction with it."""
        self._connection.query(f"INSERT INTO recorded VALUES ('{key}', '\\x{payload.hex()}'); SELECT 1/0")

    def query(self, statement: str) -> list[postgres_wire.Row]:
        return self._connection.query(statement)

    def close(self) -> None:
        self._connection.close()


class PostgresVictim:
    name = "postgres"

    def __init__(self) -> None:
        self.port = nats_server.free_port()

    def lacking(self) -> str | None:
        absent = [name for name in BINARIES if victims.program(name, folder()) is None]
        if absent:
            return f"not installed: {', '.join(absent)} (apt-get install postgresql)"
        if os.geteuid() == 0 and not any(entry.pw_name == USER for entry in pwd.getpwall()):
            return f"PostgreSQL refuses root and there is no system user {USER}"
        return None

    def prepare(self, directory: Path) -> None:
        if os.geteuid() == 0:
            user = pwd.getpwnam(USER)
            os.chown(directory, user.pw_uid, user.pw_gid)
        directory.chmod(0o700)
        _run(
            as_server_user(
                [
                    binary("initdb"),
                    f"--pgdata={directory}",
                    f"--username={USER}",
                    "--auth=trust",
                    "--data-checksums",
                    "--wal-segsize=1",
                    "--encoding=UTF8",
                    "--no-locale",
                    "--no-sync",
                ]
            )
        )
        with (directory / "postgresql.conf").open("a") as config:
            config.write(CONFIG.format(port=self.port))
        control = [binary("pg_ctl"), f"--pgdata={directory}", "--wait", "--silent"]
        _run(as_server_user([*control, f"--log={directory}/first.log", "start"]))
        try:
            with contextlib.closing(PostgresClient(self.port)) as client:
                for statement in SCHEMA.split(";"):
                    client.query(statement)
        finally:
            _run(as_server_user([*control, "--mode=fast", "stop"]))

    def command(self, directory: str) -> list[str]:
        return as_server_user([binary("postgres"), "-D", directory])

    def connect(self) -> PostgresClient:
        return PostgresClient(self.port)

    def found(self) -> operations.Found:
        """Read by the table itself, so that an index cannot hide a row; pg_amcheck compares the two."""
        with contextlib.closing(self.connect()) as client:
            entries: dict[str, list[str]] = {}
            rows = client.query(
                "SET enable_indexscan = off; SELECT key, encode(payload, 'hex') FROM recorded"
            )
            for key, payload in rows:
                assert key is not None and payload is not None, "both columns are NOT NULL"
                entries.setdefault(key, []).append(operations.digest(bytes.fromhex(payload)))
            return entries

    def examine(self, directory: Path) -> list[str]:
        check = subprocess.run(
            [
                binary("pg_amcheck"),
                "--host=127.0.0.1",
                f"--port={self.port}",
                f"--username={USER}",
                "--heapallindexed",
                "postgres",
            ],
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )
        problems = [f"pg_amcheck: {line}" for line in check.stdout.splitlines()]
        if check.returncode != 0 and not problems:
            problems = [f"pg_amcheck ended with {check.returncode}: {check.stderr.strip()[-500:]}"]
        with contextlib.closing(self.connect()) as client:
            (sums,) = client.query(SUMS)
        return problems if len(set(sums)) == 1 else [*problems, f"pgbench's sums differ: {sums}"]

    @contextlib.contextmanager
    def side_load(self) -> Iterator[None]:
        with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
            script.write(SCRIPT)
            script.flush()
            pgbench = subprocess.Popen(
                [
                    binary("pgbench"),
                    "--host=127.0.0.1",
                    f"--port={self.port}",
                    f"--username={USER}",
                    "--client=4",
                    "--time=600",
                    "--no-vacuum",
                    f"--file={script.name}",
                    "postgres",
                ],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                yield
            finally:
                pgbench.kill()
                pgbench.wait()


def copy_state(source: Path, target: Path) -> None:
    """A copy with owners and modes, which the server insists on."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    for path in [source, *source.rglob("*")]:
        status = path.lstat()
        os.chown(target / path.relative_to(source), status.st_uid, status.st_gid)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    if done.returncode != 0:
        raise RuntimeError(
            f"{command[0]} ended with {done.returncode}: {done.stderr.strip() or done.stdout.strip()}"
        )
