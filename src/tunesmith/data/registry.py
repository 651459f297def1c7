"""Names of data sets: ``dataset_info.json`` as LLaMA-Factory's users have it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.config.errors import DataError
from tunesmith.config.plugins import names, suggestion
from tunesmith.data.columns import FieldMap

BUNDLED = Path(__file__).parent / "bundled" / "dataset_info.json"
SUFFIXES = (".json", ".jsonl")
_KEYS = {"file_name", "formatting", "columns", "tags", "num_samples"}
_LATER = {
    "hf_hub_url",
    "ms_hub_url",
    "om_hub_url",
    "script_url",
    "cloud_file_name",
    "ranking",
    "subset",
    "split",
    "folder",
}


@dataclass(frozen=True)
class DataSet:
    """One data set: its file and how to read it. ``formatting`` None = look at the rows."""

    name: str
    path: Path
    formatting: str | None = None
    fields: FieldMap = field(default_factory=FieldMap)
    limit: int | None = None
    file_named: bool = False
    """Whether the name is the path of a file, not a registered name."""


def find(name: str, registry: str | None = None) -> DataSet:
    """The data set called ``name``: a registered name, or a file. Raises DataError with what was looked at."""
    books = _registries(registry)
    for book in books:
        entries = _read(book)
        if name in entries:
            return _entry(name, entries[name], book)
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise DataError(
                f"{path}: the file type {path.suffix!r} is not read yet", hint=f"supported: {', '.join(SUFFIXES)}"
            )
        return DataSet(name=path.stem, path=path, file_named=True)
    if path.is_dir():
        raise DataError(f"{path} is a folder; folders are not read yet", hint="name the .json or .jsonl file in it")
    if path.suffix or path.parent != Path():
        raise DataError(
            f"data: there is no file {name!r} in {Path.cwd()}",
            hint="check the path; it is taken from the current folder",
        )
    known = sorted({key for book in books for key in _read(book)})
    looked = ", ".join(map(str, books)) or "no dataset_info.json"
    raise DataError(f"no data set or file {name!r} (looked in {looked})", hint=suggestion(name, known))


def _registries(registry: str | None) -> list[Path]:
    if registry is not None:
        path = Path(registry).expanduser()
        path = path / "dataset_info.json" if path.is_dir() else path
        if not path.is_file():
            raise DataError(
                f"{path}: no such file", hint="data.registry is the path of a dataset_info.json or its folder"
            )
        return [path, BUNDLED]
    local = [Path("dataset_info.json"), Path("data/dataset_info.json")]
    return [p for p in local if p.is_file()] + [BUNDLED]


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected an object of data set names, found a {type(value).__name__}")
    return value


def _entry(name: str, entry: Any, book: Path) -> DataSet:
    where = f"{book}: data set {name!r}"
    if not isinstance(entry, dict):
        raise DataError(f'{where}: expected an object such as {{"file_name": "my.json"}}')
    for key in entry:
        if key in _LATER:
            raise DataError(
                f"{where}: the key {key!r} is not supported yet", hint="use file_name with a .json or .jsonl file"
            )
        if key not in _KEYS:
            raise DataError(f"{where}: unknown key {key!r}", hint=suggestion(key, sorted(_KEYS | _LATER)))
    file_name = entry.get("file_name")
    if not isinstance(file_name, str):
        raise DataError(f"{where}: 'file_name' is missing")
    path = book.parent / file_name
    if not path.is_file():
        raise DataError(f"{where}: {path} does not exist", hint=f"file_name is taken relative to {book.parent}")
    formatting = entry.get("formatting")
    formats = names("tunesmith.data.formats")
    if formatting is not None and formatting not in formats:
        raise DataError(f"{where}: unknown formatting {formatting!r}", hint=suggestion(str(formatting), formats))
    columns, tags = entry.get("columns") or {}, entry.get("tags") or {}
    for key, value in (("columns", columns), ("tags", tags)):
        if not (isinstance(value, Mapping) and all(isinstance(v, str) for v in value.values())):
            raise DataError(f"{where}: {key!r} should be an object of names")
    limit = entry.get("num_samples")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise DataError(f"{where}: 'num_samples' should be a whole number of rows, found {limit!r}")
    return DataSet(name, path, formatting, FieldMap(columns, tags), limit)
