"""An example of any kind as what a model would see of it: one rendered text, or two for a preference pair.

For looking at data (``tunesmith data check`` and ``show``); stages encode for themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


RenderChats = Callable[[Sequence[Chat]], Sequence[Rendered | RenderError]]
"""Renders conversations, each as ``Renderer.render`` does, or says why it cannot."""


def one_by_one(renderer: Renderer) -> RenderChats:
    """The plain way: every conversation by itself."""

    def render(chats: Sequence[Chat]) -> list[Rendered | RenderError]:
        return [_caught(renderer, chat) for chat in chats]

    return render


def _caught(renderer: Renderer, chat: Chat) -> Rendered | RenderError:
    try:
        return renderer.render(chat)
    except RenderError as error:
        return error


def sides(renderer: Renderer, example: Example) -> tuple[Side, ...]:
    """The sides of an example. Raises RenderError, naming the row."""
    (made,) = all_sides(renderer, [example])
    if isinstance(made, RenderError):
        raise made
    return made


def all_sides(
    renderer: Renderer, examples: Sequence[Example], render: RenderChats | None = None
) -> list[tuple[Side, ...] | RenderError]:
    """The sides of each example in order, or why it cannot be rendered; conversations by ``render``, all at once."""
    chats = [_chats(example) for example in examples]
    rendered = iter((render or one_by_one(renderer))([chat for labelled in chats for _, chat in labelled]))
    results: list[tuple[Side, ...] | RenderError] = []
    for example, labelled in zip(examples, chats):
        made = [(label, next(rendered)) for label, _ in labelled]
        error = next((r for _, r in made if isinstance(r, RenderError)), None)
        if error is not None:
            results.append(_named(error, example.origin))
        elif labelled:
            results.append(tuple(Side(label, r) for label, r in made if not isinstance(r, RenderError)))
        else:
            results.append(_without_answer(renderer, example))
    return results


def _chats(example: Example) -> list[tuple[str, Chat]]:
    """The conversations of an example with their labels; none for prompts and plain text."""
    if isinstance(example, Preference):
        return list(zip(("chosen", "rejected"), example.chats()))
    if isinstance(example, Feedback):
        return [("good" if example.good else "bad", example.chat)]
    return [("", example)] if isinstance(example, Chat) else []


def _without_answer(renderer: Renderer, example: Example) -> tuple[Side, ...] | RenderError:
    if isinstance(example, Text):
        return (Side("", _plain(renderer, example.text, example.origin, 1)),)
    assert isinstance(example, Prompt)
    try:
        text = renderer.text([m.as_dict() for m in example.messages], generation=True, tools=example.tools)
    except RenderError as error:
        return _named(error, example.origin)
    return (Side("", _plain(renderer, text, example.origin, 0), learns=False),)


def _named(error: RenderError, origin: str) -> RenderError:
    if not origin or error.message.startswith(origin):
        return error
    return RenderError(f"{origin}: {error.message}", error.hint)


def _plain(renderer: Renderer, text: str, origin: str, learned: int) -> Rendered:
    ids, offsets = renderer.encode_text(text)
    mask = (0, *(learned for _ in ids[1:])) if ids else ()  # nothing comes before the first token, so it is not learned
    return Rendered(tuple(ids), mask, text, tuple(offsets), origin)
