"""Names of data sets: ``dataset_info.json`` as LLaMA-Factory's users have it. What an entry says, not what is there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.config.errors import DataError, UserError
from tunesmith.config.plugins import load as load_plugin
from tunesmith.config.plugins import names, suggestion
from tunesmith.data.part import is_there, local
from tunesmith.hub.reference import hub_order
from tunesmith.hub.repository import DataReference, parse_data

BUNDLED = Path(__file__).parent / "bundled" / "dataset_info.json"
FORMATS = "tunesmith.data.formats"
KEYS = (
    "file_name", "hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name", "formatting", "ranking",
    "subset", "split", "folder", "revision", "num_samples", "columns", "tags",
)  # fmt: skip
SAME_AS = {"openai": "sharegpt"}
"""Words of ``formatting`` for what another format here reads too."""
COLUMNS = frozenset({
    "prompt", "query", "response", "history", "messages", "system", "tools", "images", "videos", "audios", "chosen",
    "rejected", "kto_tag",
})  # fmt: skip
TAGS = frozenset({
    "role_tag", "content_tag", "user_tag", "assistant_tag", "observation_tag", "function_tag", "system_tag",
})  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A registered data set: a file or folder, or repositories (the same set on several hubs, in the order to try them)."""

    name: str
    where: str
    """The dataset_info.json and the name, for messages."""
    path: Path | None = None
    repositories: tuple[DataReference, ...] = ()
    format: str | None = None
    ranking: bool = False
    subset: str | None = None
    split: str | None = None
    folder: str | None = None
    sample: int | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


SHAPE = 'expected {"my_set": {"file_name": "my.json"}}'


def lookup(name: str, registry: str | None = None) -> Entry | None:
    """The entry called ``name``, None when no book has it. Raises DataError for an entry that says nothing valid."""
    for book in _books(registry):
        entries = _read(book)
        if name in entries:
            return _entry(name, entries[name], book)
    return None


def registered(registry: str | None = None) -> tuple[list[str], list[Path]]:
    """The names that ``lookup`` knows, sorted, and the books that it looks in."""
    books = _books(registry)
    return sorted({key for book in books for key in _read(book)}), books


def check_names(columns: Mapping[str, str], tags: Mapping[str, str], where: str) -> None:
    """Raise DataError for a role in ``columns`` or ``tags`` that no format knows."""
    roles = COLUMNS | {role for name in names(FORMATS) for role in load_plugin(FORMATS, name).ROLES}
    tag_names = TAGS | {role for role in roles if role.endswith("_tag")}
    for what, given, known in (("columns", columns, roles), ("tags", tags, tag_names)):
        for key in given:
            if key not in known:
                raise DataError(f"{where}: {what!r} has no {key!r}", hint=suggestion(key, sorted(known)))


def _books(registry: str | None) -> list[Path]:
    if registry is not None:
        path = local(registry)
        path = path / "dataset_info.json" if path.is_dir() else path
        if not path.is_file():
            raise DataError(
                f"{path}: no such file", hint="data.registry is the path of a dataset_info.json or its folder"
            )
        return [path, BUNDLED]
    here = [Path("dataset_info.json"), Path("data/dataset_info.json")]
    return [p for p in here if p.is_file()] + [BUNDLED]


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})", hint="it should be a JSON file in UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: not valid JSON: {error}", hint="check for a missing or trailing comma or an open quote there"
        ) from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected an object of data set names, found a {type(value).__name__}", hint=SHAPE)
    return value


