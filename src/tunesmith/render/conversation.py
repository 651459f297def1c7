"""A conversation -> token ids and the mask of what is learned, with the model's own chat template.

The whole conversation is rendered once by the tokenizer's Jinja template and tokenized once. Learned spans are found in
that text; there is no second copy of any template. Training, chat, parity checks and deployment all render through here.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from tunesmith.config.errors import RenderError
from tunesmith.data.example import Chat
from tunesmith.render.endings import Endings, find_endings
from tunesmith.render.fit import fit
from tunesmith.render.jinja_source import has_generation_tags, pinned_template, refusal
from tunesmith.render.learning import checked, learned_turns, straddling_tokens, token_mask
from tunesmith.render.slots import Span
from tunesmith.render.spans import Found, find_learned
from tunesmith.render.tags import narrowed, tagged_spans
from tunesmith.render.template import baked
from tunesmith.render.traits import Messages, Traits
from tunesmith.render.truncate import shortened

RESERVED = frozenset(
    {"messages", "conversation", "tools", "documents", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize",
     "padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs",
     "sanitize_control_tokens"}
)  # fmt: skip
"""Arguments of ``apply_chat_template`` that ``template_args`` may not set."""


@dataclass(frozen=True)
class Rendered:
    """``ids`` and ``mask`` (1 = learned) have the same length T; ``offsets[t]`` is the character span of token t in ``text``.

    The counts below say what is not as the data have it; all of them are 0 for most templates.
    """

    ids: tuple[int, ...]
    mask: tuple[int, ...]
    text: str
    offsets: tuple[Span, ...]
    origin: str = ""
    dropped_turns: int = 0
    """Turns that ``max_length`` left no room for."""
    straddling: int = 0
    """Learned turns whose first token also holds the end of the prompt before them; that token is not learned."""
    dropped_thinking: int = 0
    """Learned turns whose thinking the template does not show: it is not learned."""
    dropped_words: int = 0
    """Learned turns that call a tool and say something beside it which the template does not show."""
    unended: int = 0
    """Learned answers after which the template writes no end-of-turn."""
    unlike_serving: int = 0
    """Learned answers that will be asked for after another prompt than the one they are learned after: the template drops
    earlier thinking, or its generation prompt begins a thinking block that this answer does not have."""
    ignored_tools: int = 0
    """Definitions of tools that the template does not show; an error unless the renderer was told to ignore them."""

    @property
    def learned(self) -> int:
        """Number of learned tokens."""
        return sum(self.mask)


class Renderer:
    """Renders for one tokenizer.

    ``date`` is what templates that print the date are given: one per run, saved with it. ``learn`` is one of
    ``learning.Learn``. ``template`` is the text of a Jinja template used in place of the tokenizer's, ``template_args`` are
    variables for it (``enable_thinking`` …). ``ignore_tools``: tools that the template has no place for are counted, not refused.
    ``chat_template`` is the text as it is saved with the model: with the variables, without the date.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_length: int | None = None,
        date: datetime.date | None = None,
        learn: str = "answers",
        template: str | None = None,
        template_args: Mapping[str, Any] | None = None,
        ignore_tools: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.date = date or datetime.date.today()
        self.learn = checked(learn)
        self.template_args = dict(template_args or {})
        self.ignore_tools = ignore_tools
        if wrong := sorted(RESERVED & self.template_args.keys()):
            raise RenderError(
                f"template_args may not set {', '.join(wrong)}",
                hint="these are given to every template by the renderer",
            )
        own = template or getattr(tokenizer, "chat_template", None)
        # Of several named ones transformers takes "tool_use" where there are tools, "default" elsewhere.
        named = own if isinstance(own, dict) else {"default": own}
        self.template = pinned_template(named.get("default") or "", self.date)
        self.tool_template = pinned_template(named.get("tool_use") or named.get("default") or "", self.date)
        self.chat_template = baked(named.get("default") or "", self.template_args)
        self.traits = Traits(self._apply)
        if not self.template:
            raise RenderError(
                f"the tokenizer of {getattr(tokenizer, 'name_or_path', 'this model')} has no chat template (a base model?)",
                hint="model.template gives it one: a name of `tunesmith data templates`, or a .jinja file",
            )
        if not getattr(tokenizer, "is_fast", False):
            raise RenderError(
                "this model has only a slow tokenizer, which cannot tell where a token lies in the text",
                hint="look for a tokenizer.json in its repository, or convert the tokenizer with transformers",
            )

    @cached_property
    def endings(self) -> Endings:
        """How the template ends turns and begins answers."""
        return find_endings(self)

    def text(self, messages: Sequence[dict[str, Any]], *, generation: bool = False, tools: Sequence[Any] = ()) -> str:
        """The rendered text; ``generation`` adds the beginning of an assistant turn. Raises RenderError."""
        if tools and not self.traits.tools:
            if not self.ignore_tools:
                raise RenderError(
                    f"the chat template does not show tools to the model; there are {len(tools)}",
                    hint="take a model whose template knows tools, set model.template to one that does, or remove the tools",
                )
            tools = ()
        return self._apply(fit(messages, self.traits), generation, tools)

    def _apply(self, messages: Messages, generation: bool, tools: Sequence[Any]) -> str:
        """``apply_chat_template`` on messages as they are."""
        try:
            rendered = self.tokenizer.apply_chat_template(
                list(messages),
                chat_template=self._template_for(tools),
                tokenize=False,
                add_generation_prompt=generation,
                tools=list(tools) or None,
                **self.template_args,
            )
        except Exception as error:  # Jinja raises whatever a template's raise_exception or a filter raises
            raise RenderError(
                f"the chat template refuses this conversation: {refusal(error)}",
                hint="change the row, or take a template that allows it: model.template",
            ) from error
        return str(rendered)

    def _template_for(self, tools: Sequence[Any]) -> str:
        return self.tool_template if tools else self.template

    def encode_text(self, text: str) -> tuple[list[int], list[Span]]:
        """Ids and character offsets of rendered text. Special tokens, BOS too, are in the text already; none is added."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(encoded["input_ids"]), [(int(a), int(b)) for a, b in encoded["offset_mapping"]]

    def prompt_ids(self, messages: Sequence[dict[str, Any]], tools: Sequence[Any] = ()) -> list[int]:
        """Token ids of a prompt that ends where the assistant's answer begins."""
        return self.encode_text(self.text(messages, generation=True, tools=tools))[0]

    def render(self, chat: Chat) -> Rendered:
        """Ids, mask and offsets of a whole conversation.

        Raises RenderError, with the row named, when the template refuses it or leaves out a turn, when the learned spans
        cannot be found exactly, when the ids differ from ``apply_chat_template``'s, or when the last exchange alone does
        not fit ``max_length``.
        """
        try:
            return self._fitting(chat)
        except RenderError as error:
            if chat.origin and not error.message.startswith(chat.origin):
                raise RenderError(f"{chat.origin}: {error.message}", hint=error.hint) from error
            raise

    def _fitting(self, chat: Chat) -> Rendered:
        if chat.media:  # the text alone would teach to answer about what was not seen
            kinds = ", ".join(sorted({m.kind for m in chat.media}))
            raise RenderError(
                f"{chat.origin}: the row has {len(chat.media)} media ({kinds}), which models are not trained on yet",
                hint="leave such rows out (data.skip_bad=true), or take the media and their marks out to learn the text alone",
            )
        learned = learned_turns(chat.messages, self.learn)
        text = self.text(chat.as_dicts(), tools=chat.tools)
        ids, offsets = self.encode_text(text)
        limit = self.max_length
        if limit is None or len(ids) <= limit:
            return self._masked(chat, learned, text, ids, offsets)
        # What a turn says of itself must outlive the turns around it: "last answer" is the last one of the whole.
        flagged = replace(chat, messages=tuple(replace(m, train=flag) for m, flag in zip(chat.messages, learned)))
        rest = shortened(flagged, learned, lambda part: self._length(part) <= limit)
        if rest is None:
            raise RenderError(
                f"{chat.origin}: the conversation has {len(ids)} tokens, the longest allowed is {limit}, and its last "
                "exchange alone does not fit either",
                hint="raise data.max_length, or shorten the row",
            )
        kept = [m.learned for m in rest.messages]
        text = self.text(rest.as_dicts(), tools=rest.tools)
        shorter = self._masked(rest, kept, text, *self.encode_text(text))
        return replace(shorter, dropped_turns=len(chat.messages) - len(rest.messages))

    def _length(self, chat: Chat) -> int:
        return len(self.encode_text(self.text(chat.as_dicts(), tools=chat.tools))[0])

    def _masked(self, chat: Chat, learned: Sequence[bool], text: str, ids: list[int], offsets: list[Span]) -> Rendered:
        messages = chat.as_dicts()
        self._check_ids(messages, chat.tools, ids, chat.origin)
        if self.learn == "everything":
            excluded = self.find(
                chat, [not flag for flag in learned], text
            ).spans  # also when it is none: words are checked
            mask = [1 - hidden for hidden in token_mask(offsets, excluded)]
            mask[:1] = [0]
            answers = [flag and m.role == "assistant" for flag, m in zip(learned, chat.messages)]
            found = replace(self.find(chat, answers, text), spans=(), turns=())
        else:
            found = self.find(chat, learned, text)
            mask = token_mask(offsets, found.spans)
        if any(learned) and not any(mask):
            raise RenderError(
                f"{chat.origin}: no token of the answer would be learned",
                hint="is the answer empty, or are all turns marked train: false?",
            )
        return Rendered(
            tuple(ids),
            tuple(mask),
            text,
            tuple(offsets),
            chat.origin,
            straddling=straddling_tokens(offsets, found.spans),
            dropped_thinking=found.dropped_thinking,
            dropped_words=found.dropped_words,
            unended=found.unended,
            unlike_serving=found.unlike_serving,
            ignored_tools=len(chat.tools) if chat.tools and not self.traits.tools else 0,
        )

    def find(self, chat: Chat, learned: Sequence[bool], text: str) -> Found:
        """Where the turns with a flag stand in ``text``, the rendered ``chat``. Raises RenderError."""
        messages = chat.as_dicts()
        found = find_learned(self, messages, learned, text, chat.tools, chat.origin)
        template = self._template_for(chat.tools)
        if found.spans and has_generation_tags(template):
            fitted = fit(messages, self.traits)
            marked, tagged = tagged_spans(self.tokenizer, template, fitted, chat.tools, self.template_args)
            if marked == text and tagged:
                assistants = {i for i, m in enumerate(chat.messages) if m.role == "assistant"}
                found = narrowed(found, tagged, assistants, chat.origin)
        return found

    def _check_ids(self, messages: list[dict[str, Any]], tools: Sequence[Any], ids: Sequence[int], origin: str) -> None:
        shown = list(tools) if tools and self.traits.tools else None
        expected = self.tokenizer.apply_chat_template(
            fit(messages, self.traits),
            chat_template=self._template_for(tools if shown else ()),
            tokenize=True,
            return_dict=True,
            tools=shown,
            **self.template_args,
        )["input_ids"]
        if list(ids) == list(expected):
            return
        at = next((i for i, (a, b) in enumerate(zip(ids, expected)) if a != b), min(len(ids), len(expected)))
        ours, theirs = (self.tokenizer.convert_ids_to_tokens(list(i[at : at + 1])) for i in (ids, expected))
        raise RenderError(
            f"{origin}: the token ids differ from apply_chat_template's at position {at}: {ours} here, {theirs} there",
            hint="the tokenizer encodes the same text in two ways; please report the model",
        )
