"""Compressed files as streams that end with a message when they unpack to far more than any data set does."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from typing import Any, BinaryIO

from tunesmith.config.errors import DataError

MARKS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}
SUFFIXES = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd", ".zip": "zip"}
FREE_BYTES = 64 << 20
"""So much may come out of any archive, however small it is."""
RATIO = 300
"""Beyond FREE_BYTES, at most so many times the packed size may come out (text packs 3 to 30 times)."""
DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError, ValueError, zipfile.BadZipFile, NotImplementedError)


def packing(head: bytes) -> str | None:
    """How a file that begins with ``head`` is packed: gzip, bzip2, xz, zstd, zip, or None."""
    return next((kind for mark, kind in MARKS.items() if head.startswith(mark)), None)


def unpacked(file: BinaryIO, kind: str, name: str, packed_bytes: int) -> BinaryIO:
    """What is in the compressed ``file`` (not zip, which holds several). Reading it raises DataError when damaged."""
    try:
        return bounded(_open(file, kind), name, packed_bytes)
    except DAMAGED as error:
        raise _damaged(name, error) from error


def bounded(stream: Any, name: str, packed_bytes: int) -> BinaryIO:
    """A stream that raises DataError when more comes out of it than ``RATIO`` allows, or when it breaks off."""
    return io.BufferedReader(_Bounded(stream, name, packed_bytes), 1 << 20)


def _open(file: BinaryIO, kind: str) -> Any:
    if kind == "gzip":
        return gzip.GzipFile(fileobj=file)
    if kind == "bzip2":
        return bz2.BZ2File(file)
    if kind == "xz":
        return lzma.LZMAFile(file)
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd")


class _Bounded(io.RawIOBase):
    def __init__(self, stream: Any, name: str, packed_bytes: int) -> None:
        self._stream, self._name = stream, name
        self._most = max(FREE_BYTES, RATIO * packed_bytes)
        self._out = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            data = self._stream.read(len(buffer))
        except DAMAGED as error:
            raise _damaged(self._name, error) from error
        self._out += len(data)
        if self._out > self._most:
            raise DataError(
                f"{self._name}: unpacks to more than {self._most >> 20} MB, over {RATIO} times its size; it is not read on",
                hint="if it is really a data set, unpack it yourself and name the unpacked file",
            )
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


def _damaged(name: str, error: BaseException) -> DataError:
    if isinstance(error, DataError):
        return error
    detail = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError(f"{name}: is damaged or cut short and cannot be unpacked: {detail}", hint="download it again")
