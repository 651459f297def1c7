"""Read ``/api/show`` back and compare it with what was intended. Pure functions on the server's JSON."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from tunesmith.export.modelfile import Modelfile
from tunesmith.export.ollama_parameters import PARAMETERS, Value, checked_parameters

NO_CHAT_FORMAT = "{{ .Prompt }}"
"""The template Ollama falls back to: the bare question, without the model's chat format."""


def differences(
    shown: Mapping[str, Any], intended: Modelfile, digest: str | None
) -> tuple[dict[str, str], tuple[str, ...]]:
    """(what differs: its name -> words; the names of what was found as intended).

    ``digest`` is the SHA-256 in hex of the GGUF the model must stand on; None: of a file the server made itself. Fields that a server does not tell are neither.
    """
    wrong: dict[str, str] = {}
    proved: list[str] = []

    def check(what: str, same: bool, words: str) -> None:
        if same:
            proved.append(what)
        else:
            wrong[what] = words

    blobs = re.findall(r"^FROM .*?sha256[-:]([0-9a-f]{64})\s*$", shown.get("modelfile") or "", re.MULTILINE)
    if blobs and digest is not None:
        check("weights", digest in blobs, f"its weights are the file {blobs[0][:12]}…, not {digest[:12]}…")
    for name in ("template", "system"):
        text = getattr(intended, name)
        if text is not None:
            check(name, shown.get(name) == text, f"its {name} is {shorten(shown.get(name))}")
    if intended.license is not None:
        check("license", (shown.get("license") or "").strip() == intended.license.strip(), "its license text differs")
    if intended.messages:
        told = [{"role": m.get("role"), "content": m.get("content")} for m in shown.get("messages") or []]
        check("messages", told == list(intended.messages), "its example messages differ")
    has = shown_parameters(shown.get("parameters") or "")
    for name, value in intended.parameters.items():
        check(name, name in has and _same(has[name], value), f"its {name} is {has.get(name)!r}, not {value!r}")
    if "capabilities" in shown:
        can = shown["capabilities"] or []
        check("completion", "completion" in can, f"it cannot answer (capabilities: {', '.join(can) or 'none'})")
    return wrong, tuple(proved)


def notes(shown: Mapping[str, Any], intended: Modelfile, answer: str) -> tuple[str, ...]:
    """What a person should know though nothing went wrong."""
    found = []
    template = shown.get("template") or ""
    if template.strip() == NO_CHAT_FORMAT:
        found.append(
            "Ollama found no chat template for this model: it is given the bare question, without a chat format"
        )
    elif intended.template is None:
        found.append(f"Ollama chose the chat template itself: {shorten(template)}")
    extra = sorted(set(shown_parameters(shown.get("parameters") or "")) - set(intended.parameters))
    if extra:
        found.append(f"Ollama added parameters of its own: {', '.join(extra)}")
    if not answer.strip():
        found.append("the model answered the first question with nothing")
    return tuple(found)


def shown_parameters(text: str) -> dict[str, Value]:
    """The ``parameters`` text of ``/api/show`` (one per line, padded name, value as Go's ``%#v``), typed; unknown left out."""
    values: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        values.setdefault(name, []).append(go_unquote(value.strip()))
    return checked_parameters({name: _typed(name, texts) for name, texts in values.items() if name in PARAMETERS})


def _typed(name: str, texts: list[str]) -> Any:
    kind = PARAMETERS[name].type
    if kind is list:
        return texts
    if kind is bool:
        return texts[-1] == "true"
    return int(float(texts[-1])) if kind is int else float(texts[-1])


def _same(has: Value, wanted: Value) -> bool:
    if isinstance(has, float) and isinstance(wanted, (int, float)):
        return math.isclose(has, wanted, rel_tol=1e-6, abs_tol=1e-9)  # float32 on the way
    return has == wanted


def shorten(text: Any, most: int = 60) -> str:
    """``text`` quoted, cut to ``most`` characters."""
    shown = repr(text or "")
    return shown if len(shown) <= most else shown[:most] + "…"


_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|(.))", re.DOTALL)
_SHORT = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


def go_unquote(text: str) -> str:
    """A Go string literal in double quotes, as ``strconv.Quote`` writes it, read; anything else as it is."""
    if len(text) < 2 or not (text.startswith('"') and text.endswith('"')):
        return text

    def character(match: re.Match[str]) -> str:
        code = match[1] or match[2] or match[3]
        return chr(int(code, 16)) if code else _SHORT.get(match[4], match[4])

    return _ESCAPE.sub(character, text[1:-1])
