"""The quick way from the ring to a frame: plain writes to known files, and the marks of their syncs, taken by the loop
in ``native/write_lanes.c``.

A *lane* is where the plain writes of one volume wait until its framer takes them: bytes and columns, no objects. What
is plain is taught, never guessed: a write that came the long way, through the observer, and turned out to need
no thought, makes the next ones of the same process to the same file plain (``learn``). Whoever changes what the
observer thinks of a file has to say ``forget``. Order is kept because a framer takes what waits in its lane before it
takes anything else.

The object is loaded by ctypes and knows nothing of Python; where there is none for this machine, every record goes the
long way, which gives the same frames.
"""

from __future__ import annotations

import ctypes
import enum
import functools
import mmap
import platform
from collections.abc import Callable
from pathlib import Path

from diffkeeper.domain import deltas, errors, limits
from diffkeeper_capture import records, system_calls

FOLDER = Path(__file__).parent / "native"
# Waiting writes are handed to the framer when there are so many, or so many bytes, of them.
COUNT_MAX = 8192
DATA_MAX_BYTES = 512 * 1024
MARKS_MAX = 1024
assert DATA_MAX_BYTES >= records.PAYLOAD_MAX_BYTES, "every write finds room in an empty lane"
# FILES, WRITERS and HEADS in write_lanes.c.
_FILES_BYTES = 4096 * 24
_WRITERS_BYTES = 256 * 4
HEADS = 512


class Why(enum.IntEnum):
    """Why the loop stopped; ``enum why`` in C."""

    EMPTY = 0
    UNFINISHED = 1
    NOT_PLAIN = 2
    LANE_FULL = 3
    ENOUGH = 4
    BROKEN = 5


class _Lane(ctypes.Structure):
    """``struct lane``."""

    _fields_ = (
        ("volume", ctypes.c_uint32),
        ("files_known", ctypes.c_uint32),
        ("writers_known", ctypes.c_uint32),
        ("count", ctypes.c_uint32),
        ("count_max", ctypes.c_uint32),
        ("data_bytes", ctypes.c_uint32),
        ("data_max", ctypes.c_uint32),
        ("heads", ctypes.c_uint32),
        ("marks", ctypes.c_uint32),
        ("marks_max", ctypes.c_uint32),
        ("room", ctypes.c_uint64),
        ("ids", ctypes.c_void_p),
        ("offsets", ctypes.c_void_p),
        ("lengths", ctypes.c_void_p),
        ("ends_us", ctypes.c_void_p),
        ("at_us", ctypes.c_void_p),
        ("data", ctypes.c_void_p),
        ("noted", ctypes.c_void_p),
        ("files", ctypes.c_void_p),
        ("writers", ctypes.c_void_p),
        ("ops", ctypes.c_void_p),
        ("mark_calls", ctypes.c_void_p),
        ("mark_tgids", ctypes.c_void_p),
    )


class Ring(ctypes.Structure):
    """``struct ring``: how the loop stands to a ring. Its memory is the ring reader's."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_uint64),
        ("consumer", ctypes.c_void_p),
        ("position", ctypes.c_uint64),
        ("stride", ctypes.c_uint64),
        ("told", ctypes.c_uint64),
        ("taken", ctypes.c_uint64),
        ("stopped_by", ctypes.c_uint32),
        ("unused", ctypes.c_uint32),
    )


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled loop; None where there is none for this machine."""
    path = FOLDER / f"write_lanes.{platform.machine()}.so"
    if not path.exists():
        return None
    try:
        found = ctypes.CDLL(str(path))
    except OSError:
        return None  # another C library than the one it was made for
    lane, u32, u64 = ctypes.POINTER(_Lane), ctypes.c_uint32, ctypes.c_uint64
    found.dk_take.argtypes = (ctypes.POINTER(Ring), u64, u64, ctypes.c_void_p, u32)
    found.dk_take.restype = u32
    found.dk_learn.argtypes = (lane, u64, u32, u32, u64)
    found.dk_learn.restype = found.dk_forget.restype = found.dk_relate.restype = None
    found.dk_forget.argtypes = (lane,)
    found.dk_relate.argtypes = (lane, u64)
    return found


