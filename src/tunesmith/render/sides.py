"""An example of any kind as what a model would see of it: one rendered text, or two for a preference pair.

For looking at data (``tunesmith data check`` and ``show``); stages encode for themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tunesmith.config.errors import RenderError
from tunesmith.data.example import Chat, Example, Feedback, Preference, Prompt, Text
from tunesmith.render.conversation import Rendered, Renderer


@dataclass(frozen=True)
class Side:
    """``label`` is "" where there is one side, else "chosen" or "rejected". ``learns``: whether its mask should have a 1."""

    label: str
    rendered: Rendered
    learns: bool = True


def sides(renderer: Renderer, example: Example) -> tuple[Side, ...]:
    """The sides of an example. Raises RenderError, naming the row."""
    try:
        if isinstance(example, Preference):
            chosen, rejected = example.chats()
            return Side("chosen", renderer.render(chosen)), Side("rejected", renderer.render(rejected))
        if isinstance(example, Feedback):
            return (Side("good" if example.good else "bad", renderer.render(example.chat)),)
        if isinstance(example, Chat):
            return (Side("", renderer.render(example)),)
        if isinstance(example, Prompt):
            text = renderer.text([m.as_dict() for m in example.messages], generation=True, tools=example.tools)
            return (Side("", _plain(renderer, text, example.origin, 0), learns=False),)
        assert isinstance(example, Text)
        return (Side("", _plain(renderer, example.text, example.origin, 1)),)
    except RenderError as error:
        if not example.origin or error.message.startswith(example.origin):
            raise
        raise RenderError(f"{example.origin}: {error.message}", error.hint) from error


def _plain(renderer: Renderer, text: str, origin: str, learned: int) -> Rendered:
    ids, offsets = renderer.encode_text(text)
    return Rendered(tuple(ids), (learned,) * len(ids), text, tuple(offsets), origin)


def all_sides(renderer: Renderer, examples: Iterable[Example]) -> Iterator[tuple[Side, ...] | RenderError]:
    """The sides of each example in order, or why it cannot be rendered."""
    for example in examples:
        try:
            yield sides(renderer, example)
        except RenderError as error:
            yield error
