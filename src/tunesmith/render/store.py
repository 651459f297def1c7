"""Encoded rows on disk: flat arrays in files, read through memory maps, so that a million rows cost no memory of their own.

A stage says with a ``Layout`` which integer arrays and numbers make up one of its items; nothing here knows what they mean.
A store is a folder: one file per array (rows one after the other), one with the places where rows begin, one per number, and
``manifest.json`` with the SHA-256 of each. It is written once and then only read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np

from tunesmith.config import errors
from tunesmith.config.errors import UserError

VERSION = 2
"""Of the files' form; another one is another store."""
MANIFEST = "manifest.json"
_ORIGIN = "origin"
_IDENTITY = "identity"


class DamagedStoreError(Exception):
    """A store whose files are missing, cut off or changed; the text says which."""


@dataclass(frozen=True)
class Layout:
    """How an item becomes arrays and back.

    ``make(origin=…, **arrays, **numbers)`` builds the item; ``arrays``: attribute -> numpy dtype of a one-dimensional array;
    ``numbers``: attributes that are one integer each. Items have ``length``, ``weight`` and ``origin`` besides.
    """

    make: Callable[..., Any]
    arrays: Mapping[str, str]
    numbers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """A row without an item: its number among the readable rows of the data (0, 1, …; -1 when it could not even be read) and
    its error."""

    row: int
    error: UserError


