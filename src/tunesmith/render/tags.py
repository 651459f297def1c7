"""Templates that mark themselves what the assistant writes: ``{% generation %} … {% endgeneration %}``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tunesmith.config.errors import RenderError
from tunesmith.render.slots import Span
from tunesmith.render.spans import Found


def tagged_spans(
    tokenizer: Any,
    template: str,
    messages: Sequence[dict[str, Any]],
    tools: Sequence[Any],
    variables: Mapping[str, Any],
) -> tuple[str, list[Span]]:
    """The text rendered by transformers and the characters between generation tags in it."""
    from transformers.utils.chat_template_utils import render_jinja_template

    texts, indices = render_jinja_template(
        conversations=[list(messages)],
        tools=list(tools) or None,
        chat_template=template,
        return_assistant_tokens_mask=True,
        add_generation_prompt=False,
        **{**tokenizer.special_tokens_map, **variables},
    )
    return str(texts[0]), [(int(a), int(b)) for a, b in indices[0]]


def narrowed(found: Found, tagged: Sequence[Span], assistants: set[int], origin: str) -> Found:
    """``found`` with the assistant turns begun where the template's tags say so, but never before the prompt ends.

    They end at the end-of-turn: what tags mark after it (a line end, mostly) is never generated. Raises RenderError when
    the tags leave a turn out: one of both is wrong.
    """
    spans = []
    for turn, (start, end) in zip(found.turns, found.spans):
        if turn in assistants:
            own = [(a, b) for a, b in tagged if a < end and b > start]
            if not own:
                raise RenderError(
                    f"{origin}: the generation tags of the chat template leave out turn {turn + 1}, which is to be learned",
                    hint="the tags stand in the wrong place; set model.template to a template without them",
                )
            start = max(start, own[0][0])
        spans.append((start, end))
    return replace(found, spans=tuple(spans))
