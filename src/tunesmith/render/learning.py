"""Which turns of a conversation are learned, and which tokens that makes. Knows no template."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Literal, get_args

from tunesmith.config.errors import RenderError
from tunesmith.data.example import Message

Span = tuple[int, int]
Learn = Literal["answers", "last_answer", "everything"]
"""``answers``: every assistant turn; ``last_answer``: the last one only; ``everything``: the prompt too."""


def checked(learn: str) -> Learn:
    if learn not in get_args(Learn):
        raise RenderError(f"nothing is known of learn = {learn!r}", hint=f"one of: {', '.join(get_args(Learn))}")
    return learn  # type: ignore[return-value]


def learned_turns(messages: Sequence[Message], learn: Learn) -> list[bool]:
    """One flag per turn. What a message says itself (``train``) wins."""
    last = max((i for i, m in enumerate(messages) if m.role == "assistant"), default=-1)
    flags = {
        "answers": [m.role == "assistant" for m in messages],
        "last_answer": [i == last for i in range(len(messages))],
        "everything": [True] * len(messages),
    }[learn]
    return [flag if m.train is None else m.train for flag, m in zip(flags, messages)]


def token_mask(offsets: Sequence[Span], spans: Sequence[Span]) -> list[int]:
    """1 for each token that begins in a span. ``offsets``: one character span per token; ``spans``: sorted, disjoint."""
    mask = [0] * len(offsets)
    starts = [a for a, _ in offsets]
    if all(map(int.__le__, starts, starts[1:])):
        for begin, end in spans:
            first, last = bisect_left(starts, begin), bisect_left(starts, end)
            mask[first:last] = [int(b > a) for a, b in offsets[first:last]]
        return mask
    begins = [a for a, _ in spans]
    for t, (a, b) in enumerate(offsets):
        at = bisect_left(begins, a + 1) - 1
        mask[t] = int(b > a and at >= 0 and a < spans[at][1])
    return mask


def straddling_tokens(offsets: Sequence[Span], spans: Sequence[Span]) -> int:
    """How many spans begin inside a token: that token holds the end of the prompt too, and is not learned."""
    ordered = sorted(offsets)
    count = 0
    for begin, _ in spans:
        at = bisect_left(ordered, (begin, begin))
        while at > 0 and ordered[at - 1][0] == ordered[at - 1][1]:  # tokens without text
            at -= 1
        count += at > 0 and ordered[at - 1][0] < begin < ordered[at - 1][1]
    return count