class StoreWriter:
    """Writes a store into an empty folder, row by row. Raises OSError (disk full)."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder, self.layout = folder, layout
        self._files: dict[str, BinaryIO] = {}
        self._hashes: dict[str, Any] = {}
        self._rows = 0
        self._failures: list[Failure] = []
        self.facts: dict[str, Any] = {}
        """JSON values that hold of all rows together, kept with them."""
        self._places = dict.fromkeys((*layout.arrays, _ORIGIN), 0)
        for name in self._places:
            self._write(f"{name}.bounds", np.zeros(1, np.int64))

    def add(self, items: Sequence[Any], rows: Sequence[int] = (), identities: Sequence[bytes] = ()) -> None:
        """Append items of the stage. ``rows``: their numbers among the readable rows of the data (by default, counted on);
        ``identities``: 16 bytes each, equal for equal rows (by default, empty ones)."""
        if not items:
            return
        self._write("row", np.array(rows or range(self._rows, self._rows + len(items)), np.int64))
        self._write(_IDENTITY, np.frombuffer(b"".join(identities) or bytes(16 * len(items)), "V16"))
        self._rows += len(items)
        for name, dtype in self.layout.arrays.items():
            self._ragged(name, [np.asarray(getattr(item, name), dtype=dtype) for item in items], dtype)
        self._ragged(_ORIGIN, [np.frombuffer(item.origin.encode(), np.uint8) for item in items], "uint8")
        for name in self.layout.numbers:
            self._write(name, np.array([getattr(item, name) for item in items], np.int64))
        self._write("length", np.array([item.length for item in items], np.int64))
        self._write("weight", np.array([item.weight for item in items], np.float64))

    def fail(self, row: int, error: UserError) -> None:
        """Note that a row of the data has no item."""
        self._failures.append(Failure(row, error))

    def finish(self) -> None:
        """Flush everything to the disk; the manifest comes last, so that a store with one is whole."""
        for name in ("length", "weight", "row", _IDENTITY, *self.layout.arrays, _ORIGIN, *self.layout.numbers):
            self._write(name, np.zeros(0, np.uint8))  # a store without rows has all its files too
        files = {}
        for name, file in self._files.items():
            file.flush()
            os.fsync(file.fileno())
            files[name] = {"bytes": file.tell(), "sha256": self._hashes[name].hexdigest()}
        self.close()
        failures = [[f.row, type(f.error).__name__, f.error.message, f.error.hint] for f in self._failures]
        manifest = {"version": VERSION, "rows": self._rows, "files": files, "failures": failures, "facts": self.facts}
        with (self.folder / MANIFEST).open("w", encoding="utf-8") as out:
            json.dump(manifest, out, ensure_ascii=False)
            out.flush()
            os.fsync(out.fileno())

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _ragged(self, name: str, parts: Sequence[np.ndarray], dtype: str) -> None:
        ends = self._places[name] + np.cumsum([len(p) for p in parts], dtype=np.int64)
        self._places[name] = int(ends[-1])
        self._write(name, np.concatenate(parts).astype(dtype, copy=False))
        self._write(f"{name}.bounds", ends)

    def _write(self, name: str, values: np.ndarray) -> None:
        if name not in self._files:
            self._files[name] = (self.folder / name).open("wb")
            self._hashes[name] = hashlib.sha256()
        data = values.tobytes()
        self._files[name].write(data)
        self._hashes[name].update(data)


class Store(Sequence[Any]):
    """The items of a store, made when asked for. ``lengths`` and ``weights`` are there without making any; ``facts`` are its writer's."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        """Raises DamagedStoreError; every file's content is checked."""
        self.folder, self.layout = folder, layout
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            self._files: dict[str, Any] = manifest["files"]
            self._rows = int(manifest["rows"])
            if manifest["version"] != VERSION:
                raise DamagedStoreError("another version wrote it")
            self.failures = tuple(Failure(row, _error(*rest)) for row, *rest in manifest["failures"])
            self.facts = dict(manifest["facts"])
            self._arrays = {name: self._map(name, dtype) for name, dtype in self._dtypes().items()}
            if any(len(self._arrays[name]) != self._rows for name in ("length", "weight", "row", *self.layout.numbers)):
                raise DamagedStoreError(f"it has not {self._rows} rows")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DamagedStoreError(f"{type(error).__name__}: {error}") from error
        self.lengths: np.ndarray = self._arrays["length"]
        self.weights: np.ndarray = self._arrays["weight"]
        self.rows: np.ndarray = self._arrays["row"]
        self.identities: np.ndarray = self._arrays[_IDENTITY]

    @property
    def digest(self) -> str:
        """SHA-256 over the content of the items, without their origins: equal for equal items, wherever they came from."""
        whole = hashlib.sha256()
        for name in sorted(self._files):
            if not name.startswith((_ORIGIN, _IDENTITY)) and name != "row":
                whole.update(f"{name} {self._files[name]['sha256']}\n".encode())
        return whole.hexdigest()

    def number(self, name: str) -> np.ndarray:
        """One number of every item; nothing where the stage has no such number."""
        return self._arrays[name] if name in self.layout.numbers else np.zeros(0, np.int64)

    def __len__(self) -> int:
        return self._rows

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._rows))]
        if not -self._rows <= index < self._rows:
            raise IndexError(f"row {index} of {self._rows}")
        i = int(index) % self._rows
        parts = {name: self._part(name, i) for name in self.layout.arrays}
        numbers = {name: int(self._arrays[name][i]) for name in self.layout.numbers}
        return self.layout.make(origin=self._part(_ORIGIN, i).tobytes().decode(), **parts, **numbers)

    def _part(self, name: str, i: int) -> np.ndarray:
        bounds = self._arrays[f"{name}.bounds"]
        return np.asarray(self._arrays[name][int(bounds[i]) : int(bounds[i + 1])])

    def _dtypes(self) -> dict[str, str]:
        ragged = {**self.layout.arrays, _ORIGIN: "uint8"}
        places = {f"{name}.bounds": "int64" for name in ragged}
        own = {"length": "int64", "weight": "float64", "row": "int64", _IDENTITY: "V16"}
        return ragged | places | dict.fromkeys(self.layout.numbers, "int64") | own

    def _map(self, name: str, dtype: str) -> np.ndarray:
        path, expected = self.folder / name, self._files[name]
        if path.stat().st_size != expected["bytes"]:
            raise DamagedStoreError(f"{name} has {path.stat().st_size} bytes of {expected['bytes']}")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
                raise DamagedStoreError(f"{name} was changed")
        return np.memmap(path, dtype=dtype, mode="r") if expected["bytes"] else np.zeros(0, dtype)


def _error(kind: str, message: str, hint: str | None) -> UserError:
    found = getattr(errors, kind, UserError)
    return (
        found(message, hint) if isinstance(found, type) and issubclass(found, UserError) else UserError(message, hint)
    )
