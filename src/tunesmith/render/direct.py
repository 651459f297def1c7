"""The compiled chat template, called without what ``apply_chat_template`` does around it for every row.

For messages of plain texts that is: dropping keys without a value, copying, choosing the template; a third to half of the time
of a rendering. What is rendered here is not taken on trust: it must be a skeleton (``render.skeleton``), which came from
``apply_chat_template``, filled with the row's own words.
"""

from __future__ import annotations

from typing import Any

from tunesmith.render.conversation import Renderer
from tunesmith.render.fit import fit
from tunesmith.render.traits import THINKING_KEYS


class DirectTemplate:
    """Renders messages that hold nothing but text, for one renderer."""

    def __init__(self, renderer: Renderer, compiled: Any) -> None:
        self._traits = renderer.traits
        self._render = compiled.render
        self._variables = {
            **renderer.tokenizer.special_tokens_map,
            **renderer.template_args,
            "tools": None,
            "documents": None,
            "add_generation_prompt": False,
        }

    @staticmethod
    def of(renderer: Renderer) -> DirectTemplate | None:
        """None where ``apply_chat_template`` may do something else (a tokenizer with its own, other versions)."""
        from transformers import PreTrainedTokenizerBase

        try:
            from transformers.utils.chat_template_utils import _compile_jinja_template as compiled
        except ImportError:
            return None
        own = type(renderer.tokenizer)
        same = all(
            getattr(own, name) is getattr(PreTrainedTokenizerBase, name)
            for name in ("apply_chat_template", "get_chat_template", "special_tokens_map")
        )
        if not same or not all(type(v) in (str, int, float, bool) for v in renderer.template_args.values()):
            return None
        try:
            return DirectTemplate(renderer, compiled(renderer.template))
        except Exception:  # a template that does not compile: the exact way says so
            return None

    def text(self, messages: list[dict[str, Any]]) -> str | None:
        """The rendered messages; None where they hold more than text or the template refuses them."""
        for message in messages:
            if any(type(value) is not str for value in message.values()) or not message.keys().isdisjoint(
                THINKING_KEYS
            ):
                return None
        try:
            return str(self._render(messages=fit(messages, self._traits), **self._variables))
        except Exception:  # whatever a template raises: the exact way says it
            return None
