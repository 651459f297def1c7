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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tunesmith.config.errors import RenderError
from tunesmith.render.endings import Endings
from tunesmith.render.endings import TextRenderer as _TextRenderer
from tunesmith.render.slots import Marked, Slot, Span, align


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
    unended: int = 0
    unlike_serving: int = 0


@dataclass(frozen=True)
class _Place:
    """A turn in the text: its words are in ``[first, last)`` (None: no words), all of it in ``[lower, upper)``."""

    first: int | None
    last: int | None
    lower: int
    upper: int
    thinking: bool


def learned_spans(
    renderer: TextRenderer,
    messages: list[dict[str, Any]],
    learned: Sequence[bool],
    text: str,
    tools: Sequence[Any] = (),
    origin: str = "",
) -> list[Span]:
    """Character spans ``[start, end)`` of the learned turns in ``text``, end-of-turn included. Raises RenderError."""
    return list(find_learned(renderer, messages, learned, text, tools, origin).spans)


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
    spans: list[Span] = []
    turns = [i for i, wanted in enumerate(learned) if wanted]
    dropped = unended = unlike = floor = 0
    places = None if slots is None else _places(slots, len(messages), len(text))
    for i in turns:
        message = messages[i]
        place = places[i] if places is not None else _alone(renderer, messages, i, text, tools, origin)
        start, like = _start(renderer, messages, i, text, tools, floor, place)
        if start is None:
            raise _lost(origin, i)
        after = place.last if place.last is not None else start
        calls = bool(message.get("tool_calls"))
        length = renderer.endings.length(text[after : place.upper], call=calls)
        spans.append((start, after + length))
        floor = after + length
        if message["role"] == "assistant":
            unlike += not like
            unended += not _ends(renderer.endings, text[after : after + length])
            dropped += bool(message.get("reasoning_content", "").strip()) and not place.thinking
    return Found(tuple(spans), tuple(turns), dropped, unended, unlike)


def _ends(endings: Endings, tail: str) -> bool:
    return any(e and tail.endswith(e.strip()) for e in (endings.last, endings.middle, endings.call, *endings.headers))


def _lost(origin: str, i: int) -> RenderError:
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
        return None
    literals, marks = marked.shown(other)
    slots = align(text, literals, marks)
    shown = set(marks)
    left_out = next((m for m in marked.marks if m.part != "thinking" and m not in shown), None)
    if left_out is not None and left_out.value.strip() not in text:
        role = messages[left_out.turn]["role"]
        what = "the tool call of " if left_out.part == "call" else ""
        raise RenderError(
            f"{origin}: the chat template leaves out {what}turn {left_out.turn + 1} ({role})",
            hint=f"this template has no place for it; remove such {role} turns, or set model.template to one that has",
        )
    return slots


def _places(slots: list[Slot], turns: int, length: int) -> list[_Place]:
    """The place of each turn, in one pass over the slots."""
    by_turn: list[list[int]] = [[] for _ in range(turns)]
    for k, slot in enumerate(slots):
        by_turn[slot.mark.turn].append(k)
    places: list[_Place] = []
    lower = 0
    for own in by_turn:
        if own:
            before = slots[own[0] - 1].end if own[0] else 0
            upper = slots[own[-1] + 1].start if own[-1] + 1 < len(slots) else length
            first, last = slots[own[0]].start, slots[own[-1]].end
            thinking = any(slots[k].mark.part == "thinking" for k in own)
            places.append(_Place(first, last, before, upper, thinking))
            lower = max(lower, last)
        else:
            places.append(_Place(None, None, lower, length, False))
    upper = length
    for i in reversed(range(turns)):
        first = places[i].first
        if first is None:
            places[i] = _Place(None, None, places[i].lower, upper, False)
        else:
            upper = first
    return places


def _alone(
    renderer: TextRenderer, messages: list[dict[str, Any]], i: int, text: str, tools: Sequence[Any], origin: str
) -> _Place:
    """The place of one turn, found by marking that turn only: before and after its words the text must be the same."""
    marked = Marked(messages, (i,), text)
    if not marked.marks:
        return _Place(None, None, 0, len(text), False)
    literals, marks = marked.shown(renderer.text(marked.messages, tools=tools))
    head, tail = literals[0], literals[-1]
    if not marks or not text.startswith(head) or not text.endswith(tail) or len(text) - len(tail) < len(head):
        raise _lost(origin, i)
    return _Place(len(head), len(text) - len(tail), 0, len(text), any(m.part == "thinking" for m in marks))


def _start(
    renderer: TextRenderer,
    messages: list[dict[str, Any]],
    i: int,
    text: str,
    tools: Sequence[Any],
    floor: int,
    place: _Place,
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
    header = renderer.endings.generation
    at = text.rfind(header, max(floor, place.lower), limit) if header.strip() else -1
    return (at + len(header) if at >= 0 else place.first), i == 0
