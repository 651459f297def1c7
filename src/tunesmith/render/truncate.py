"""What a conversation that is too long loses: whole turns, from the side that hurts least.

First the turns after the last learned one: nothing is learned from them. Then the earliest exchanges (a user turn with all
that answers it, so that tool calls and results stay together). System turns and tools stay. The last exchange is never cut:
an answer without its end teaches the model not to stop, and one without its question teaches it to invent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from tunesmith.data.example import Chat, Message


def shortened(chat: Chat, learned: Sequence[bool], fits: Callable[[Chat], bool]) -> Chat | None:
    """The longest remainder of ``chat`` that ``fits``; None when not even the last exchange does. It ends with the last
    learned turn, unless none is learned.

    Asks ``fits`` O(log n) times for n exchanges; it is taken to hold for every remainder shorter than one that fits.
    """
    last = max((i for i, flag in enumerate(learned) if flag), default=len(chat.messages) - 1)
    messages = chat.messages[: last + 1]
    if len(messages) < len(chat.messages):
        chat = replace(chat, messages=messages)
        if fits(chat):
            return chat
    head, starts = _exchanges(messages)

    def without(dropped: int) -> Chat:
        return replace(chat, messages=(*messages[:head], *messages[starts[dropped] :]))

    if len(starts) < 2 or not fits(without(len(starts) - 1)):
        return None
    few, enough = 0, len(starts) - 1  # dropping ``few`` is too little, ``enough`` fits
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if fits(without(middle)) else (middle, enough)
    return without(enough)


def _exchanges(messages: Sequence[Message]) -> tuple[int, list[int]]:
    """Number of system turns in front, and where each exchange begins."""
    head = next((i for i, m in enumerate(messages) if m.role != "system"), len(messages))
    starts = [
        i for i in range(head, len(messages)) if i == head or (messages[i].role == "user" != messages[i - 1].role)
    ]
    return head, starts
