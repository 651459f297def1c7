"""Many conversations at once, each exactly as ``Renderer.render`` gives it: one rendering a row, one call of the tokenizer.

The exact way costs a rendering more for each answer's beginning and another for its end. Here a conversation is rendered
once; where the text is the skeleton of its shape filled with its own words (``render.skeleton``), the learned spans follow.
Every row of which that cannot be said takes the exact way: another text, words that the template looks for, tool calls, too
many tokens, nothing learned, an error.

Why the ids are those of ``apply_chat_template`` on every row: the text is what ``apply_chat_template(tokenize=False)`` gave for
that row, and with ``tokenize=True`` it does no more than call the tokenizer on this text, without special tokens or padding,
as is done here. One row of every batch is rendered the exact way too (which compares the ids) and must be the same.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from tunesmith.config.errors import RenderError
from tunesmith.data.example import Chat
from tunesmith.render.conversation import Rendered, Renderer
from tunesmith.render.direct import DirectTemplate
from tunesmith.render.learning import learned_turns
from tunesmith.render.pieces import Pieces
from tunesmith.render.positions import ByteTable, Tokens, locate, mask_of
from tunesmith.render.skeleton import Guards, Skeleton, derive, guards_of, shape_of
from tunesmith.render.slots import Span

MOST_SHAPES = 4096
"""Shapes that are remembered; more than that are not a data set of recurring shapes."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """What training needs of a ``Rendered``: ``ids`` (uint32) and ``mask`` (bool) of length T, and its counts."""

    ids: np.ndarray
    mask: np.ndarray
    origin: str = ""
    dropped_turns: int = 0
    straddling: int = 0
    dropped_thinking: int = 0
    dropped_words: int = 0
    unended: int = 0
    unlike_serving: int = 0
    ignored_tools: int = 0


COUNTS = tuple(f.name for f in fields(Encoded) if f.type == "int")
"""The counts of an encoded row; those of ``render.spans.Found`` follow from the shape of a conversation."""
_OF_SHAPE = ("dropped_thinking", "dropped_words", "unended", "unlike_serving")


@dataclass(frozen=True)
class _Planned:
    """A row of the fast way: its text, the spans that were looked for in it, and its counts."""

    row: int
    text: str
    spans: list[Span]
    counts: dict[str, int]


@dataclass(frozen=True)
class _Known:
    """What is known of a shape."""

    skeleton: Skeleton
    counts: dict[str, int]


class BatchRenderer:
    """Renders many rows for one ``Renderer`` and remembers the skeletons it has met. It can be pickled (without them)."""

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer
        self._guards = _guards(renderer)
        self._shapes: dict[Any, _Known | None] = {}
        self._seen: set[Any] = set()
        self._table: ByteTable | None = ByteTable.of(renderer.tokenizer)
        self._pieces = Pieces.of(renderer.tokenizer, self._table)
        self._direct = DirectTemplate.of(renderer)

    def __reduce__(self) -> tuple[Any, ...]:
        return BatchRenderer, (self.renderer,)

    def encode(self, chats: Sequence[Chat]) -> list[Encoded | RenderError]:
        """Ids and mask of each conversation, or why it has none."""
        planned = self._plan(chats)
        results: list[Encoded | RenderError | None] = [None] * len(chats)
        for part, tokens in self._located(planned):
            for plan, at, mask, cut in self._fitting(part, tokens):
                results[plan.row] = Encoded(tokens.ids[at], mask, chats[plan.row].origin, straddling=cut, **plan.counts)
        self._spot_check(chats, results)
        for i, result in enumerate(results):
            if result is None:
                exact = self._exact(chats[i])
                results[i] = exact if isinstance(exact, RenderError) else encoded(exact)
        return results  # type: ignore[return-value]

    def render(self, chats: Sequence[Chat]) -> list[Rendered | RenderError]:
        """``Renderer.render`` of each conversation, or the error it raises."""
        planned = self._plan(chats)
        tokens = locate(self.renderer.tokenizer, [p.text for p in planned], None)
        results: list[Rendered | RenderError | None] = [None] * len(chats)
        for plan, at, mask, cut in self._fitting(planned, tokens):
            results[plan.row] = Rendered(
                tuple(tokens.ids[at].tolist()),
                tuple(mask.astype(int).tolist()),
                plan.text,
                tuple(zip(tokens.begin[at].tolist(), tokens.end[at].tolist())),
                chats[plan.row].origin,
                straddling=cut,
                **plan.counts,
            )
        return [self._exact(chat) if result is None else result for chat, result in zip(chats, results)]

    def _located(self, planned: Sequence[_Planned]) -> Iterator[tuple[Sequence[_Planned], Tokens]]:
        """The planned rows with their tokens: those made of pieces, then the others."""
        rest = planned
        if self._pieces is not None:
            made = self._pieces.encode([p.text for p in planned])
            yield [planned[i] for i in made.rows], made.tokens
            rest = [planned[i] for i in made.others]
        if rest:
            yield rest, locate(self.renderer.tokenizer, [p.text for p in rest], self._table)

    def _plan(self, chats: Sequence[Chat]) -> list[_Planned]:
        """Text and learned spans of the rows that can go the fast way."""
        planned = []
        for row, chat in enumerate(chats):
            known = self._known(chat)
            if known is None:
                continue
            try:
                messages = chat.as_dicts()
                direct = self._direct.text(messages) if self._direct is not None and not chat.tools else None
                text = self.renderer.text(messages, tools=chat.tools) if direct is None else direct
            except RenderError:
                continue  # the exact way says it
            spans = known.skeleton.spans_in(chat, text)
            if spans is not None:
                planned.append(_Planned(row, text, spans, known.counts))
        return planned

    def _known(self, chat: Chat) -> _Known | None:
        """What is known of the chat's shape; None when it must take the exact way."""
        guards = self._guards
        if guards is None or any(guards.stop(part) for m in chat.messages for part in (m.content, m.thinking) if part):
            return None
        shape = shape_of(chat)
        if shape is None:
            return None
        if shape in self._shapes:
            return self._shapes[shape]
        if shape not in self._seen:  # a shape met once is cheaper rendered exactly
            if len(self._seen) < MOST_SHAPES:
                self._seen.add(shape)
            return None
        known: _Known | None = None
        try:
            skeleton = derive(chat, self._text, lambda probe, text: self._found(probe, text)[0])
            text = self._text(chat)
            spans, counts = self._found(chat, text)
            if skeleton is not None and skeleton.spans_in(chat, text) in (spans, None):
                known = _Known(skeleton, counts)
        except RenderError:
            return None  # the exact way says it; another row may be better
        self._shapes[shape] = known
        return known

    def _text(self, chat: Chat) -> str:
        return self.renderer.text(chat.as_dicts(), tools=chat.tools)

    def _found(self, chat: Chat, text: str) -> tuple[list[Span], dict[str, int]]:
        """The spans that make the mask (those not learned, where everything else is) and the counts of the shape."""
        renderer = self.renderer
        learned = learned_turns(chat.messages, renderer.learn)
        counts = {"ignored_tools": len(chat.tools) if chat.tools and not renderer.traits.tools else 0}
        if renderer.learn == "everything":
            hidden = renderer.find(chat, [not flag for flag in learned], text)
            answers = [flag and m.role == "assistant" for flag, m in zip(learned, chat.messages)]
            found = renderer.find(chat, answers, text)
            return list(hidden.spans), counts | {name: getattr(found, name) for name in _OF_SHAPE}
        found = renderer.find(chat, learned, text)
        return list(found.spans), counts | {name: getattr(found, name) for name in _OF_SHAPE}

    def _fitting(self, planned: Sequence[_Planned], tokens: Tokens) -> list[tuple[_Planned, slice, np.ndarray, int]]:
        """The planned rows that are not too long and have something learned where they should."""
        mask, cut = mask_of(tokens, [p.text for p in planned], [p.spans for p in planned])
        everything = self.renderer.learn == "everything"
        if everything:
            mask, cut = ~mask, [0] * len(planned)
            mask[tokens.bounds[:-1][np.diff(tokens.bounds) > 0]] = False  # nothing comes before the first token
        longest = self.renderer.max_length
        fitting = []
        bounds = tokens.bounds.tolist()
        for plan, a, b, straddling in zip(planned, bounds, bounds[1:], cut):
            at = slice(a, b)
            if (longest is None or b - a <= longest) and (mask[at].any() or not (plan.spans or everything)):
                fitting.append((plan, at, mask[at], straddling))
        return fitting

    def _exact(self, chat: Chat) -> Rendered | RenderError:
        try:
            return self.renderer.render(chat)
        except RenderError as error:
            return error

    def _spot_check(self, chats: Sequence[Chat], results: Sequence[Encoded | RenderError | None]) -> None:
        """Raises RenderError when a row of the fast way is not what the exact way gives."""
        quick = [(chat, result) for chat, result in zip(chats, results) if isinstance(result, Encoded)]
        if not quick:
            return
        chat, result = random.choice(quick)  # another one each time
        exact = self._exact(chat)
        if isinstance(exact, RenderError) or not same(encoded(exact), result):
            raise RenderError(
                f"{chat.origin}: the row came out differently in a batch and alone; encoding stopped",
                hint="this is a fault of ours: please report the model and the row",
            )


