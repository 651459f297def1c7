"""What the data page asks of the command line: sets, a model, the longest conversation. The one module that knows these names.

It comes from three places, none of them trusted: the fields of the page, its address (a link anywhere may hold one), and a
config of the new-run form. Pure functions.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

MOST_SETS = 50
MOST_CHARACTERS = 1000
"""Of one name; a path is seldom longer than 4096 bytes, and a name of a set never that long."""


@dataclass(frozen=True)
class Request:
    """``sets`` are registered names, files, folders, globs or hub names; ``model`` '' = no tokens; ``length`` is the longest
    conversation in tokens, None = the default."""

    sets: tuple[str, ...] = ()
    model: str = ""
    length: int | None = None

    def query(self) -> str:
        """As the query of an address, without the question mark."""
        pairs = [("data", name) for name in self.sets]
        pairs += [("model", self.model)] if self.model else []
        pairs += [("length", str(self.length))] if self.length is not None else []
        return urlencode(pairs)

    def config(self) -> dict[str, Any]:
        """The same as (part of) a training config."""
        data: dict[str, Any] = {"train": list(self.sets)} if self.sets else {}
        if self.length is not None:
            data["max_length"] = self.length
        return {"data": data, "model": {"ref": self.model} if self.model else {}}

    def check(self) -> list[str]:
        """Arguments of the command that checks the sets."""
        return ["data", "check", "--json", *self._common(self.sets)]

    def show(self, name: str, first: int, count: int) -> list[str]:
        """Arguments of the command that shows ``count`` rows of one set from row ``first``, counted from 1."""
        return ["data", "show", "--json", "-n", str(count), "--row", str(first), *self._common((name,))]

    def _common(self, sets: Sequence[str]) -> list[str]:
        # `--model=…` is one word and the sets stand after `--`: what begins with a dash is never taken for an option. What holds
        # `=` would be taken for a setting, and so the sets are then given as the setting that they are.
        words = [f"data.train={json.dumps(sets, ensure_ascii=False)}"] if any("=" in s for s in sets) else list(sets)
        length = [f"data.max_length={self.length}"] if self.length is not None else []
        return [*([f"--model={self.model}"] if self.model else []), "--", *words, *length]


def of_fields(sets: str, model: str, length: str) -> tuple[Request, dict[str, str]]:
    """What was typed (one set a line), and by field the key of a text that says what is wrong with it."""
    problems = {}
    names = tuple(dict.fromkeys(line.strip() for line in sets.splitlines() if line.strip()))
    if not names:
        problems["sets"] = "problem.required"
    elif len(names) > MOST_SETS or not all(map(is_name, names)):
        problems["sets"] = "problem.name"
    model = model.strip()
    if model and not is_name(model):
        problems["model"] = "problem.name"
    number = as_length(length)
    if number is None and length.strip():
        problems["length"] = "problem.integer"
    return Request(names, model, number), problems


def of_query(pairs: Sequence[tuple[str, str]]) -> Request:
    """Out of an address; what is not a name or a number is left out."""
    sets = [value for key, value in pairs if key == "data" and is_name(value)]
    models = [value for key, value in pairs if key == "model" and is_name(value)]
    lengths = [as_length(value) for key, value in pairs if key == "length"]
    return Request(tuple(dict.fromkeys(sets))[:MOST_SETS], (models or [""])[-1], (lengths or [None])[-1])


def of_config(config: Mapping[str, Any]) -> Request:
    """Out of a training config, as far as it is filled in; a set may be a name or a mapping with ``set``."""
    data, model = config.get("data"), config.get("model")
    data = data if isinstance(data, Mapping) else {"train": data}
    model = model.get("ref") if isinstance(model, Mapping) else model
    train = data.get("train")
    entries = train if isinstance(train, list) else [train]
    names = [entry.get("set") if isinstance(entry, Mapping) else entry for entry in entries]
    length = data.get("max_length")
    return Request(
        tuple(n for n in names if isinstance(n, str) and is_name(n))[:MOST_SETS],
        model if isinstance(model, str) and is_name(model) else "",
        length if isinstance(length, int) and not isinstance(length, bool) else None,
    )


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
