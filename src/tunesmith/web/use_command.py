"""What was filled in -> the command line that says it. Pure functions; commands and settings are known from schemas only.

A union at the top (``to``) becomes ``--to KIND`` and ``key=value`` for the settings of that kind; every other setting is the option
of its name (``as_`` is ``--as``). A list gives its option once for each item, a switch gives ``--name`` or ``--no-name``.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.web.form_model import Field


def arguments(command: str, models: Sequence[str], fields: Sequence[Field], config: Mapping[str, Any]) -> list[str]:
    """``tunesmith``'s arguments for ``command`` on ``models``; ``config``: what differs from the defaults (``form_values``)."""
    words, settings = [command, *models], []
    for field in fields:
        option, value = f"--{field.name.rstrip('_').replace('_', '-')}", config.get(field.name)
        if field.shape == "union":
            kind, own = _union(field, value)
            words += [option, kind.replace("_", "-")]
            settings += [f"{key}={_text(one)}" for key, one in own.items()]
        elif value is None:
            continue
        elif isinstance(value, bool):
            words.append(option if value else f"--no-{option[2:]}")
        else:
            for one in value if isinstance(value, list) else [value]:
                words += [option, _text(one)] if not str(one).startswith("-") else [f"{option}={_text(one)}"]
    return words + settings


def _union(field: Field, value: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(value, Mapping):
        own = {key: one for key, one in value.items() if key != "kind"}
        return str(value.get("kind", field.default)), own
    return str(value if value is not None else field.default), {}


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def shown(words: Sequence[str]) -> str:
    """The command as a person types it."""
    return shlex.join(["tunesmith", *words])
