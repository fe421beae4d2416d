"""The chunks of every checkpoint at a site: each kept once, compressed, in pack files; an index says where.

A pack is only appended to: record after record, each a head (struct below) and the bytes. The index is a
database beside the packs and can be made again from them. ``flush`` makes packs durable before the index that
names what is in them, so after a crash the index is true and what it does not name is cut off. Every chunk is
verified by its hash when it is read. One process writes; any of its threads may.
"""

from __future__ import annotations

import os
import sqlite3
import struct
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import zstandard
from blake3 import blake3

from diffkeeper import atomic_files
from diffkeeper.domain import chunks, errors

PACK_BYTES = 64 * 1024 * 1024
# Below this part of live bytes a pack is written anew when chunks are dropped.
REWRITE_BELOW = 0.7
LEVEL = 3
_MAGIC = b"DKC1"
# magic, bytes of the chunk, bytes here, 1 when compressed, hash; then crc32 of these
_HEAD = struct.Struct("<4sIIB32s")
_CRC = struct.Struct("<I")
_HEAD_BYTES = _HEAD.size + _CRC.size
_SUFFIX = ".pack"
_SCHEMA = """
create table if not exists chunk (
    hash blob primary key, pack integer, offset integer, stored integer, size integer
) without rowid;
create index if not exists chunk_of_pack on chunk (pack);
"""

# Asked for a chunk that is damaged or missing here; None when it has no good one either.
Elsewhere = Callable[[chunks.Ref], bytes | None]


class Freed(NamedTuple):
    chunks: int
    # Of the disk, at once.
    bytes: int


