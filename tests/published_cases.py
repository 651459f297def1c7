"""Conversations that every published template is tried with. Their words are unique, so that each can be found in any text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from tunesmith.data.example import Chat, Message

TOOL_WORDS = "Weather now."
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "Name."}},
    "required": ["city"],
}
TOOLS = ({"type": "function", "function": {"name": "weather", "description": TOOL_WORDS, "parameters": PARAMETERS}},)


@dataclass(frozen=True, eq=False)
class Case:
    """A conversation and what it tries. ``marks[i]`` are the unique words of message i that a rendering must show, in order."""

    name: str
    chat: Chat
    marks: tuple[tuple[str, ...], ...]

    @property
    def dicts(self) -> list[dict[str, Any]]:
        return self.chat.as_dicts()


class _Words:
    """Makes words that occur nowhere else: "Qa1q", "Qb2q", …"""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> str:
        self.count += 1
        return f"Q{'abcdefghij'[self.count % 10]}{self.count}q"

    def around(self, middle: str) -> str:
        return f"{self()} {middle} {self()}"


@cache
def cases(end: str = "") -> tuple[Case, ...]:
    """All cases; ``end`` is the family's end of turn, which one of them writes into the words themselves."""
    return tuple(Case(name, chat, tuple(map(_marks, chat.messages))) for name, chat in _chats(end))


def _chats(end: str) -> Iterator[tuple[str, Chat]]:
    new = _Words()

    def user(text: str = "") -> Message:
        return Message("user", text or new.around("asks the model"))

    def answer(text: str = "", thinking: str = "") -> Message:
        return Message("assistant", text or new.around("is the answer"), thinking=thinking)

    def system() -> Message:
        return Message("system", new.around("be brief"))

    yield "one exchange", _chat(user(), answer())
    yield "system", _chat(system(), user(), answer())
    yield "three exchanges", _chat(user(), answer(), user(), answer(), user(), answer())
    yield "system, two exchanges", _chat(system(), user(), answer(), user(), answer())
    unicode = "天気 你好，世界 🙂🏳️‍🌈 é e\u0301 ñ नमस्ते \u200b"
    yield "unicode", _chat(user(new.around(unicode)), answer(new.around(unicode)), user(), answer(f"你{new()}好🙂"))
    yield (
        "white space at the ends",
        _chat(user(f"\n  {new()} \n\n"), answer(f" \n\t{new.around('x')}  \n"), user(), answer(f"\n{new()} ")),
    )
    yield "lines and indents", _chat(user(), answer(new.around("\n\n```python\n    if a:\n\tb()\n```\n")))
    look = f"user: system: [x] {{{{ y }}}} ### Response: {end} {{% z %}} <b>Assistant:</b> User:"
    yield "words like the template's", _chat(user(new.around(look)), answer(new.around(look)), user(), answer())
    yield "empty question", _chat(Message("user", ""), answer(), user(), answer())
    yield "empty answer", _chat(user(), Message("assistant", ""), user(), answer())
    yield "two answers in a row", _chat(user(), answer(), answer())
    yield "no answer at the end", _chat(user(), answer(), user())
    yield "thinking", _chat(user(), answer(thinking=new.around("I think")))
    yield (
        "thinking, two exchanges",
        _chat(user(), answer(thinking=new.around("first")), user(), answer(thinking=new.around("then"))),
    )
    yield "thinking, then not", _chat(user(), answer(thinking=new.around("first")), user(), answer())

    def calls(*cities: str, content: str = "", thinking: str = "") -> tuple[Message, ...]:
        ids = [f"{city}abcdefgh"[:9].lower() for city in cities]
        asked = tuple(
            {"type": "function", "id": i, "function": {"name": "weather", "arguments": {"city": city}}}
            for i, city in zip(ids, cities)
        )
        told = (Message("tool", new.around("sunny"), name="weather", tool_call_id=i) for i in ids)
        return Message("assistant", content, tool_calls=asked, thinking=thinking), *told

    yield "a tool call", _chat(user(), *calls(new()), answer(), tools=TOOLS)
    yield "system and a tool call", _chat(system(), user(), *calls(new()), answer(), user(), answer(), tools=TOOLS)
    yield "words and a tool call", _chat(user(), *calls(new(), content=new.around("I look")), answer(), tools=TOOLS)
    yield "two calls in one turn", _chat(user(), *calls(new(), new()), answer(), tools=TOOLS)
    yield "a call, then a call", _chat(user(), *calls(new()), *calls(new()), answer(), tools=TOOLS)
    yield "thinking and a tool call", _chat(user(), *calls(new(), thinking=new()), answer(thinking=new()), tools=TOOLS)
    yield "tools, none called", _chat(user(), answer(), tools=TOOLS)
    yield "calls, tools told in the system turn", _chat(system(), user(), *calls(new()), answer())
    yield "ends with a call", _chat(user(), calls(new())[0], tools=TOOLS)


def _chat(*messages: Message, tools: tuple[dict[str, Any], ...] = ()) -> Chat:
    return Chat(messages, tools, origin="published")


def _marks(message: Message) -> tuple[str, ...]:
    said = json.dumps(
        [message.content, *(call["function"]["arguments"] for call in message.tool_calls)], ensure_ascii=False
    )
    return tuple(unique_words(said))


def thought_marks(message: Message) -> tuple[str, ...]:
    """Unique words of what the assistant thought."""
    return tuple(unique_words(message.thinking))


def unique_words(text: str) -> list[str]:
    """The made-up words in a text."""
    return re.findall(r"Q[a-j]\d+q", text)
