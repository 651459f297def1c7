"""What a chat template can do, found by rendering small probes with it: never by the model's name or family.

Knows nothing of conversations from data; ``fit`` uses what is found here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal

from tunesmith.config.errors import RenderError

Messages = Sequence[dict[str, Any]]
RawRender = Callable[[Messages, bool, Sequence[Any]], str]
"""``render(messages, generation, tools)``: the template on messages as they are. Raises RenderError."""

WORD = "zqprobe"
"""Stands for a text in a probe. Plain letters: no escaping and no trimming changes them."""
CALL_ID = "abcde1234"
"""Id of the call in probes."""
THINKING_KEYS = ("reasoning_content", "reasoning", "thinking")
CALL_ID = "abcde1234"
"""An id that every template takes: some insist on nine letters and digits."""
QUESTION = {"role": "user", "content": "Hi"}


def tool_named(name: str) -> dict[str, Any]:
    """The definition of a small tool."""
    parameters = {
        "type": "object",
        "properties": {"place": {"type": "string", "description": "a place"}},
        "required": ["place"],
    }
    return {"type": "function", "function": {"name": name, "description": "a tool", "parameters": parameters}}


def call_of(arguments: Any, identity: str | None = CALL_ID) -> dict[str, Any]:
    """An assistant turn that only calls a tool."""
    call: dict[str, Any] = {"type": "function", "function": {"name": "look", "arguments": arguments}}
    if identity is not None:
        call["id"] = identity
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def with_thinking(thinking: str, content: str) -> str:
    """Thinking and answer as one text, as data and reasoning models write it."""
    return f"<think>\n{thinking}\n</think>\n\n{content}"


def as_parts(message: dict[str, Any]) -> dict[str, Any]:
    """The message with its content as a list of one text, an empty one too: templates look at the first part."""
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


class Traits:
    """Each trait is probed when first asked for, once per renderer."""

    def __init__(self, render: RawRender) -> None:
        self._raw = render

    def _render(self, messages: Messages, tools: Sequence[Any] = ()) -> str:
        """The probe's text, empty when the template refuses it."""
        return self._try([as_parts(m) for m in messages] if self.parts else messages, tools)

    def _try(self, messages: Messages, tools: Sequence[Any] = ()) -> str:
        try:
            return self._raw(messages, False, tools)
        except RenderError:
            return ""

    @cached_property
    def thinking_key(self) -> str | None:
        """The key under which the template reads what an assistant turn thought. "content" when it reads none: the thinking
        then stands in the content between ``<think>`` tags. None: it cuts it off there too (DeepSeek-R1's does)."""
        for key in THINKING_KEYS:
            if WORD in self._render([QUESTION, {"role": "assistant", "content": "Hello", key: WORD}]):
                return key
        content = with_thinking(WORD, "Hello")
        return "content" if WORD in self._render([QUESTION, {"role": "assistant", "content": content}]) else None

    @cached_property
    def parts(self) -> bool:
        """Does the template want contents as lists of parts (those for pictures do)?"""
        whole, parts = ({"role": "user", "content": c} for c in (WORD, [{"type": "text", "text": WORD}]))
        return WORD not in self._try([whole]) and WORD in self._try([parts])

    @cached_property
    def arguments(self) -> Literal["mapping", "json"] | None:
        """The form in which the template takes the arguments of a tool call: whichever comes out as JSON, written once.
        None: it does not write tool calls."""
        tools = [tool_named("look")]
        text = self._render([QUESTION, call_of({"place": WORD})], tools)
        if WORD in text and "'place'" not in text:
            return "mapping"
        text = self._render([QUESTION, call_of(f'{{"place": "{WORD}"}}')], tools)
        return "json" if WORD in text and '\\"place' not in text else None

    @cached_property
    def nine_letter_ids(self) -> bool:
        """Does the template insist on tool call ids of nine letters and digits (Mistral's do)?"""

        def called(identity: str | None) -> str:
            arguments = {"place": "here"} if self.arguments == "mapping" else '{"place": "here"}'
            answer = {"role": "tool", "content": WORD, "name": "look"}
            if identity is not None:
                answer["tool_call_id"] = identity
            return self._render([QUESTION, call_of(arguments, identity), answer], [tool_named("look")])

        return WORD in called(CALL_ID) and not (WORD in called("call_12") and WORD in called(None))

    @cached_property
    def system(self) -> bool:
        """Does the template write a system turn, in a prompt and in a conversation that is over?"""
        asked = [{"role": "system", "content": WORD}, QUESTION]
        answered = [*asked, {"role": "assistant", "content": "Hello"}]
        return WORD in self._render(asked) and WORD in self._render(answered)

    @cached_property
    def tools(self) -> bool:
        """Does the template write the definitions of tools?"""
        return WORD in self._render([QUESTION], [tool_named(WORD)])
