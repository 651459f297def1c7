"""Which template a model renders with, as one text: a person's, the model's own, or a named one told by the vocabulary.

The variables a person sets for it (``template_args``) are written into the text, so that every program that renders with
the saved template (transformers, vLLM, llama.cpp) has them too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.config.errors import RenderError
from tunesmith.render.named import check_tokens, chosen, described, named

FILE = "chat_template.jinja"
"""What the template is called beside a model, an adapter, and in a run."""
GIVEN = (
    "messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token", "unk_token", "pad_token", "raise_exception",
    "strftime_now", "namespace", "range", "dict", "lipsum", "cycler", "joiner",
)  # fmt: skip
"""Names that the renderer itself gives to templates."""


@dataclass(frozen=True)
class Settled:
    """``name`` is the named template or path that ``text`` came from, None for the model's own. ``reason`` is for people."""

    text: str
    name: str | None = None
    reason: str = ""


def is_path(choice: str) -> bool:
    """Does ``model.template`` name a file (and not a template of ours)?"""
    return choice.endswith((".jinja", ".jinja2", ".j2")) or "/" in choice or "\\" in choice


def read_template(choice: str) -> str:
    """The text of a named template or of a file. Raises RenderError when there is none, or it is no Jinja."""
    if not is_path(choice):
        return named(choice).text
    path = Path(choice).expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read as UTF-8 text ({error})"
        raise RenderError(
            f"model.template: {path}: {why}", hint="give a Jinja file, or a name of `tunesmith data templates`"
        ) from error
    _variables(text, str(path))
    return text


def own_template(tokenizer: Any) -> str | None:
    """The tokenizer's own template; of several named ones the default, which everybody else renders with too."""
    found = getattr(tokenizer, "chat_template", None)
    found = found.get("default") if isinstance(found, dict) else found
    return str(found) if found else None


def settle(tokenizer: Any, wanted: str | None = None, frozen: str | None = None) -> Settled:
    """The template to render with: ``frozen`` (the text a run began with), else ``wanted`` (a name or a path), else the
    tokenizer's own, else one that fits its vocabulary. Raises RenderError when tokens are missing."""
    own = own_template(tokenizer)
    if frozen is None and wanted is None:
        if own:
            return Settled(own)
        template, why = chosen(tokenizer)
        return Settled(
            template.text,
            template.name,
            f"the model has no chat template; {template.name} is used: {why}; model.template chooses another",
        )
    text = frozen if frozen is not None else read_template(str(wanted))
    known = described(wanted or "kept with the model", text)
    if known is not None:
        check_tokens(known, tokenizer)
    return Settled(text, wanted, f"chat template: {wanted}" if wanted else "")


def baked(text: str, args: Mapping[str, Any]) -> str:
    """``text`` with ``args`` set at its beginning, as if the renderer had been given them.

    Raises RenderError for names that the template does not ask for or that renderers give themselves, and for a template in
    which setting a variable is not the same as giving it.
    """
    if not args:
        return text
    known = _variables(text, "the chat template") - set(GIVEN)
    for name in args:
        if name in GIVEN or name not in known:
            listed = ", ".join(sorted(known)) or "none"
            said = "is given by the renderer itself" if name in GIVEN else "is no variable of the chat template"
            raise RenderError(f"model.template_args: {name!r} {said}", hint=f"variables of this template: {listed}")
    head = "".join(f"{{%- set {name} = {_literal(value)} %}}\n" for name, value in args.items())
    if not text.startswith(("{%-", "{{-", "{#-", "\n")):
        head = head.rstrip(
            "\n"
        )  # a line break after the tag must not reach the text where Jinja is run without trim_blocks
    _check_baked(text, args, head + text)
    return head + text


def _literal(value: Any) -> str:
    """A JSON value as Jinja writes it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(str(k))}: {_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_literal, value)) + "]"
    if value is None:
        return "none"
    return json.dumps(value, ensure_ascii=False)


PROBES: tuple[list[dict[str, Any]], ...] = (
    [{"role": "user", "content": "Hi"}],
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
    [
        {"role": "system", "content": "Short."},
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2", "reasoning_content": "easy"},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4", "reasoning_content": "hard"},
    ],
)


def _check_baked(text: str, args: Mapping[str, Any], result: str) -> None:
    for messages in PROBES:
        for generation in (False, True):
            given = _rendered(text, messages, generation, args)
            if given != _rendered(result, messages, generation, {}):
                raise RenderError(
                    "model.template_args cannot be kept with this chat template: setting them in it renders otherwise than giving them",
                    hint="write the values into a copy of the template, and give that as model.template",
                )


def _rendered(text: str, messages: Sequence[dict[str, Any]], generation: bool, args: Mapping[str, Any]) -> str | None:
    """The text of one conversation; None when the template refuses it."""
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        rendered, _ = render_jinja_template(
            conversations=[list(messages)], chat_template=text, add_generation_prompt=generation,
            bos_token="<bos>", eos_token="<eos>", **args,
        )  # fmt: skip
    except Exception:  # whatever a template raises: both texts must refuse alike
        return None
    return str(rendered[0])


def _variables(text: str, place: str) -> set[str]:
    """Names that a template uses and does not set everywhere. Raises RenderError when it is no Jinja."""
    import jinja2
    from jinja2.meta import find_undeclared_variables

    plain = re.sub(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}", "", text)  # a tag that transformers adds to Jinja
    try:
        tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=True).parse(plain)
    except jinja2.TemplateSyntaxError as error:
        raise RenderError(
            f"{place}:{error.lineno}: not a Jinja template: {error.message}",
            hint="mend the line; see docs/templates.md",
        ) from error
    found: set[str] = find_undeclared_variables(tree)
    return found
