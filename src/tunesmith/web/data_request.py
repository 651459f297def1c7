"""What the data page asks of the command line: sets, a model, settings. The one module that knows these names.

It comes from three places, none of them trusted: the fields of the page, its address (a link anywhere may hold one), and a
config of the new-run form. Pure functions.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import yaml

from tunesmith.config.errors import ConfigError
from tunesmith.config.load import apply_overrides

MOST_SETS = 50
MOST_SETTINGS = 30
MOST_CHARACTERS = 1000
"""Of one name; a path is seldom longer than 4096 bytes, and a name of a set never that long."""
_SETTING = re.compile(r"([A-Za-z_]+(?:\.[A-Za-z_]+)*)=(.*)")
_FROM_ADDRESS = re.compile(r"data\.|model\.template")
"""Keys of settings that an address may hold: not ``model.trust_remote_code``, which would let a link run a stranger's code."""
_SECTIONS = {"data": ("train", "max_length"), "model": ("ref",)}
"""Sections of a training config that the command reads, and their keys that have a field of their own."""
_Plain = str | int | float | bool | None


@dataclass(frozen=True)
class Request:
    """``sets`` are registered names, files, folders, globs or hub names, or mappings ``{set: NAME, columns: …}`` as they are
    written; ``model`` '' = no tokens; ``length`` is the longest conversation in tokens, None = the default; ``settings`` are
    further ones, ``key=value``."""

    sets: tuple[str, ...] = ()
    model: str = ""
    length: int | None = None
    settings: tuple[str, ...] = ()

    def query(self) -> str:
        """As the query of an address, without the question mark."""
        pairs = [("data", name) for name in self.sets]
        pairs += [("model", self.model)] if self.model else []
        pairs += [("length", str(self.length))] if self.length is not None else []
        pairs += [("setting", setting) for setting in self.settings]
        return urlencode(pairs)

    def config(self) -> dict[str, Any]:
        """The same as (part of) a training config."""
        data: dict[str, Any] = {"train": list(map(_entry, self.sets))} if self.sets else {}
        if self.length is not None:
            data["max_length"] = self.length
        config = {"data": data, "model": {"ref": self.model} if self.model else {}}
        try:
            return apply_overrides(config, self.settings)
        except ConfigError:  # a key below something that has none; the command tells it when it is asked
            return config

    def check(self) -> list[str]:
        """Arguments of the command that checks the sets."""
        return ["data", "check", "--json", *self._common(self.sets)]

    def show(self, name: str, first: int, count: int) -> list[str]:
        """Arguments of the command that shows ``count`` rows of one set from row ``first``, counted from 1."""
        return ["data", "show", "--json", "-n", str(count), "--row", str(first), *self._common((name,))]

    def _common(self, sets: Sequence[str]) -> list[str]:
        # `--model=…` is one word and the sets stand after `--`: what begins with a dash is never taken for an option. What holds
        # `=` would be taken for a setting, and so the sets are then given as the setting that they are.
        odd = any("=" in s and not s.startswith("{") for s in sets)
        words = [f"data.train={json.dumps([*map(_entry, sets)], ensure_ascii=False)}"] if odd else list(sets)
        length = [f"data.max_length={self.length}"] if self.length is not None else []
        return [*([f"--model={self.model}"] if self.model else []), "--", *words, *length, *self.settings]


def of_fields(sets: str, model: str, length: str, settings: str = "") -> tuple[Request, dict[str, str]]:
    """What was typed (one set a line, one setting a line), and by field the key of a text that says what is wrong with it."""
    problems = {}
    names, more = _lines(sets), _lines(settings)
    if not names:
        problems["sets"] = "problem.required"
    elif len(names) > MOST_SETS or not all(map(is_name, names)):
        problems["sets"] = "problem.name"
    elif not all(map(is_set, names)):
        problems["sets"] = "problem.set"
    model = model.strip()
    if model and not is_name(model):
        problems["model"] = "problem.name"
    number = as_length(length)
    if number is None and length.strip():
        problems["length"] = "problem.integer"
    if len(more) > MOST_SETTINGS or not all(map(is_setting, more)):
        problems["settings"] = "problem.setting"
    return Request(names, model, number, more), problems


