"""A rendered text cut into what is shown as one piece: a token, or several that share a character."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tunesmith.render.conversation import Rendered


@dataclass(frozen=True)
class Segment:
    """``tokens`` are positions in the row (none: text that no token covers); ``learned`` is that of the first of them."""

    text: str
    tokens: tuple[int, ...]
    ids: tuple[int, ...]
    learned: bool
    special: bool


def segments(rendered: Rendered, special_ids: frozenset[int]) -> Iterator[Segment]:
    """The whole text in order. Tokens that hold parts of one character (an emoji) are one segment; so are tokens without text."""
    groups: list[tuple[int, int, list[int]]] = []
    for t, (start, end) in enumerate(rendered.offsets):
        if groups and (start < groups[-1][1] or (start == end and start <= groups[-1][1])):
            first, last, tokens = groups[-1]
            groups[-1] = (first, max(last, end), [*tokens, t])
        else:
            groups.append((start, end, [t]))
    place = 0
    for start, end, tokens in groups:
        if start > place:
            yield Segment(rendered.text[place:start], (), (), False, False)
        ids = tuple(rendered.ids[t] for t in tokens)
        special = any(i in special_ids for i in ids)
        yield Segment(rendered.text[start:end], tuple(tokens), ids, bool(rendered.mask[tokens[0]]), special)
        place = max(place, end)
    if place < len(rendered.text):
        yield Segment(rendered.text[place:], (), (), False, False)
