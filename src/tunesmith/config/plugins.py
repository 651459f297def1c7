"""Plug-ins by file name: a package of modules, each with a ``Config`` class, becomes a union chosen by ``kind``.

Adding a stage, a format or a target is adding one file; there is no list to edit.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from functools import cache
from types import ModuleType
from typing import Annotated, Any, Union

from pydantic import BeforeValidator, Discriminator, Tag

from tunesmith.config.base import Config
from tunesmith.config.errors import ConfigError


@cache
def names(package: str) -> tuple[str, ...]:
    """The plug-ins of a package: its module names, sorted, without ``base`` and names that begin with ``_``."""
    path = importlib.import_module(package).__path__
    return tuple(sorted(m.name for m in pkgutil.iter_modules(path) if m.name != "base" and not m.name.startswith("_")))


def load(package: str, name: str) -> ModuleType:
    """The module of plug-in ``name``. Raises ConfigError with the nearest known name."""
    if name not in names(package):
        room = package.rpartition(".")[2]
        raise ConfigError(f"there is no {name!r} in {room}", hint=suggestion(name, names(package)))
    return importlib.import_module(f"{package}.{name}")


def suggestion(word: str, known: Any) -> str:
    """``did you mean …?`` when something is near, else the list of what there is."""
    known = list(known)
    begins = [name for name in known if len(word) >= 3 and str(name).startswith(word)]
    near = sorted(begins, key=len)[:1] or difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known: {', '.join(known)}" if known else "there is none"


def config_of(package: str, name: str) -> type[Config]:
    """The ``Config`` class of a plug-in."""
    found: type[Config] = load(package, name).Config
    return found


def kind_union(package: str, default: str) -> Any:
    """An annotated type: the configs of all plug-ins of ``package``, told apart by ``kind``; a plain string is a kind,
    and a mapping without one is of the kind ``default``.

    Every plug-in's Config must have a field ``kind: Literal["<its file name>"]``.
    """
    members = [Annotated[config_of(package, name), Tag(name)] for name in names(package)]

    def expand(value: Any) -> Any:
        if isinstance(value, str):
            return {"kind": value}
        return {"kind": default, **value} if isinstance(value, dict) else value

    def tag(value: Any) -> str | None:
        kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
        return kind if isinstance(kind, str) else None

    union = Union[tuple(members)]  # type: ignore[valid-type]  # noqa: UP007
    return Annotated[union, Discriminator(tag), BeforeValidator(expand)]
