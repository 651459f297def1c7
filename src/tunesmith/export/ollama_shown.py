"""Read ``/api/show`` back and compare it with what was intended. Pure functions on the server's JSON."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from tunesmith.export.gguf_file import GgufHeader
from tunesmith.export.modelfile import Modelfile
from tunesmith.export.ollama_parameters import PARAMETERS, Value, checked_parameters

TYPES = frozenset(
    ["F32", "F16", "BF16", "F64", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
)
"""Types that every server calls so."""
COUNTED = ("general.parameter_count", "general.file_type", "general.quantization_version", "general.alignment")
"""Settings that a program that writes a file sets itself."""
NO_CHAT_FORMAT = "{{ .Prompt }}"
"""The template Ollama falls back to: the bare question, without the model's chat format."""


REWRITTEN = "weights, in a file that the server wrote anew"
"""Among what was found as intended."""
WRITTEN_ANEW = (
    "this server writes a GGUF anew when it takes it, so that its digest is another; the tensors and settings it tells are those that were "
    "sent, and its answers show their numbers"
)


def differences(
    shown: Mapping[str, Any], intended: Modelfile, digest: str | None, sent: GgufHeader | None = None
) -> tuple[dict[str, str], tuple[str, ...]]:
    """(what differs: its name -> words; the names of what was found as intended).

    ``digest`` is the SHA-256 in hex of the GGUF the model must stand on; None: of a file the server made itself. ``sent``: the header of
    that GGUF. Servers from 0.30 on write the file anew, with its settings in another order, so that its digest is another; then the tensors and
    settings they tell must be those that were sent. Fields that a server does not tell are neither.
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
        another = f"its weights are the file {blobs[0][:12]}…, not {digest[:12]}…"
        if digest in blobs:
            proved.append("weights")
        elif sent is None or (why := other_file(shown, sent)) is not None:
            wrong["weights"] = another if sent is None else f"{another}: {why}"
        else:
            proved.append(REWRITTEN)
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


def other_file(shown: Mapping[str, Any], sent: GgufHeader) -> str | None:
    """Why the file that a server shows is not that which was sent, in words: its tensors (names, shapes, types) and its settings (numbers,
    flags, texts); None when they are the same. The weights' numbers are not told; answers show them."""
    tensors = shown.get("tensors")
    if not tensors:
        return "it does not tell which tensors are in it"
    told = {str(one.get("name")): one for one in tensors}
    if told.keys() != sent.tensors.keys():
        name = sorted(told.keys() ^ sent.tensors.keys())[0]
        return f"{name} is {'not in it' if name in sent.tensors else 'in it and was not sent'}"
    for name, tensor in sent.tensors.items():
        if list(told[name].get("shape") or ())[::-1] != list(tensor.shape):
            return f"{name} has another shape"
        kind = str(told[name].get("type") or "").upper()
        if kind in TYPES and kind != tensor.type:
            return f"{name} is {kind}, {tensor.type} was sent"
    info = shown.get("model_info") or {}
    for key, value in sent.metadata.items():
        there = info.get(key)
        if there is None or isinstance(there, (list, dict)) or key in COUNTED:
            continue
        if isinstance(value, float) and isinstance(there, (int, float)):
            if not math.isclose(there, value, rel_tol=1e-5):
                return f"{key} is {there}, {value:g} was sent"
        elif isinstance(value, (bool, int, str)) and type(there) is type(value) and there != value:
            return f"{key} is {shorten(there)}, {shorten(value)} was sent"
    return None


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
    source = shown.get("template_source")
    if source and intended.template is not None and source != "go_template":
        found.append(
            f"Ollama says that it makes prompts with its own {source}, not with the TEMPLATE; check 1 compares what it makes"
        )
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