def _entry(name: str, entry: Any, book: Path) -> Entry:
    where = f"{book}: data set {name!r}"
    if not isinstance(entry, dict):
        raise DataError(f"{where}: expected an object, found {entry!r:.60}", hint=SHAPE)
    for key in entry:
        if key not in KEYS:
            raise DataError(f"{where}: unknown key {key!r}", hint=suggestion(key, KEYS))
    texts = {
        key: _text(entry, key, where) for key in (*KEYS[:6], "formatting", "subset", "split", "folder", "revision")
    }
    columns, tags = (_names(entry, key, where) for key in ("columns", "tags"))
    check_names(columns, tags, where)
    ranking = entry.get("ranking") or False
    if not isinstance(ranking, bool):
        raise DataError(
            f"{where}: 'ranking' should be true or false, found {ranking!r}",
            hint="true for pairs of chosen and rejected",
        )
    sample = entry.get("num_samples")
    if sample is not None and (not isinstance(sample, int) or isinstance(sample, bool) or sample < 1):
        raise DataError(
            f"{where}: 'num_samples' should be a whole number of rows, found {sample!r}", hint="for example 1000"
        )
    repositories = _repositories(texts, where)
    return Entry(
        name, where, None if repositories else _path(texts, book, where), repositories, _format(texts["formatting"], where),
        ranking, texts["subset"], texts["split"], texts["folder"], sample, columns, tags,
    )  # fmt: skip


def _repositories(texts: Mapping[str, str | None], where: str) -> tuple[DataReference, ...]:
    """Where the set is on hubs. As in LLaMA-Factory a hub goes before script_url and file_name; with several hubs the order
    of $TUNESMITH_HUBS decides, and ``revision`` is Hugging Face's."""
    found: dict[str, DataReference] = {}
    for hub, key in (("hf", "hf_hub_url"), ("ms", "ms_hub_url")):
        if (name := texts[key]) is not None:
            try:
                reference = parse_data(f"{hub}:{name}")
            except UserError as error:
                raise DataError(f"{where}: {key}: {error.message}", hint=error.hint) from error
            assert reference is not None
            found[hub] = DataReference(hub, reference.name, texts["revision"] if hub == "hf" else None)
    order = [hub for hub in hub_order() if hub in found] or list(found)
    return tuple(found[hub] for hub in order)


def _path(texts: Mapping[str, str | None], book: Path, where: str) -> Path:
    """``file_name``, relative to the book's folder. The person wrote it, so an absolute path and ``..`` are followed."""
    if texts["script_url"] is not None:
        raise DataError(
            f"{where}: 'script_url' names a loading script; code of a data set is not run",
            hint="run it where you trust it, save its rows as JSON Lines or Parquet and write file_name",
        )
    if texts["file_name"] is None and texts["om_hub_url"] is not None:
        raise DataError(
            f"{where}: 'om_hub_url' (Modelers, openmind_hub) is not reached from here",
            hint="add hf_hub_url or ms_hub_url, or download it and write file_name",
        )
    if texts["file_name"] is None and texts["cloud_file_name"] is not None:
        raise DataError(
            f"{where}: 'cloud_file_name' ({texts['cloud_file_name']}) is not reached from here",
            hint="copy the file to this machine and write file_name",
        )
    if texts["file_name"] is None:
        raise DataError(f"{where}: 'file_name' is missing", hint="or hf_hub_url, or ms_hub_url")
    path = book.parent / local(texts["file_name"])
    if not is_there(path):
        raise DataError(f"{where}: {path} does not exist", hint=f"file_name is taken relative to {book.parent}")
    return path


def _format(word: str | None, where: str) -> str | None:
    known = names(FORMATS)
    if word is None or word in known:
        return word
    if SAME_AS.get(word) in known:
        return SAME_AS[word]
    raise DataError(f"{where}: unknown formatting {word!r}", hint=suggestion(word, known))


def _text(entry: Mapping[str, Any], key: str, where: str) -> str | None:
    value = entry.get(key)
    if value is None or (isinstance(value, str) and value):
        return value
    raise DataError(f"{where}: {key!r} should be text, found {value!r:.60}", hint="write it in quotes, or take it out")


def _names(entry: Mapping[str, Any], key: str, where: str) -> Mapping[str, str]:
    """``columns`` or ``tags``; an entry of null means the default, as if it were left out."""
    value = entry.get(key) or {}
    if not (isinstance(value, dict) and all(v is None or isinstance(v, str) for v in value.values())):
        raise DataError(
            f"{where}: {key!r} should be an object of names, found {value!r:.60}",
            hint='for example {"prompt": "question", "response": "answer"}; our name first, then the file\'s',
        )
    return {k: v for k, v in value.items() if v is not None}
