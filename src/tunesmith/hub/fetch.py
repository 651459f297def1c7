"""One file over HTTP: resumed where it stopped, checked by size and SHA-256, whole or not there."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import httpx

from ..config.errors import ServerError, UserError
from ..config.files import sync_folder
from ..config.progress import Progress
from . import net

CHUNK = 1 << 18
TRIES = 4  # in a row without a new byte
PASSING = (408, 429, 500, 502, 503, 504)
RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


def fetch(
    http: httpx.Client,
    url: str,
    target: Path,
    progress: Progress,
    *,
    size: int | None = None,
    sha256: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Download ``url`` to ``target``; a ``.part`` file beside it keeps what came so far, also after a kill.

    ``size`` is in bytes; ``progress`` is advanced by bytes, resumed ones included. Raises ServerError when the server
    stops answering or answers with an error, or when what it sends is twice not what ``size`` and ``sha256`` say.
    """
    if target.is_file():
        if size in (None, target.stat().st_size):
            progress.advance(target.stat().st_size)
            return
        target.unlink()
    part = target.with_name(target.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    start = part.stat().st_size if part.exists() else 0
    progress.advance(start)
    failures, damaged = 0, 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if size is None or before != size:
                _stream(http, url, part, progress, size, headers or {})
        except httpx.TransportError as error:
            arrived = (part.stat().st_size if part.exists() else 0) > before
            failures = 1 if arrived else failures + 1
            if failures >= TRIES:
                raise ServerError(
                    f"{net.plain(url)} stopped answering: {net.in_words(error)}",
                    "start again: what is there already is kept and the rest is fetched",
                ) from error
            time.sleep(0.25 * failures)
            continue
        problem = _problem(part, size, sha256)
        if problem is None:
            break
        progress.advance(-part.stat().st_size)
        part.unlink()
        damaged += 1
        if damaged >= 2:
            raise ServerError(
                f"{net.plain(url)} sends something else than it announces: {problem}",
                "nothing of it was kept. Try again later, or take the model from elsewhere (hf: or ms:)",
            )
    part.replace(target)
    sync_folder(target.parent)


def need_space(folder: Path, size: int) -> None:
    """Raise UserError when the disk of ``folder`` has not ``size`` bytes free (and a little more)."""
    free = shutil.disk_usage(folder).free
    if free < size + (64 << 20):
        raise UserError(
            f"{size / 1e9:.1f} GB are needed in {folder}, {free / 1e9:.1f} GB are free",
            "free some space, or set TUNESMITH_HOME to a folder on a larger disk",
        )


def _stream(
    http: httpx.Client, url: str, part: Path, progress: Progress, size: int | None, headers: Mapping[str, str]
) -> None:
    """Append to ``part`` what is missing of it; start over when the server cannot continue."""
    have = part.stat().st_size if part.exists() else 0
    asked = {**headers, "Accept-Encoding": "identity"}
    if have:
        asked["Range"] = f"bytes={have}-"
    with http.stream("GET", url, headers=asked) as response:
        told = RANGE.fullmatch(response.headers.get("Content-Range", ""))
        continues = response.status_code == 206 and told is not None and int(told[1]) == have
        if have and not continues and response.status_code in (200, 206, 416):
            progress.advance(-have)
            part.unlink()
            if response.status_code != 200:  # 416, or a range that was not asked for: the next try asks for all of it
                raise httpx.RemoteProtocolError("the server cannot continue a download")
        if response.status_code in PASSING:
            raise httpx.RemoteProtocolError(f"HTTP {response.status_code}")
        if response.status_code not in (200, 206):
            raise ServerError(
                f"{net.plain(url)} answers HTTP {response.status_code}",
                "check the name, the access rights, or try later",
            )
        with part.open("ab") as file:
            for chunk in response.iter_raw(CHUNK):
                file.write(chunk)
                progress.advance(len(chunk))
                if size is not None and file.tell() > size:
                    break
            file.flush()
            os.fsync(file.fileno())


def _problem(part: Path, size: int | None, sha256: str | None) -> str | None:
    """What is wrong with a finished download; None when it is as announced."""
    actual = part.stat().st_size
    if size is not None and actual != size:
        return f"{actual} bytes instead of {size}"
    if sha256 and sha256_of(part) != sha256.lower():
        return "its SHA-256 is another one"
    return None


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
