"""Which characters of a rendered conversation are learned: the assistant's words and the end-of-turn after them.

Two ways, both checked against the one rendered text:

* the start of an answer is where the prompt before it ends (``render(messages[:i], add_generation_prompt=True)``), if
  that text is a prefix of the whole: then what the model will generate is learned (an empty thinking block too), but for a
  first token that also holds the end of the prompt: it is counted and told, not learned;
* the end is found by rendering the whole conversation again with a marker in place of the answer: everything after the
  marker must be the same text. This holds for templates that treat earlier and last turns differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from tunesmith.config.errors import RenderError

Span = tuple[int, int]
MARKER = "\u2402answer\u2403"
"""Stands in for an answer; made of characters that no template treats in a special way."""


class TextRenderer(Protocol):
    """What is needed of a renderer."""

    tokenizer: Any

    def text(
        self, messages: Sequence[dict[str, Any]], *, generation: bool = False, tools: Sequence[Any] = ()
    ) -> str: ...


def learned_spans(
    renderer: TextRenderer,
    messages: list[dict[str, Any]],
    learned: Sequence[bool],
    text: str,
    tools: Sequence[Any] = (),
    origin: str = "",
) -> list[Span]:
    """Character spans ``[start, end)`` of the learned turns in ``text``, end-of-turn included. Raises RenderError."""
    spans: list[Span] = []
    floor = 0
    for i, wanted in enumerate(learned):
        if not wanted:
            continue
        content_start, content_end = _content_span(renderer, messages, i, text, tools, origin)
        start = _after_prompt(renderer, messages, i, text, tools, floor, content_start)
        end = content_end + len(end_of_turn(renderer, text[content_end:]))
        spans.append((start, end))
        floor = end
    return spans


def _after_prompt(
    renderer: TextRenderer,
    messages: list[dict[str, Any]],
    i: int,
    text: str,
    tools: Sequence[Any],
    floor: int,
    fallback: int,
) -> int:
    """Where turn ``i`` begins: after the generation prompt when the template is regular, else at its words."""
    if messages[i]["role"] == "assistant" and i > 0:
        try:
            prompt = renderer.text(messages[:i], generation=True, tools=tools)
        except RenderError:
            return fallback
        if text.startswith(prompt) and floor <= len(prompt) <= fallback:
            return len(prompt)
    return fallback


def _content_span(
    renderer: TextRenderer, messages: list[dict[str, Any]], i: int, text: str, tools: Sequence[Any], origin: str
) -> Span:
    marked = [*messages[:i], {**messages[i], "content": MARKER}, *messages[i + 1 :]]
    other = renderer.text(marked, tools=tools)
    start = other.find(MARKER)
    tail = other[start + len(MARKER) :]
    if (
        start < 0
        or MARKER in tail
        or text[:start] != other[:start]
        or not text.endswith(tail)
        or len(text) - len(tail) < start
    ):
        raise RenderError(
            f"{origin}: cannot tell where turn {i + 1} stands in the rendered text: the chat template rewrites it",
            hint="this template treats the words of the answer in a special way; look at the row, or report the model",
        )
    return start, len(text) - len(tail)


def end_of_turn(renderer: TextRenderer, tail: str) -> str:
    """The end-of-turn at the beginning of ``tail`` (what follows an answer): leading white space and one special token.

    Empty when the template ends turns without a special token.
    """
    tokenizer = renderer.tokenizer
    stripped = tail.lstrip()
    space = len(tail) - len(stripped)
    specials = {str(t) for t in tokenizer.all_special_tokens} | {
        str(t) for t in tokenizer.added_tokens_decoder.values() if getattr(t, "special", False)
    }
    found = [s for s in specials if s and stripped.startswith(s)]
    return tail[: space + len(max(found, key=len))] if found else ""
