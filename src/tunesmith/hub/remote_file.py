"""A file on a server, read in parts as a person's program jumps in it: rows over the net without a download."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping

import httpx

from ..config.errors import ServerError
from . import net
from .fetch import PASSING, TRIES

BLOCK = 4 << 20


class RemoteFile(io.RawIOBase):
    """Read-only and seekable; every read asks for at most BLOCK bytes. ``size`` is the file's, in bytes.

    Raises ServerError when the server stops answering, refuses, or cannot send parts.
    """

    def __init__(self, url: str, size: int, headers: Mapping[str, str]) -> None:
        self._url, self._size, self._headers = url, size, dict(headers)
        self._at = 0
        self._http = net.client()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = min(len(buffer), BLOCK, self._size - self._at)
        if count <= 0:
            return 0
        data = self._part(self._at, count)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._http.close()
        super().close()

    def _part(self, start: int, count: int) -> bytes:
        asked = {**self._headers, "Range": f"bytes={start}-{start + count - 1}", "Accept-Encoding": "identity"}
        for failures in range(1, TRIES + 1):
            try:
                response = self._http.get(self._url, headers=asked)
                if response.status_code in PASSING:
                    raise httpx.RemoteProtocolError(f"HTTP {response.status_code}")
            except httpx.TransportError as error:
                if failures == TRIES:
                    raise ServerError(
                        f"{net.plain(self._url)} stopped answering: {net.in_words(error)}",
                        "start again, or leave streaming out: then the files are kept on this disk",
                    ) from error
                time.sleep(0.25 * failures)
                continue
            if response.status_code == 206 and 0 < len(response.content) <= count:
                return response.content
            if response.status_code == 200 and len(response.content) == self._size:
                return response.content[start : start + count]
            raise ServerError(
                f"{net.plain(self._url)} answers HTTP {response.status_code} and not the part that was asked for",
                "leave streaming out, so that the file is fetched as a whole",
            )
        raise AssertionError("unreachable")


def open_remote(url: str, size: int, headers: Mapping[str, str]) -> io.BufferedReader:
    """A buffered stream over the file."""
    return io.BufferedReader(RemoteFile(url, size, headers), min(BLOCK, max(size, 1 << 16)))
