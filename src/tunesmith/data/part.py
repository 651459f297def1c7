"""One file of a data set, wherever it lies: on the disk, inside a zip file, or on a hub."""

from __future__ import annotations

import hashlib
import json
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from tunesmith.config.errors import DataError
from tunesmith.config.files import write_json
from tunesmith.config.home import home
from tunesmith.data.compressed import SUFFIXES as PACKED
from tunesmith.data.compressed import bounded, packing


@dataclass(frozen=True)
class Part:
    """``name`` stands in messages; ``open`` gives a fresh binary stream (seekable unless ``packed``); ``size`` is in bytes;
    ``digest`` tells one content from every other one."""

    name: str
    open: Callable[[], BinaryIO]
    size: int
    digest: Callable[[], str]
    packed: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", printable(self.name))

    @property
    def suffix(self) -> str:
        """The suffix that tells the kind of file, that of the packing left out: ``.jsonl`` of ``a.jsonl.gz``."""
        path = PurePosixPath(self.name.lower())
        return PurePosixPath(path.stem).suffix if path.suffix in PACKED else path.suffix

    def head(self, size: int) -> bytes:
        try:
            with self.open() as file:
                return file.read(size)
        except OSError as error:
            raise DataError(
                f"{self.name}: cannot be read ({error.strerror})", hint="is it an ordinary file?"
            ) from error


def printable(name: str) -> str:
    """A file's name as it may stand in a message: what would steer a terminal is written as an escape."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def local(text: str) -> Path:
    """A path as a person writes it; ``~`` of somebody who is not known here stays as it is."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def is_there(path: Path) -> bool:
    """Whether there is such a file or folder; a name that no file can have is not there."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def file_part(path: Path, name: str | None = None) -> Part:
    """A file of this disk. Raises DataError when it is not there or cannot be read."""
    try:
        size = path.stat().st_size
        with path.open("rb"):
            pass
    except FileNotFoundError:
        raise DataError(f"{path}: no such file", hint="check the path, and where a link leads") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})", hint="check who may read it") from error
    return Part(name or str(path), lambda: path.open("rb"), size, lambda: sha256_of(path))


OFFICE = (".xlsx", ".docx", ".pptx", ".ods", ".odt")
AS_CSV = "save the table as CSV (UTF-8)"


def unzipped(part: Part) -> Iterator[Part]:
    """The files inside when ``part`` is a zip file, else itself. Raises DataError for entries that no data set has."""
    if packing(part.head(8)) != "zip":
        yield part
        return
    try:
        with part.open() as file, zipfile.ZipFile(file) as archive:
            entries = [e for e in archive.infolist() if not e.is_dir()]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        if part.suffix in OFFICE:
            raise DataError(
                f"{part.name}: spreadsheets and documents ({part.suffix}) are not read", hint=AS_CSV
            ) from error
        raise DataError(f"{part.name}: not a whole zip file: {error}", hint="download it again") from error
    names = {e.filename for e in entries}
    if "[Content_Types].xml" in names:
        raise DataError(f"{part.name}: is an Office document (Excel, Word)", hint=AS_CSV)
    if "mimetype" in names and "content.xml" in names:
        raise DataError(f"{part.name}: is an OpenDocument file", hint=AS_CSV)
    for entry in sorted(entries, key=lambda e: e.filename):
        inside = PurePosixPath(entry.filename)
        place = f"{part.name}/{entry.filename}"
        if inside.is_absolute() or ".." in inside.parts or "\\" in entry.filename or ":" in inside.parts[0]:
            raise DataError(
                f"{part.name}: holds {entry.filename!r}, which leads out of it", hint="unpack it and look at what it is"
            )
        if entry.flag_bits & 1:
            raise DataError(f"{place}: is locked with a password", hint="unpack it yourself and name the file inside")
        if inside.suffix.lower() in (*PACKED, ".tar", ".tgz", ".7z", ".rar"):
            raise DataError(f"{place}: an archive inside an archive is not opened", hint="unpack it once yourself")
        if inside.parts[0] != "__MACOSX":
            yield _zip_entry(part, entry, place)


def _zip_entry(part: Part, entry: zipfile.ZipInfo, place: str) -> Part:
    def open_it() -> BinaryIO:
        try:
            archive = zipfile.ZipFile(part.open())
            return bounded(archive.open(entry), place, entry.compress_size)
        except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
            raise DataError(f"{place}: cannot be unpacked: {error}", hint="download it again") from error

    return Part(
        place, open_it, entry.file_size, lambda: f"{part.digest()}/{entry.filename}/{entry.header_offset}", packed=True
    )


SETTLED_S = 3.0
"""Seconds after which a change of a file shows in its times on every file system (FAT counts in twos)."""


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, remembered by path, size, inode and times of change under ``home()/cache/hashes``.

    What was changed in the last seconds is not remembered: it could change again within one tick of the clock.
    """
    status = path.stat()
    place = str(path.absolute())
    mark = [place, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    kept = home() / "cache" / "hashes" / f"{hashlib.sha256(place.encode('utf-8', 'surrogateescape')).hexdigest()}.json"
    try:
        found = json.loads(kept.read_text(encoding="utf-8"))
        if found["mark"] == mark:
            return str(found["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if time.time() - max(status.st_mtime, status.st_ctime) < SETTLED_S:
        return digest
    try:
        write_json(kept, {"mark": mark, "sha256": digest})
    except OSError:  # a home that cannot be written to only costs the time to hash again
        pass
    return digest
