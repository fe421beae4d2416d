"""Strategies for deltas that are well formed; whether they fit a tree is another matter."""

from __future__ import annotations

from hypothesis import strategies as st

from diffkeeper.domain import deltas
from diffkeeper.domain.deltas import Delta, Op

IDS = st.integers(0, deltas.FILE_ID_MAX)
NAMES = st.one_of(
    st.sampled_from([b"a", b"longer name", b"\xff\xfe", "n\u00e4me".encode(), b"x" * 255, b"...", b"\n"]),
    st.binary(min_size=1, max_size=4).filter(deltas.is_name),
)
MODES = st.integers(0, 0o7777)
OWNERS = st.integers(0, (1 << 32) - 1)
AT = st.integers(0, (1 << 32) - 1)
OFFSETS = st.integers(0, (1 << 62))
_TARGETS = st.binary(min_size=1, max_size=12).filter(lambda target: b"\0" not in target)
_TEXTS = st.text(max_size=12)

_ARGS = {
    Op.CREATE: st.tuples(IDS, NAMES, MODES, OWNERS, OWNERS),
    Op.MKDIR: st.tuples(IDS, NAMES, MODES, OWNERS, OWNERS),
    Op.MKFIFO: st.tuples(IDS, NAMES, MODES, OWNERS, OWNERS),
    Op.SYMLINK: st.tuples(IDS, NAMES, _TARGETS, OWNERS, OWNERS),
    Op.RENAME: st.tuples(IDS, NAMES, IDS, NAMES, st.booleans()),
    Op.UNLINK: st.tuples(IDS, NAMES),
    Op.RMDIR: st.tuples(IDS, NAMES),
    Op.LINK: st.tuples(IDS, NAMES),
    Op.ATTR: st.tuples(
        st.fixed_dictionaries(
            {},
            optional={"mode": MODES, "uid": OWNERS, "gid": OWNERS, "mtime_ns": st.integers(0, (1 << 64) - 1)},
        )
    ),
    Op.XATTR: st.tuples(st.binary(min_size=1, max_size=20), st.one_of(st.none(), st.binary(max_size=40))),
    Op.BARRIER: st.tuples(_TEXTS, st.integers(0, 1 << 22)),
    Op.GAP: st.tuples(_TEXTS, _TEXTS),
}


@st.composite
def any_delta(draw: st.DrawFn) -> Delta:
    op = draw(st.sampled_from(Op))
    file_id, offset, at_us = draw(IDS), draw(OFFSETS), draw(AT)
    if op is Op.WRITE:
        data = draw(st.binary(max_size=40))
        return Delta(op, file_id, offset, len(data), data, (), at_us)
    args = draw(_ARGS[op]) if op in _ARGS else ()
    return Delta(op, file_id, offset, draw(OFFSETS), b"", args, at_us)
