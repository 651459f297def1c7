"""Helpers of the rendering tests: SmolLM2's tokenizer dressed as another family's, and what a rendering learns, in words."""

from __future__ import annotations

import copy
import datetime
import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import Any

from tunesmith.data.example import Chat, Message
from tunesmith.render.conversation import Rendered, Renderer

DATE = datetime.date(2026, 1, 2)
SPECIAL = re.compile(
    r"<\|[^|<>{}\s'\"]{1,40}\|>|<｜[^｜]+｜>|</?(?:start|end)_of_[a-z]+>|\[/?[A-Z_]{3,}\]|\[gMASK\]|<sop>|</?s>|<bos>|<eos>"
)
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather now.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "Name."}}},
    },
}


@cache
def trl_template(name: str) -> str | None:
    """A published template that trl carries (found, not imported: its import takes seconds)."""
    found = importlib.util.find_spec("trl")
    path = Path(found.origin or "").parent / "chat_templates" / f"{name}.jinja" if found else None
    return path.read_text(encoding="utf-8") if path is not None and path.is_file() else None


def dressed(tokenizer: Any, template: str, *, bos: str = "", eos: str = "", adds_bos: bool = False) -> Any:
    """A copy of ``tokenizer`` with the template and every special token that it mentions as one token.

    ``adds_bos``: its post-processor puts BOS before every text, as llama's and gemma's do.
    """
    from tokenizers import processors

    other = copy.deepcopy(tokenizer)
    other.add_tokens([t for t in dict.fromkeys([*SPECIAL.findall(template), bos, eos]) if t], special_tokens=True)
    other.chat_template = template
    if bos:
        other.bos_token = bos
    if eos:
        other.eos_token = eos
    if adds_bos:
        other.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, other.convert_tokens_to_ids(bos))]
        )
    return other


def chat(*texts: str, system: str | None = None) -> Chat:
    """Questions and answers in turn."""
    roles: Any = ["user", "assistant"]
    head = (Message("system", system),) if system is not None else ()
    return Chat((*head, *(Message(roles[i % 2], t) for i, t in enumerate(texts))), origin="rows.json:7")


def call(content: str = "", thinking: str = "", **arguments: Any) -> Message:
    """An assistant turn that asks for the weather."""
    asked = {"type": "function", "id": "call_1", "function": {"name": "weather", "arguments": arguments}}
    return Message("assistant", content, tool_calls=(asked,), thinking=thinking)


def told(content: str) -> Message:
    return Message("tool", content, name="weather", tool_call_id="call_1")


def learned_texts(rendered: Rendered) -> list[str]:
    """The text of each run of learned tokens."""
    runs: list[list[int]] = []
    for t, flag in enumerate(rendered.mask):
        if flag and t and rendered.mask[t - 1]:
            runs[-1][1] = rendered.offsets[t][1]
        elif flag:
            runs.append(list(rendered.offsets[t]))
    return [rendered.text[a:b] for a, b in runs]


def renderer_of(
    tokenizer: Any, template: str, *, bos: str = "", eos: str = "", adds_bos: bool = False, **how: Any
) -> Renderer:
    return Renderer(dressed(tokenizer, template, bos=bos, eos=eos, adds_bos=adds_bos), date=DATE, **how)