class ChunkStore:
    def __init__(self, folder: Path, pack_bytes: int = PACK_BYTES, *, read_only: bool = False) -> None:
        """``read_only``: for a process beside the one that writes."""
        self._folder = folder
        self._pack_bytes = pack_bytes
        self._lock = threading.RLock()
        self._compress = zstandard.ZstdCompressor(level=LEVEL)
        self._decompressor = threading.local()
        self._descriptors: dict[int, int] = {}
        # The pack that is appended to; 0 when the next chunk begins one.
        self._pack = 0
        self._pack_end = 0
        # Set by the owner.
        self.elsewhere: Elsewhere = lambda _ref: None
        # Chunks found damaged and made good since the start, and those that were good nowhere.
        self.healed = 0
        self.lost = 0
        folder.mkdir(parents=True, exist_ok=True)
        self._read_only = read_only
        if read_only:
            self._index = _connect_for_reading(folder / "index.db")
        else:
            self._index = self._open_index()
            self._recover()

    @property
    def lock(self) -> threading.RLock:
        """Held over a whole checkpoint, so that chunks which nothing names yet are not taken for dead."""
        return self._lock

    def put(self, data: bytes | memoryview) -> chunks.Ref:
        """Keep a chunk; durable after ``flush``."""
        assert 0 < len(data) <= chunks.MAX_BYTES, "a chunk is of its size"
        ref = chunks.Ref(blake3(data).digest(), len(data))
        with self._lock:
            if self._find(ref.hash) is None:
                self._append(ref, data)
        return ref

    def get(self, ref: chunks.Ref) -> bytes:
        """The bytes of a chunk. Damaged or missing here, it is asked for elsewhere and kept; raises Corrupt
        (``chunk-damaged``) when it is good nowhere.
        """
        found = self.look(ref)
        if found is not None:
            return found
        found = self.elsewhere(ref)
        if found is None or len(found) != ref.size or blake3(found).digest() != ref.hash:
            self.lost += 1
            raise errors.Corrupt(
                f"chunk {ref.hash.hex()[:16]} ({ref.size} bytes) is damaged or missing here and good nowhere "
                "else; nothing of it was served",
                reason="chunk-damaged",
                hint="dkctl history shows which moments need it; another site may have its own history",
                chunk=ref.hash.hex(),
            )
        if not self._read_only:
            with self._lock:
                self._append(ref, found)
                self.flush()
                self.healed += 1
        return found

    def look(self, ref: chunks.Ref) -> bytes | None:
        """The same, here only: None for what is missing or damaged."""
        with self._lock:
            row = self._find(ref.hash)
            if row is None or row[3] != ref.size:
                return None
            try:
                fd = self._descriptor(row[0])
            except FileNotFoundError:
                return None
            raw = os.pread(fd, _HEAD_BYTES + row[2], row[1])
        data = self._unpack(raw, ref.size)
        return data if data is not None and blake3(data).digest() == ref.hash else None

    def size_of(self, digest: bytes) -> int | None:
        """How many bytes the chunk of this hash has, if it is here."""
        with self._lock:
            row = self._find(digest)
        return None if row is None else int(row[3])

    def flush(self) -> None:
        """Everything put so far is on disk when this returns."""
        with self._lock:
            if self._pack:
                os.fdatasync(self._descriptor(self._pack))
            self._index.commit()

    def drop_all_but(self, live: Iterable[bytes]) -> Freed:
        """Forget every chunk whose hash is not among ``live``, and give back what that frees.

        Copies of what lives are durable before the packs they stood in are removed.
        """
        with self._lock:
            self.flush()
            before = self.stored_bytes
            self._index.execute("create temp table live (hash blob primary key) without rowid")
            try:
                self._index.executemany("insert or ignore into live values (?)", ((one,) for one in live))
                dead = "from chunk where hash not in (select hash from temp.live)"
                count = self._index.execute(f"select count(*) {dead}").fetchone()[0]
                self._index.execute(f"delete {dead}")
            finally:
                self._index.execute("drop table temp.live")
            self._rewrite_sparse()
            self.flush()
            self._remove_unnamed()
            return Freed(count, before - self.stored_bytes)

    def would_free(self, live: Iterable[bytes]) -> Freed:
        """What ``drop_all_but`` would forget, in bytes of chunks."""
        with self._lock:
            self._index.execute("create temp table live (hash blob primary key) without rowid")
            try:
                self._index.executemany("insert or ignore into live values (?)", ((one,) for one in live))
                row = self._index.execute(
                    "select count(*), coalesce(sum(stored), 0) from chunk "
                    "where hash not in (select hash from temp.live)"
                ).fetchone()
            finally:
                self._index.execute("drop table temp.live")
        return Freed(*row)

    @property
    def stored_bytes(self) -> int:
        return sum(path.stat().st_size for path in self._folder.glob(f"*{_SUFFIX}"))

    def stored(self, hashes: Iterable[bytes]) -> int:
        """How many bytes these chunks take here, compressed."""
        total = 0
        with self._lock:
            for digest in hashes:
                row = self._find(digest)
                total += row[2] + _HEAD_BYTES if row is not None else 0
        return total

    def close(self) -> None:
        with self._lock:
            self.flush()
            for fd in self._descriptors.values():
                os.close(fd)
            self._descriptors.clear()
            self._index.close()

    # -- inside ----------------------------------------------------------------------------------------------

    def _find(self, digest: bytes) -> tuple[int, int, int, int] | None:
        found: tuple[int, int, int, int] | None = self._index.execute(
            "select pack, offset, stored, size from chunk where hash = ?", (digest,)
        ).fetchone()
        return found

    def _append(self, ref: chunks.Ref, data: bytes | memoryview) -> None:
        packed = self._compress.compress(data)
        smaller = len(packed) < len(data)
        body = packed if smaller else bytes(data)
        head = _HEAD.pack(_MAGIC, ref.size, len(body), smaller, ref.hash)
        if self._pack == 0 or self._pack_end >= self._pack_bytes:
            self._begin_pack()
        record = head + _CRC.pack(zlib.crc32(head)) + body
        fd = self._descriptor(self._pack)
        done = 0
        try:
            while done < len(record):
                done += os.pwrite(fd, record[done:], self._pack_end + done)
        except OSError as error:
            raise errors.Transient(
                f"the history's disk does not take a chunk: {error.strerror}; it is tried again",
                reason="disk-full",
                hint="free space on the file system of the replicator's data directory (df -h)",
            ) from error
        self._index.execute(
            "insert or replace into chunk values (?, ?, ?, ?, ?)",
            (ref.hash, self._pack, self._pack_end, len(body), ref.size),
        )
        self._pack_end += len(record)

    def _begin_pack(self) -> None:
        if self._pack:
            self.flush()
        used = [int(path.stem) for path in self._folder.glob(f"*{_SUFFIX}")]
        self._pack, self._pack_end = max(used, default=0) + 1, 0
        fd = os.open(self._path(self._pack), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._descriptors[self._pack] = fd
        atomic_files.fsync_directory(self._folder)

    def _unpack(self, raw: bytes, size: int) -> bytes | None:
        if len(raw) < _HEAD_BYTES or raw[:4] != _MAGIC:
            return None
        _, told, stored, packed, _ = _HEAD.unpack_from(raw)
        body = memoryview(raw)[_HEAD_BYTES:]
        if told != size or stored != len(body):
            return None
        if not packed:
            return bytes(body)
        try:
            if zstandard.get_frame_parameters(body).content_size != size:
                return None
            return self._zstd().decompress(body, max_output_size=size)
        except zstandard.ZstdError:
            return None

    def _zstd(self) -> zstandard.ZstdDecompressor:
        found: zstandard.ZstdDecompressor | None = getattr(self._decompressor, "zstd", None)
        if found is None:
            found = self._decompressor.zstd = zstandard.ZstdDecompressor()
        return found

    def _descriptor(self, pack: int) -> int:
        fd = self._descriptors.get(pack)
        if fd is None:
            fd = self._descriptors[pack] = os.open(
                self._path(pack), (os.O_RDONLY if self._read_only else os.O_RDWR) | os.O_CLOEXEC
            )
        return fd

    def _path(self, pack: int) -> Path:
        return self._folder / f"{pack:012d}{_SUFFIX}"

    def _rewrite_sparse(self) -> None:
        """Move what lives out of packs that are mostly dead."""
        live = dict(
            self._index.execute(
                "select pack, sum(stored + ?) from chunk group by pack", (_HEAD_BYTES,)
            ).fetchall()
        )
        for pack, size in live.items():
            path = self._path(pack)
            if not path.exists() or size >= REWRITE_BELOW * path.stat().st_size:
                continue
            if pack == self._pack:
                self._pack = 0
            rows = self._index.execute("select hash, size from chunk where pack = ?", (pack,)).fetchall()
            for digest, chunk_size in rows:
                ref = chunks.Ref(digest, chunk_size)
                data = self.look(ref)
                if data is not None:
                    self._append(ref, data)
                else:
                    # Rotten: forgotten here, and asked for elsewhere when it is wanted.
                    self._index.execute("delete from chunk where hash = ?", (digest,))

    def _remove_unnamed(self) -> None:
        """Packs in which nothing lives."""
        named = {row[0] for row in self._index.execute("select distinct pack from chunk")}
        for path in self._folder.glob(f"*{_SUFFIX}"):
            pack = int(path.stem)
            if pack not in named:
                if pack == self._pack:
                    self._pack = 0
                fd = self._descriptors.pop(pack, None)
                if fd is not None:
                    os.close(fd)
                path.unlink()

    def _open_index(self) -> sqlite3.Connection:
        path = self._folder / "index.db"
        try:
            return _connect(path)
        except sqlite3.DatabaseError:
            for suffix in ("", "-wal", "-shm"):
                Path(f"{path}{suffix}").unlink(missing_ok=True)
            return _connect(path)

    def _recover(self) -> None:
        """Cut off what a crash left beyond the index; make the index again where it was lost."""
        if self._index.execute("select 1 from chunk limit 1").fetchone() is None:
            self._index.executemany("insert or replace into chunk values (?, ?, ?, ?, ?)", self._scan_packs())
            self._index.commit()
        ends = dict(
            self._index.execute(
                "select pack, max(offset + stored) + ? from chunk group by pack", (_HEAD_BYTES,)
            ).fetchall()
        )
        for path in self._folder.glob(f"*{_SUFFIX}"):
            end = ends.get(int(path.stem), 0)
            if path.stat().st_size > end:
                os.truncate(path, end)
        self._remove_unnamed()

    def _scan_packs(self) -> Iterator[tuple[bytes, int, int, int, int]]:
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            with path.open("rb") as file:
                offset = 0
                while len(head := file.read(_HEAD_BYTES)) == _HEAD_BYTES:
                    if head[:4] != _MAGIC or _CRC.unpack_from(head, _HEAD.size)[0] != zlib.crc32(
                        head[: _HEAD.size]
                    ):
                        break
                    _, size, stored, _, digest = _HEAD.unpack_from(head)
                    if (
                        size > chunks.MAX_BYTES
                        or file.seek(offset + _HEAD_BYTES + stored) > path.stat().st_size
                    ):
                        break
                    yield digest, int(path.stem), offset, stored, size
                    offset += _HEAD_BYTES + stored


def _connect_for_reading(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, check_same_thread=False)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False)
    try:
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = full")
        connection.executescript(_SCHEMA)
        connection.execute("select count(*) from (select 1 from chunk limit 1)").fetchone()
    except sqlite3.DatabaseError:
        connection.close()
        raise
    return connection
