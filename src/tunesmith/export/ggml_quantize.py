"""ggml's own rounding to few bits, called in its shared library: rows of float32 in, blocks of a type out, on several threads.

Standard library and numpy only: the converter's process loads this file by its path. Rows are rounded independently, so that blocks
of rows may be rounded at once (ctypes lets other threads run meanwhile) and written as they are done.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

BLOCK = 2**23
"""Numbers rounded before they are written."""
PIECE = 2**18
"""Numbers that one thread rounds at a time."""


class Quantizer:
    """``library``: path of a shared library that exports ggml's C functions."""

    def __init__(self, library: str, threads: int) -> None:
        lib = ctypes.CDLL(library)
        i64, size, pointer = ctypes.c_int64, ctypes.c_size_t, ctypes.c_void_p
        for name, result, arguments in (
            ("ggml_type_name", ctypes.c_char_p, [ctypes.c_int]),
            ("ggml_row_size", size, [ctypes.c_int, i64]),
            ("ggml_quantize_init", None, [ctypes.c_int]),
            ("ggml_quantize_requires_imatrix", ctypes.c_bool, [ctypes.c_int]),
            ("ggml_quantize_chunk", size, [ctypes.c_int, pointer, pointer, i64, i64, i64, pointer]),
            ("ggml_validate_row_data", ctypes.c_bool, [ctypes.c_int, pointer, size]),
        ):
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments
        self._lib, self._pool = lib, ThreadPoolExecutor(threads)

    def row_bytes(self, kind: tuple[str, int], width: int) -> int:
        """Bytes of a row of ``width`` numbers. ``kind``: name and number of the type; ValueError if the library has another numbering."""
        known = (self._lib.ggml_type_name(kind[1]) or b"").decode().upper()
        if known != kind[0]:
            raise ValueError(f"the library calls type {kind[1]} {known or 'nothing'}, not {kind[0]}")
        return int(self._lib.ggml_row_size(kind[1], width))

    def blocks(self, rows: Any, kind: tuple[str, int], importance: Any | None) -> Iterator[Any]:
        """``rows`` [n, width] float32 in blocks of ``kind``, as uint8 arrays [some rows, bytes]. ``importance`` [width] or None.

        Raises ValueError when a number is not finite, or when this type needs an importance and there is none.
        """
        assert rows.dtype == np.float32 and rows.flags.c_contiguous and rows.ndim == 2
        width, bytes_per_row = rows.shape[1], self.row_bytes(kind, rows.shape[1])
        if importance is None and self._lib.ggml_quantize_requires_imatrix(kind[1]):
            raise ValueError(f"{kind[0]} needs an importance matrix")
        weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
        assert weights is None or weights.shape == (width,)
        self._lib.ggml_quantize_init(kind[1])
        step, piece = max(1, BLOCK // width), max(1, PIECE // width)
        for start in range(0, len(rows), step):
            block = rows[start : start + step]
            out = np.empty((len(block), bytes_per_row), np.uint8)

            def work(first: int, block: Any = block, out: Any = out) -> None:
                count = min(piece, len(block) - first)
                source, target = block[first:], out[first:]
                written = self._lib.ggml_quantize_chunk(
                    kind[1], source.ctypes.data, target.ctypes.data, 0, count, width,
                    None if weights is None else weights.ctypes.data,
                )  # fmt: skip
                if written != count * bytes_per_row or not self._lib.ggml_validate_row_data(
                    kind[1], target.ctypes.data, written
                ):
                    raise ValueError("it holds numbers that are not finite, or too large for this type")

            list(self._pool.map(work, range(0, len(block), piece)))
            yield out
