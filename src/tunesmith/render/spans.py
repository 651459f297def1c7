"""Which characters of a rendered conversation are learned: what the assistant writes, its end-of-turn included.

* An answer begins where the prompt before it ends (``render(messages[:i], add_generation_prompt=True)``), if that text is a
  prefix of the whole: then what the model will generate is learned, an empty thinking block or a tool call too. Templates that
  rewrite earlier turns (they drop old thinking) have no such prefix: the answer begins after its own generation prompt,
  or at its first words, and is counted in ``unlike_serving``.
* It ends with the end-of-turn after its words (``endings``). Where the words stand is found with markers (``slots``), once for the
  whole conversation; where a template answers to what turns say, once for each learned turn.

What cannot be found exactly is an error, never a guess.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tunesmith.config.errors import RenderError
from tunesmith.render.endings import Endings
from tunesmith.render.endings import TextRenderer as _TextRenderer
from tunesmith.render.slots import Mark, Marked, Slot, Span, align, writings
from tunesmith.render.traits import CALL_ID

_EMPTY_BLOCK = re.compile(r"\A\s*<think>\s*</think>\s*")

CUT = (
    "does it hold a tag that the template looks for, such as </think>? Move the thought to the beginning, or write the tag in "
    "another way"
)


class TextRenderer(_TextRenderer, Protocol):
    """What is needed of a renderer."""

    @property
    def endings(self) -> Endings: ...


@dataclass(frozen=True)
class Found:
    """``spans[k]`` belongs to turn ``turns[k]``; the counts are of learned assistant turns, see ``Rendered``."""

    spans: tuple[Span, ...] = ()
    turns: tuple[int, ...] = ()
    dropped_thinking: int = 0
    dropped_words: int = 0
    unended: int = 0
    unlike_serving: int = 0


@dataclass(frozen=True)
class _Run:
    """Words of one turn with nothing of another turn between them, in ``[first, last)``; the template's own text around them
    goes from ``lower`` to ``upper``. A turn without words has one run with ``first`` None."""

    first: int | None
    last: int
    lower: int
    upper: int
    parts: frozenset[str]


def find_learned(
    renderer: TextRenderer,
    messages: list[dict[str, Any]],
    learned: Sequence[bool],
    text: str,
    tools: Sequence[Any] = (),
    origin: str = "",
) -> Found:
    """The learned spans in ``text``, which is ``renderer.text(messages, tools=tools)``, in order.

    Renders once for the words and once for each learned assistant turn. Raises RenderError when a turn is not found
    exactly, or when the template leaves out what a turn says.
    """
    slots = _slots(renderer, messages, text, tools, origin)
    places = None if slots is None else _places(slots, len(messages), len(text))
    spans: list[Span] = []
    turns: list[int] = []
    counts = {"dropped_thinking": 0, "dropped_words": 0, "unended": 0, "unlike_serving": 0}
    for i in (i for i, wanted in enumerate(learned) if wanted):
        message = messages[i]
        runs = places[i] if places is not None else [_alone(renderer, messages, i, text, tools, origin)]
        floor = max((end for _, end in spans), default=0)
        start, like = _start(renderer, messages, i, text, tools, floor, runs[0])
        if start is None:
            raise _lost(origin, i, empty=True)
        for run in runs:
            begin = start if run is runs[0] or run.first is None else run.first
            after = begin if run.first is None else run.last
            calls = bool(message.get("tool_calls")) and (len(runs) == 1 or "call" in run.parts)
            length = renderer.endings.length(text[after : run.upper], call=calls, wordless=run.first is None)
            spans.append((begin, after + length))
            turns.append(i)
        if message["role"] == "assistant":
            shown = frozenset().union(*(run.parts for run in runs))
            counts["unlike_serving"] += not like
            counts["unended"] += not _ends(renderer.endings, text[after : after + length])
            counts["dropped_thinking"] += bool(message.get("reasoning_content", "").strip()) and "thinking" not in shown
            counts["dropped_words"] += bool(message["content"].strip()) and "content" not in shown
    order = sorted(range(len(spans)), key=spans.__getitem__)
    return Found(tuple(spans[k] for k in order), tuple(turns[k] for k in order), **counts)


def _ends(endings: Endings, tail: str) -> bool:
    return any(
        e.strip() and tail.endswith(e.strip()) for e in (endings.last, endings.middle, endings.call, *endings.headers)
    )


def _lost(origin: str, i: int, *, empty: bool = False) -> RenderError:
    if empty:
        return RenderError(
            f"{origin}: turn {i + 1} is empty, and the chat template leaves no trace of where it stands",
            hint="remove the empty answer: it would teach the model to say nothing",
        )
    return RenderError(
        f"{origin}: cannot tell where turn {i + 1} stands in the rendered text: the chat template rewrites it",
        hint="this template treats the words of the answer in a special way; look at the row, or report the model",
    )


def _slots(
    renderer: TextRenderer, messages: list[dict[str, Any]], text: str, tools: Sequence[Any], origin: str
) -> list[Slot] | None:
    """Where the words of all turns stand; None when the template writes other things around markers than around them."""
    marked = Marked(messages, range(len(messages)), text)
    try:
        other = renderer.text(marked.messages, tools=tools)
    except RenderError:  # the template looks into the words
        _check_words(marked.marks, messages, text, origin)
        return None
    literals, marks = marked.shown(other)
    slots = align(text, literals, marks)
    shown = set(marks)
    # Thinking, and words beside a tool call, are counted; the rest may not get lost.
    may_go = {i for i, m in enumerate(messages) if m.get("tool_calls")}
    left_out = next(
        (
            m
            for m in marked.marks
            if m not in shown and (m.part == "call" or (m.part == "content" and m.turn not in may_go))
        ),
        None,
    )
    if left_out is not None and left_out.value.strip() not in text:
        role = messages[left_out.turn]["role"]
        what = "the tool call of " if left_out.part == "call" else ""
        raise RenderError(
            f"{origin}: the chat template leaves out {what}turn {left_out.turn + 1} ({role})",
            hint=f"this template has no place for it; remove such {role} turns, or set model.template to one that has",
        )
    if slots is None:
        _check_words([m for m in marked.marks if m in shown], messages, text, origin)
    return slots


def _check_words(marks: Sequence[Mark], messages: list[dict[str, Any]], text: str, origin: str) -> None:
    """Raise RenderError when words of a turn stand nowhere in the text, learned or not: it would not be the row that is learned.
    Thinking, and words beside a tool call, may be left out: they are counted."""
    for mark in marks:
        may_go = mark.part == "thinking" or (mark.part == "content" and messages[mark.turn].get("tool_calls"))
        if not may_go and not any(words.strip() in text for words in writings(_said(mark))):
            raise RenderError(
                f"{origin}: the chat template leaves out some words of turn {mark.turn + 1}",
                hint=CUT,
            )


def _places(slots: list[Slot], turns: int, length: int) -> list[list[_Run]]:
    """The runs of each turn, in one pass over the slots."""
    places: list[list[_Run]] = [[] for _ in range(turns)]
    at = 0
    while at < len(slots):
        past = at
        while past < len(slots) and slots[past].mark.turn == slots[at].mark.turn:
            past += 1
        lower = slots[at - 1].end if at else 0
        upper = slots[past].start if past < len(slots) else length
        parts = frozenset(slot.mark.part for slot in slots[at:past])
        places[slots[at].mark.turn].append(_Run(slots[at].start, slots[past - 1].end, lower, upper, parts))
        at = past
    bounds, upper = [], length
    for runs in reversed(places):
        bounds.append(upper)
        upper = min([upper, *(run.first for run in runs if run.first is not None)])
    lower = 0
    for runs, upper in zip(places, reversed(bounds)):
        if not runs:
            runs.append(_Run(None, lower, lower, max(lower, upper), frozenset()))
        lower = max(lower, *(run.last for run in runs))
    return places


def _alone(
    renderer: TextRenderer, messages: list[dict[str, Any]], i: int, text: str, tools: Sequence[Any], origin: str
) -> _Run:
    """The place of one turn, found by marking that turn only: before and after its words the text must be the same."""
    marked = Marked(messages, (i,), text)
    if not marked.marks:
        return _Run(None, 0, 0, len(text), frozenset())
    literals, marks = marked.shown(renderer.text(marked.messages, tools=tools))
    head, tail = literals[0], literals[-1]
    if not marks or not text.startswith(head) or not text.endswith(tail) or len(text) - len(tail) < len(head):
        raise _lost(origin, i)
    words = text[len(head) : len(text) - len(tail)]
    if any(m.part != "thinking" and not any(w.strip() in words for w in writings(_said(m))) for m in marks):
        raise RenderError(
            f"{origin}: the chat template leaves out some words of turn {i + 1}",
            hint=CUT,
        )
    return _Run(len(head), len(text) - len(tail), 0, len(text), frozenset(m.part for m in marks))


def _said(mark: Mark) -> str:
    """The words of a mark; an empty thinking block before them is none (templates take it away, or write their own)."""
    return _EMPTY_BLOCK.sub("", mark.value) if mark.part == "content" else mark.value


def _start(
    renderer: TextRenderer,
    messages: list[dict[str, Any]],
    i: int,
    text: str,
    tools: Sequence[Any],
    floor: int,
    place: _Run,
) -> tuple[int | None, bool]:
    """Where turn ``i`` begins, and whether that is where the prompt at serving ends."""
    limit = place.upper if place.first is None else place.first
    if messages[i]["role"] != "assistant":
        return place.first, True
    if i > 0:
        try:
            prompt = renderer.text(messages[:i], generation=True, tools=tools)
        except RenderError:
            prompt = ""
        if prompt and text.startswith(prompt) and floor <= len(prompt) <= limit:
            return len(prompt), True
    begin = max(floor, place.lower)
    before = messages[i - 1] if i > 0 else {"role": ""}
    opening = renderer.endings.openings.get(before["role"], "")
    opening = opening.replace(CALL_ID, str(before.get("tool_call_id") or CALL_ID))
    if opening and text.startswith(opening, begin) and begin + len(opening) <= limit:
        return begin + len(opening), False
    if opening and place.first is not None and (at := text.rfind(opening, begin, limit)) >= 0:
        return at + len(opening), False
    header = renderer.endings.header
    at = text.rfind(header, begin, limit) if header.strip() else -1
    return (at + len(header) if at >= 0 else place.first), i == 0
