"""The PARAMETERs an Ollama model may carry: their names, types and sensible ranges.

The server does not check them when a model is created: an unknown name is dropped in silence, and a wrong type
(``temperature: "hot"``) is accepted and then breaks every chat with a 500. So they are checked here, before anything is
sent. Source: ``Options`` and ``Runner`` in Ollama's ``api/types.go``; https://docs.ollama.com/modelfile.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from tunesmith.config.errors import ExportError

Value = str | int | float | bool | list[str]


class Kind(NamedTuple):
    """What one parameter takes: its type, and the least and greatest value that mean something (None: no bound)."""

    type: type
    low: float | None = None
    high: float | None = None


PARAMETERS: dict[str, Kind] = {
    "frequency_penalty": Kind(float),
    "main_gpu": Kind(int, 0),
    "min_p": Kind(float, 0, 1),
    "num_batch": Kind(int, 1),
    "num_ctx": Kind(int, 1),
    "num_gpu": Kind(int, -1),
    "num_keep": Kind(int, -1),
    "num_predict": Kind(int, -2),
    "num_thread": Kind(int, 0),
    "presence_penalty": Kind(float),
    "repeat_last_n": Kind(int, -1),
    "repeat_penalty": Kind(float, 0),
    "seed": Kind(int),
    "stop": Kind(list),
    "temperature": Kind(float, 0),
    "top_k": Kind(int, 0),
    "top_p": Kind(float, 0, 1),
    "typical_p": Kind(float, 0, 1),
    "use_mmap": Kind(bool),
}
DEPRECATED = {
    *("f16_kv", "logits_all", "low_vram", "mirostat", "mirostat_eta", "mirostat_tau"),
    *("numa", "penalize_newline", "tfs_z", "use_mlock", "vocab_only"),
}
_INT64 = 2**63


def checked_parameters(parameters: Mapping[str, Any]) -> dict[str, Value]:
    """``parameters`` in the types Ollama's JSON wants: ``stop`` a list of strings, whole numbers as int, others as float.

    Raises ExportError naming the parameter, for an unknown or deprecated name, a wrong type, or a value out of range.
    """
    checked = {name: _checked(name, value) for name, value in parameters.items()}
    return {name: value for name, value in checked.items() if value != []}


def _checked(name: str, value: Any) -> Value:
    kind = PARAMETERS.get(name)
    if kind is None:
        if name in DEPRECATED:
            raise ExportError(f"Ollama no longer reads the parameter {name!r}", hint="leave it out; it has no effect")
        close = difflib.get_close_matches(name, PARAMETERS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(PARAMETERS)}"
        raise ExportError(f"Ollama knows no parameter {name!r}", hint=hint)
    if kind.type is list:
        return _stop(name, value)
    if kind.type is bool:
        if not isinstance(value, bool):
            raise _wrong(name, value, "true or false")
        return value
    whole = kind.type is int
    accepted = isinstance(value, int) if whole else isinstance(value, (int, float))
    if isinstance(value, bool) or not accepted:
        raise _wrong(name, value, "a whole number" if whole else "a number")
    if not math.isfinite(value) or not -_INT64 <= value < _INT64:
        raise _wrong(name, value, "a finite number of 64 bits")
    if (kind.low is not None and value < kind.low) or (kind.high is not None and value > kind.high):
        bounds = f"from {kind.low:g} to {kind.high:g}" if kind.high is not None else f"at least {kind.low:g}"
        raise _wrong(name, value, bounds)
    return int(value) if whole else float(value)


def _stop(name: str, value: Any) -> list[str]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, (list, tuple)) or not all(isinstance(item, str) and item for item in values):
        raise _wrong(name, value, "a text or a list of texts, none empty")
    return list(values)


def _wrong(name: str, value: Any, wanted: str) -> ExportError:
    return ExportError(
        f"the Ollama parameter {name!r} is {value!r}, it must be {wanted}",
        hint="Ollama would accept it now and fail at the first question; nothing was sent",
    )


def from_text(name: str, texts: list[str]) -> Value:
    """The values of one parameter as a Modelfile writes them, in its type. Raises ExportError."""
    kind = PARAMETERS.get(name)
    if kind is None or kind.type is list:
        return _checked(name, texts)
    text = texts[-1]
    try:
        if kind.type is bool:
            value: Any = {"1": True, "t": True, "true": True, "0": False, "f": False, "false": False}[text.lower()]
        else:
            value = kind.type(text)
    except (ValueError, KeyError):
        value = text
    return _checked(name, value)