def render_batch(renderer: Renderer, chats: Sequence[Chat]) -> list[Rendered | RenderError]:
    """``renderer.render(chat)`` for each conversation, or the RenderError it raises, as one batch."""
    return BatchRenderer(renderer).render(chats)


def encoded(rendered: Rendered) -> Encoded:
    """The slim form of a rendered conversation."""
    return Encoded(
        np.array(rendered.ids, dtype=np.uint32),
        np.array(rendered.mask, dtype=bool),
        rendered.origin,
        **{name: getattr(rendered, name) for name in COUNTS},
    )


def same(a: Encoded, b: Encoded) -> bool:
    """Whether two encoded rows are equal in every field."""
    return (
        np.array_equal(a.ids, b.ids)
        and np.array_equal(a.mask, b.mask)
        and a.origin == b.origin
        and all(getattr(a, name) == getattr(b, name) for name in COUNTS)
    )


def _guards(renderer: Renderer) -> Guards | None:
    """The guards of both templates (tools may have their own); None when one of them cannot be read."""
    both = [guards_of(template) for template in {renderer.template, renderer.tool_template}]
    if None in both:
        return None
    known = [g for g in both if g is not None]
    return Guards(
        tuple(sorted({word for g in known for word in g.inside})), frozenset(w for g in known for w in g.whole)
    )