def _lines(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))


def of_query(pairs: Sequence[tuple[str, str]]) -> Request:
    """Out of an address; what is not a set, a name, a number or a setting that a link may hold is left out."""
    sets = [value for key, value in pairs if key == "data" and is_set(value)]
    models = [value for key, value in pairs if key == "model" and is_name(value)]
    lengths = [as_length(value) for key, value in pairs if key == "length"]
    settings = [value for key, value in pairs if key == "setting" and is_setting(value) and _FROM_ADDRESS.match(value)]
    return Request(
        tuple(dict.fromkeys(sets))[:MOST_SETS],
        (models or [""])[-1],
        (lengths or [None])[-1],
        tuple(dict.fromkeys(settings))[:MOST_SETTINGS],
    )


def of_config(config: Mapping[str, Any]) -> Request:
    """Out of a training config, as far as it is filled in; a set may be a name or a mapping with ``set``."""
    data, model = config.get("data"), config.get("model")
    data = data if isinstance(data, Mapping) else {"train": data}
    model = model if isinstance(model, Mapping) else {"ref": model}
    train, ref, length = data.get("train"), model.get("ref"), data.get("max_length")
    sets = [_line(entry) for entry in (train if isinstance(train, list) else [train])]
    settings = [
        f"{section}.{key}={json.dumps(value, ensure_ascii=False, default=str)}"
        for section, values in (("data", data), ("model", model))
        for key, value in values.items()
        if key not in _SECTIONS[section]
    ]
    return Request(
        tuple(filter(is_set, sets))[:MOST_SETS],
        ref if isinstance(ref, str) and is_name(ref) else "",
        length if isinstance(length, int) and not isinstance(length, bool) else None,
        tuple(filter(is_setting, settings))[:MOST_SETTINGS],
    )


def is_set(text: str) -> bool:
    """A name, or a mapping with ``set`` whose values are plain or mappings of plain ones."""
    return is_name(text) and (not text.startswith("{") or isinstance(_entry(text), dict))


def is_setting(text: str) -> bool:
    """``key=value`` on one line, the key made of letters, dots and underscores: never an option, never a file's name."""
    found = _SETTING.fullmatch(text)
    return found is not None and is_name(text) and not _refers(found[2])


def _entry(line: str) -> Any:
    """A set as the config has it; what is no mapping stays text."""
    if not line.startswith("{") or _refers(line):
        return line
    try:
        value = yaml.safe_load(line)
    except (yaml.YAMLError, ValueError):  # ValueError: such as a date that there is not
        return line
    if not isinstance(value, dict) or not isinstance(value.get("set"), str):
        return line
    inner = [v for value in value.values() for v in (value.values() if isinstance(value, dict) else [value])]
    keys = [k for value in (value, *value.values()) if isinstance(value, dict) for k in value]
    return value if all(isinstance(v, _Plain) for v in inner) and all(isinstance(k, str) for k in keys) else line


def _line(entry: Any) -> str:
    """The other way round; "" for what is neither."""
    if not isinstance(entry, Mapping):
        return entry if isinstance(entry, str) else ""
    if entry.keys() == {"set"}:
        return str(entry["set"])
    text: str = yaml.safe_dump(dict(entry), default_flow_style=True, allow_unicode=True, sort_keys=False, width=10**6)
    return text.strip()


def _refers(text: str) -> bool:
    """Whether a YAML text refers to parts of itself: some lines of that can grow to gigabytes when they are read."""
    try:
        return any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError:
        return False


def is_name(text: str) -> bool:
    """Text that can stand for a set or a model: one line of visible characters."""
    return bool(text.strip()) and len(text) <= MOST_CHARACTERS and text.isprintable()


def as_length(text: str) -> int | None:
    """A whole number of tokens as it is typed; None for anything else."""
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else None


def written(arguments: Sequence[str]) -> str:
    """The same command for a terminal."""
    return shlex.join(["tunesmith", *(a for a in arguments if a != "--json")])
