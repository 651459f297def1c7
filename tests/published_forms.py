"""The forms in which one conversation can be handed to a template, and the first that loses nothing: an oracle of its own.

Templates read the same thing under different names. In this order: thinking under ``reasoning_content``, ``reasoning`` or ``thinking``,
between ``<think>`` tags in the content, or not at all; a system turn as it is or joined to the user turn after it; arguments
of calls as mappings or as JSON; ids of calls as they are or of nine digits; an empty content beside calls as "" or as None;
texts as strings or as lists of parts.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from published import Published, tokenizer_for
from published_cases import Case, cases, thought_marks
from published_spans import lost_words

THINKING = ("reasoning_content", "reasoning", "thinking", "content", "left out")


@dataclass(frozen=True)
class Form:
    """One way to write a conversation down; the defaults are ``Message.as_dict``'s."""

    thinking: str = "reasoning_content"
    joined_system: bool = False
    json_arguments: bool = False
    numbered_calls: bool = False
    no_content: bool = False
    parts: bool = False

    def messages(self, case: Case) -> list[dict[str, Any]]:
        """The conversation for ``apply_chat_template``."""
        messages = [self._thought(dict(message)) for message in case.dicts]
        if self.joined_system and messages[0]["role"] == "system":
            system, user, *rest = messages
            messages = [{**user, "content": system["content"] + "\n\n" + user["content"]}, *rest]
        if self.json_arguments or self.numbered_calls or self.no_content:
            messages = self._called(messages)
        if self.parts:
            messages = [{**m, "content": [{"type": "text", "text": m["content"] or ""}]} for m in messages]
        return messages

    def _thought(self, message: dict[str, Any]) -> dict[str, Any]:
        thought = message.pop("reasoning_content", "")
        if thought and self.thinking == "content":
            message["content"] = f"<think>\n{thought}\n</think>\n\n{message['content']}"
        elif thought and self.thinking != "left out":
            message[self.thinking] = thought
        return message

    def _called(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        numbers: dict[str, str] = {}
        for message in messages:
            if "tool_calls" in message:
                message["tool_calls"] = [self._call(call, numbers) for call in message["tool_calls"]]
                message["content"] = (message["content"] or None) if self.no_content else message["content"]
            elif self.numbered_calls and "tool_call_id" in message:
                message["tool_call_id"] = numbers[message["tool_call_id"]]
        return messages

    def _call(self, call: dict[str, Any], numbers: dict[str, str]) -> dict[str, Any]:
        function = dict(call["function"])
        if self.json_arguments:
            function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
        number = numbers.setdefault(call["id"], f"{len(numbers) + 1:09d}") if self.numbered_calls else call["id"]
        return {**call, "id": number, "function": function}


def render(template: Published, case: Case, form: Form, **how: Any) -> Any:
    """``apply_chat_template`` on the conversation in this form. Raises whatever the template raises."""
    how = {"tokenize": False, **how}
    return tokenizer_for(template).apply_chat_template(form.messages(case), tools=list(case.chat.tools) or None, **how)


@cache
def best(template: Published, case: Case) -> tuple[Form, str] | str:
    """The first form in which the template shows every word, and its text; or why there is none."""
    reason = ""
    for form in _forms(template, case):
        try:
            text = str(render(template, case, form))
        except Exception as error:  # Jinja raises whatever a template's raise_exception or a filter raises
            reason = reason or f"the template raises {type(error).__name__}: {error}"
            continue
        lost = lost_words(case, text)
        if not lost:
            return form, text
        reason = f"the template leaves out {lost}"
        if "tools" in lost:  # in no form does it know tools
            break
    return reason


def _forms(template: Published, case: Case) -> Iterator[Form]:
    roles = {message.role for message in case.chat.messages}
    calls = any(message.tool_calls for message in case.chat.messages)
    thinks = any(message.thinking for message in case.chat.messages)
    both = (False, True)
    parts = _wants_parts(template)
    choices = itertools.product(both if "system" in roles else (False,), *[both if calls else (False,)] * 3)
    for system, no_content, arguments, numbered in choices:
        form = Form("reasoning_content", system, arguments, numbered, no_content, parts)
        yield replace(form, thinking=_thinking(template, form)) if thinks else form


@cache
def _wants_parts(template: Published) -> bool:
    """Whether the template, made for pictures too, shows or takes texts only as parts."""
    shortest = cases()[0]
    for parts in (False, True):
        try:
            if not lost_words(shortest, str(render(template, shortest, Form(parts=parts)))):
                return parts
        except Exception:  # as in `best`
            continue
    return False


@cache
def _thinking(template: Published, form: Form) -> str:
    """Where this template reads what the assistant thought: the first place that it shows in the shortest conversation."""
    shortest = next(case for case in cases() if case.name == "thinking")
    marks = thought_marks(shortest.chat.messages[-1])
    for place in THINKING[:-1]:
        try:
            text = str(render(template, shortest, replace(form, thinking=place)))
        except Exception:  # as in `best`
            continue
        if all(mark in text for mark in marks):
            return place
    return "left out"
