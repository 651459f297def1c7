"""Check 5: what the server says of the model is what was meant: capabilities, context length, parameters, texts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tunesmith.export import go_capabilities
from tunesmith.export.deploy_report import Check
from tunesmith.export.gguf_file import read_gguf
from tunesmith.export.go_text import GoTemplateError
from tunesmith.export.ollama_shown import shown_parameters
from tunesmith.verbs.checks.subject import Served, Subject

MEANS = (
    "programs that ask Ollama what the model can do, or rely on its settings, are told something else than was trained"
)
TODO = "update Ollama and deploy again; a missing capability also means that the TEMPLATE has no place for it: then a newer server, which reads the GGUF's own template, may still have it"


def check(subject: Subject, served: Served | None) -> Check:
    """Compare ``/api/show`` with the Modelfile, the chat template and the GGUF."""
    wrong: list[str] = []
    figures: list[str] = []
    limit, in_file = _context(subject), read_gguf(subject.made.file).metadata
    told = dict(served.shown.get("model_info") or {}) if served is not None else in_file
    length = next((value for key, value in told.items() if key.endswith(".context_length")), None)
    if length is not None and limit and length != limit:
        wrong.append(f"its context length is {length}, the model's is {limit}")
    elif length is not None:
        figures.append(f"context length {length}")
    if served is None:
        if wrong:
            return Check(5, "failed", tuple(wrong), MEANS, TODO)
        return Check(5, "not measured", ("no server to ask", *figures, _settings(subject.modelfile.parameters)))
    if "capabilities" in served.shown:
        has, wanted = set(served.shown["capabilities"] or ()), capabilities(subject)
        missing = sorted(wanted - has)
        figures.append(f"capabilities: {', '.join(sorted(has)) or 'none'}")
        if missing:
            wrong.append(
                f"the chat template has {', '.join(missing)}, the server does not say so (it says: {', '.join(sorted(has)) or 'nothing'})"
            )
        extra = sorted((has & {"tools", "thinking"}) - wanted)
        if extra:
            wrong.append(f"the server says that it can do {', '.join(extra)}, the chat template has no place for that")
    else:
        figures.append("this server tells no capabilities")
    wrong += [words for what, words in served.wrong.items() if what != "completion"]
    figures.append(_settings(shown_parameters(served.shown.get("parameters") or "")))
    texts = [
        name
        for name in ("template", "system", "license", "messages")
        if getattr(subject.modelfile, name) and name not in served.wrong
    ]
    if texts:
        figures.append(f"as sent: {', '.join(texts)}")
    if wrong:
        return Check(5, "failed", (*wrong, *figures), MEANS, TODO)
    return Check(5, "passed", tuple(figures))


def capabilities(subject: Subject) -> set[str]:
    """What the model's chat template can do, in Ollama's words."""
    able = {"tools": subject.template.tools, "thinking": subject.template.thinking}
    return {"completion", *(name for name, has in able.items() if has)}


def capabilities_of(subject: Subject, served: Served | None) -> set[str]:
    """What the server says that it can do; without one, or where it does not say, what the TEMPLATE has a place for."""
    if served is not None and "capabilities" in served.shown:
        return set(served.shown["capabilities"] or ())
    try:
        return set(go_capabilities.capabilities(subject.modelfile.template or ""))
    except GoTemplateError:
        return {"completion"}


def _context(subject: Subject) -> int:
    config = json.loads((subject.made.merged / "config.json").read_text(encoding="utf-8"))
    return int(config.get("text_config", config).get("max_position_embeddings") or 0)


def _settings(parameters: Mapping[str, Any]) -> str:
    return "parameters: " + (
        ", ".join(f"{name} {json.dumps(value, ensure_ascii=False)}" for name, value in parameters.items()) or "none"
    )
