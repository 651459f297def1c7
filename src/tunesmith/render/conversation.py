"""A conversation -> token ids and the mask of what is learned, with the model's own chat template.

The whole conversation is rendered once by the tokenizer's Jinja template and tokenized once. Learned spans are found in
that text; there is no second copy of any template. Training, chat, parity checks and deployment all render through here.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunesmith.config.errors import RenderError
from tunesmith.data.example import Chat
from tunesmith.render.spans import Span, learned_spans
from tunesmith.render.template import baked, own_template


@dataclass(frozen=True)
class Rendered:
    """``ids`` and ``mask`` (1 = learned) have the same length T; ``offsets[t]`` is the character span of token t in ``text``."""

    ids: tuple[int, ...]
    mask: tuple[int, ...]
    text: str
    offsets: tuple[Span, ...]
    origin: str = ""
    dropped_turns: int = 0
    straddling: int = 0
    """Learned turns whose first token also holds the end of the prompt before them; that token is not learned."""

    @property
    def learned(self) -> int:
        """Number of learned tokens."""
        return sum(self.mask)


class Renderer:
    """Renders for one tokenizer. ``date`` is what templates that print the date are given: one per run, saved with it.

    ``template`` is the text of a Jinja template in place of the tokenizer's own, ``template_args`` further variables for it.
    ``chat_template`` is the text as it is saved with the model: with the variables, without the date.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_length: int | None = None,
        date: datetime.date | None = None,
        template: str | None = None,
        template_args: Mapping[str, Any] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.date = date or datetime.date.today()
        template = template or own_template(tokenizer)
        self.template_args = dict(template_args or {})
        self.chat_template = baked(template or "", self.template_args)
        self.template = pinned_template(template or "", self.date)
        if not template:
            raise RenderError(
                f"the tokenizer of {getattr(tokenizer, 'name_or_path', 'this model')} has no chat template (a base model?)",
                hint="model.template gives it one: a name of `tunesmith data templates`, or a .jinja file",
            )
        if not getattr(tokenizer, "is_fast", False):
            raise RenderError("this model has only a slow tokenizer, which cannot tell where a token lies in the text")

    def text(self, messages: Sequence[dict[str, Any]], *, generation: bool = False, tools: Sequence[Any] = ()) -> str:
        """The rendered text; ``generation`` adds the beginning of an assistant turn."""
        try:
            rendered = self.tokenizer.apply_chat_template(
                list(messages),
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=generation,
                tools=list(tools) or None,
                **self.template_args,
            )
        except Exception as error:  # Jinja raises whatever a template's raise_exception or a filter raises
            raise RenderError(
                f"the chat template refuses this conversation: {type(error).__name__}: {error}"
            ) from error
        return str(rendered)

    def encode_text(self, text: str) -> tuple[list[int], list[Span]]:
        """Ids and character offsets of rendered text. Special tokens are in the text already; none is added."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(encoded["input_ids"]), [(int(a), int(b)) for a, b in encoded["offset_mapping"]]

    def prompt_ids(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """Token ids of a prompt that ends where the assistant's answer begins."""
        return self.encode_text(self.text(messages, generation=True))[0]

    def render(self, chat: Chat) -> Rendered:
        """Ids, mask and offsets of a whole conversation.

        Raises RenderError when the template refuses it, when the learned spans cannot be found exactly, when the ids
        differ from ``apply_chat_template``'s, or when it does not fit ``max_length`` even with the last exchange alone.
        """
        dropped = 0
        rendered = self._render(chat)
        while self.max_length is not None and len(rendered.ids) > self.max_length:
            shorter = _without_first_exchange(chat)
            if shorter is None:
                raise RenderError(
                    f"{chat.origin}: the conversation has {len(rendered.ids)} tokens, the longest allowed is {self.max_length}",
                    hint="raise data.max_length, or shorten the row",
                )
            dropped += len(chat.messages) - len(shorter.messages)
            chat = shorter
            rendered = self._render(chat)
        if dropped:
            rendered = replace(rendered, dropped_turns=dropped)
        return rendered

    def _render(self, chat: Chat) -> Rendered:
        messages = chat.as_dicts()
        text = self.text(messages, tools=chat.tools)
        ids, offsets = self.encode_text(text)
        expected = self._template_ids(messages, chat.tools)
        if ids != expected:
            at = next((i for i, (a, b) in enumerate(zip(ids, expected)) if a != b), min(len(ids), len(expected)))
            raise RenderError(f"{chat.origin}: the token ids differ from apply_chat_template's at position {at}")
        learned = [m.learned for m in chat.messages]
        spans = learned_spans(self, messages, learned, text, chat.tools, chat.origin)
        mask = [0] * len(ids)
        for start, end in spans:
            for t, (a, b) in enumerate(offsets):
                if start <= a < end and b > a:
                    mask[t] = 1
        if spans and not any(mask):
            raise RenderError(f"{chat.origin}: no token of the answer would be learned")
        straddling = sum(any(a < start < b for a, b in offsets) for start, _ in spans)
        return Rendered(tuple(ids), tuple(mask), text, tuple(offsets), chat.origin, straddling=straddling)

    def _template_ids(self, messages: list[dict[str, Any]], tools: Sequence[Any]) -> list[int]:
        result = self.tokenizer.apply_chat_template(
            messages, chat_template=self.template, tokenize=True, return_dict=True, tools=list(tools) or None, **self.template_args,
        )  # fmt: skip
        return list(result["input_ids"])


def pinned_template(template: str, date: datetime.date) -> str:
    """The template with every ``strftime_now("…")`` replaced by the text of ``date``: it then renders the same tomorrow.

    (transformers hands templates only plain values, so the function itself cannot be replaced.)
    """

    def text(call: re.Match[str]) -> str:
        return repr(datetime.datetime.combine(date, datetime.time()).strftime(call.group("format")))

    return re.sub(r"""strftime_now\(\s*(?P<quote>['"])(?P<format>[^'"]*)(?P=quote)\s*\)""", text, template)


def _without_first_exchange(chat: Chat) -> Chat | None:
    """The conversation without its earliest user turn and the answers to it; None when that would leave no exchange."""
    head = [m for m in chat.messages[:1] if m.role == "system"]
    rest = list(chat.messages[len(head) :])
    second = next((i for i, m in enumerate(rest) if i > 0 and m.role == "user"), None)
    if second is None:
        return None
    return Chat((*head, *rest[second:]), chat.tools, chat.media, chat.origin)
