"""The Reed-Solomon arithmetic of ISA-L itself, called in the library that pyeclib brings.

liberasurecode copies every byte three times between its caller and ISA-L, which takes longer than the code: here the
rows are read and written where they stand, and without the interpreter's lock. The matrix is the one of liberasurecode's
``isa_l_rs_cauchy``, so both give the same bytes; ``coder`` uses pyeclib where this library is not found.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyeclib

Bytes = npt.NDArray[np.uint8]
_NAMES = ("libisal.so.2",)
# Tables of ISA-L hold 32 bytes for each factor of a matrix.
_TABLE_BYTES = 32


@cache
def library() -> ctypes.CDLL | None:
    beside = Path(pyeclib.__file__).parent.parent / "pyeclib.libs"
    for name in (*(str(path) for path in sorted(beside.glob("libisal*.so*"))), *_NAMES):
        try:
            found = ctypes.CDLL(name)
        except OSError:
            continue
        if all(
            hasattr(found, call) for call in ("gf_gen_cauchy1_matrix", "gf_invert_matrix", "ec_encode_data")
        ):
            return found
    return None


class Matrix:
    """The code of k data and m parity rows. Only where there is a ``library``."""

    def __init__(self, data: int, parity: int) -> None:
        found = library()
        assert found is not None, "asked before"
        self._library = found
        self.data, self.parity = data, parity
        self._rows = np.zeros((data + parity, data), np.uint8)
        found.gf_gen_cauchy1_matrix(_at(self._rows), data + parity, data)
        self._parity_tables = self._tables(self._rows[data:])

    def encode(self, rows: Sequence[Bytes], which: Sequence[int]) -> Bytes:
        """Some of the parity rows, counted from 0, of k data rows of one length."""
        made = np.empty((len(which), len(rows[0])), np.uint8)
        tables = self._parity_tables.reshape(self.parity, -1)[list(which)]
        self._multiply(np.ascontiguousarray(tables), rows, list(made))
        return made

    def decode(self, rows: Mapping[int, Bytes], into: Mapping[int, Bytes]) -> None:
        """Compute the data rows that are missing into the given places, from exactly k rows by index."""
        indexes = sorted(rows)
        inverse = np.empty((self.data, self.data), np.uint8)
        picked = np.ascontiguousarray(self._rows[indexes])
        singular = self._library.gf_invert_matrix(_at(picked), _at(inverse), self.data)
        assert singular == 0, "any k rows of a Cauchy matrix are independent"
        missing = sorted(into)
        self._multiply(
            self._tables(inverse[missing]), [rows[index] for index in indexes], [into[one] for one in missing]
        )

    def _tables(self, rows: Bytes) -> Bytes:
        count, width = rows.shape
        tables = np.empty(_TABLE_BYTES * count * width, np.uint8)
        self._library.ec_init_tables(width, count, _at(np.ascontiguousarray(rows)), _at(tables))
        return tables

    def _multiply(self, tables: Bytes, sources: Sequence[Bytes], targets: Sequence[Bytes]) -> None:
        length = len(sources[0])
        assert all(len(row) == length for row in (*sources, *targets)), "rows of one length"
        self._library.ec_encode_data(
            length, len(sources), len(targets), _at(tables), _pointers(sources), _pointers(targets)
        )


def _at(array: Bytes) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _pointers(rows: Sequence[Bytes]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(rows))(*(row.ctypes.data for row in rows))