class Lane:
    """The plain writes of one volume, on their way to its framer. Made by ``Lanes.add``."""

    def __init__(self, loaded: ctypes.CDLL, slot: int) -> None:
        self._loaded = loaded
        sizes = {
            "ids": 8 * COUNT_MAX,
            "offsets": 8 * COUNT_MAX,
            "lengths": 8 * COUNT_MAX,
            "ends_us": 8 * COUNT_MAX,
            "at_us": 4 * COUNT_MAX,
            "noted": HEADS * records.HEAD_BYTES,
            "files": _FILES_BYTES,
            "writers": _WRITERS_BYTES,
            "mark_calls": 4 * MARKS_MAX,
            "mark_tgids": 4 * MARKS_MAX,
            "ops": COUNT_MAX,
            "data": DATA_MAX_BYTES,
        }
        # Zeros, and no memory before it is used.
        self._memory = mmap.mmap(-1, sum(sizes.values()))
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self.state = _Lane(
            volume=slot,
            count_max=COUNT_MAX,
            data_max=DATA_MAX_BYTES,
            marks_max=MARKS_MAX,
            room=limits.FRAME_TARGET_BYTES,
        )
        self._views: dict[str, memoryview] = {}
        whole, at = memoryview(self._memory), 0
        for name, size in sizes.items():
            setattr(self.state, name, start + at)
            self._views[name] = whole[at : at + size]
            at += size
        self._reference = ctypes.byref(self.state)
        # Called when no more fits; must empty the lane.
        self.on_full: Callable[[], None] = self.empty

    @property
    def count(self) -> int:
        """Writes and marks that wait."""
        return int(self.state.count)

    @property
    def first_us(self) -> int:
        """When the first that waits returned, by the monotonic clock."""
        return int.from_bytes(self._views["ends_us"][:8], "little")

    def make_room(self, size: int) -> None:
        """How many bytes of payload the open frame still takes."""
        self.state.room = max(0, size)

    def learn(self, inode: int, generation: int, tgid: int, file_id: int) -> None:
        """Writes of this process to this file, and its syncs, need no thought from now on."""
        self._loaded.dk_learn(self._reference, inode, generation, tgid, file_id)

    def forget(self) -> None:
        """Nothing is plain until it was learned again. What waits stays."""
        if self.state.files_known:
            self._loaded.dk_forget(self._reference)

    def pour(self, columns: deltas.Columns, first_us: int) -> None:
        """Move what waits to the end of a frame whose first delta was at ``first_us``."""
        state, views = self.state, self._views
        self._loaded.dk_relate(self._reference, first_us)
        count, marks = state.count, 4 * state.marks
        calls, tgids = (views[name][:marks].cast("I") for name in ("mark_calls", "mark_tgids"))
        columns.add_plain(
            views["ops"][:count],
            views["ids"][: 8 * count],
            views["offsets"][: 8 * count],
            views["lengths"][: 8 * count],
            views["at_us"][: 4 * count],
            views["data"][: state.data_bytes],
            [[system_calls.call_name(call), tgid] for call, tgid in zip(calls, tgids, strict=True)],
        )
        self.empty()

    def empty(self) -> None:
        """Drop what waits."""
        self.state.count = self.state.data_bytes = self.state.marks = 0

    @property
    def has_heads(self) -> bool:
        return bool(self.state.heads)

    def take_heads(self) -> list[records.Record]:
        """The heads of the last writes that came this way, oldest first, at most ``HEADS``; each once."""
        noted = bytes(self._views["noted"])
        heads, self.state.heads = self.state.heads, 0
        last = heads % HEADS * records.HEAD_BYTES
        ordered = noted[:last] if heads < HEADS else noted[last:] + noted[:last]
        return [records.Record._make(fields) for fields in records.HEAD.iter_unpack(ordered)]


class Lanes:
    """All lanes that one ring feeds, by volume slot."""

    def __init__(self, loaded: ctypes.CDLL) -> None:
        self._loaded = loaded
        self._lanes: list[Lane] = []
        self._table = (ctypes.c_void_p * 0)()

    @classmethod
    def load(cls) -> Lanes | None:
        """None where there is no compiled loop."""
        loaded = library()
        return None if loaded is None else cls(loaded)

    def add(self, slot: int) -> Lane:
        lane = Lane(self._loaded, slot)
        self._lanes.append(lane)
        self._tabulate()
        return lane

    def remove(self, slot: int) -> None:
        self._lanes = [lane for lane in self._lanes if lane.state.volume != slot]
        self._tabulate()

    def take(self, ring: Ring, end: int, most: int) -> tuple[int, bool]:
        """Take plain writes and marks up to ``end`` of a ring: how many, and whether a record follows that goes the long way."""
        taken = 0
        while True:
            why = self._loaded.dk_take(ctypes.byref(ring), end, most - taken, self._table, len(self._lanes))
            taken += ring.taken
            if why == Why.LANE_FULL:
                self._lanes[ring.stopped_by].on_full()
            elif why == Why.BROKEN:
                raise errors.Corrupt(
                    f"the ring says it holds more than its {ring.bytes} bytes; nothing was taken",
                    reason="ring-broken",
                    hint="start the agent again; the files that changed meanwhile are compared",
                )
            else:
                return taken, why == Why.NOT_PLAIN

    def _tabulate(self) -> None:
        addresses = [ctypes.addressof(lane.state) for lane in self._lanes]
        self._table = (ctypes.c_void_p * len(addresses))(*addresses)
