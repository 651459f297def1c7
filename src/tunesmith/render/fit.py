"""Messages in the form that one chat template reads: where its thinking stands, how arguments of tool calls are written,
what becomes of a system turn that it does not know. Training and serving both pass through here, so both say the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from tunesmith.config.errors import RenderError
from tunesmith.render.traits import THINKING_KEYS, Messages, Traits, as_parts, with_thinking


def fit(messages: Messages, traits: Traits) -> list[dict[str, Any]]:
    """New messages for ``apply_chat_template``; those that need no change are handed on as they are.

    Raises RenderError for tool calls that the template does not write, and for a system turn that has no place.
    """
    fitted = [_with_thinking(m, traits) for m in messages]
    if any(m.get("tool_calls") for m in fitted):
        fitted = _with_calls(fitted, traits)
    if any(m.get("role") == "system" for m in fitted) and not traits.system:
        fitted = _without_system(fitted)
    return [as_parts(m) for m in fitted] if traits.parts else fitted


def _with_thinking(message: dict[str, Any], traits: Traits) -> dict[str, Any]:
    thinking = next((message[key] for key in THINKING_KEYS if message.get(key)), None)
    if thinking is None:
        return message
    rest = {key: value for key, value in message.items() if key not in THINKING_KEYS}
    if traits.thinking_key == "content":
        return {**rest, "content": with_thinking(thinking, rest.get("content") or "")}
    if traits.thinking_key is None:
        return rest
    return {**rest, traits.thinking_key: thinking}


def _with_calls(messages: list[dict[str, Any]], traits: Traits) -> list[dict[str, Any]]:
    if traits.arguments is None:
        raise RenderError(
            "the chat template does not write tool calls",
            hint="take a model whose template knows tools, or set model.template to one that does",
        )
    ids = _numbered() if traits.nine_letter_ids and not _have_nine_letters(messages) else None
    waiting: list[str] = []  # calls without an answer yet, in order
    names: dict[str, str] = {}
    fitted = []
    for message in messages:
        if message.get("tool_calls"):
            calls = []
            for call in message["tool_calls"]:
                call = {**call, "function": _with_arguments(call["function"], traits.arguments)}
                if ids is not None:
                    given = str(call.get("id") or "")
                    call["id"] = given if re.fullmatch("[a-zA-Z0-9]{9}", given) else next(ids)
                    waiting.append(call["id"])
                    if given:
                        names[given] = call["id"]
                calls.append(call)
            message = {**message, "tool_calls": calls}
        elif message.get("role") == "tool" and ids is not None:
            known = names.get(str(message.get("tool_call_id")), waiting[0] if waiting else None)
            if known is not None:
                message = {**message, "tool_call_id": known}
                if known in waiting:
                    waiting.remove(known)
        fitted.append(message)
    return fitted


def _have_nine_letters(messages: list[dict[str, Any]]) -> bool:
    """Are the ids right as they are: distinct, of nine letters and digits, and named by every result?"""
    calls = [str(call.get("id") or "") for m in messages for call in m.get("tool_calls") or ()]
    named = {str(m.get("tool_call_id")) for m in messages if m.get("role") == "tool"}
    return (
        len(set(calls)) == len(calls) and named <= set(calls) and all(re.fullmatch("[a-zA-Z0-9]{9}", i) for i in calls)
    )


def _numbered() -> Iterator[str]:
    return (f"{n:09d}" for n in range(1, 10**9))


def _with_arguments(function: dict[str, Any], form: str) -> dict[str, Any]:
    arguments = function.get("arguments", {})
    if form == "json" and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif form == "mapping" and isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except json.JSONDecodeError:
            pass  # what is no JSON is written as the text it is
    return {**function, "arguments": arguments}


def _without_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """System turns joined into the user turn after them, a blank line between: what users of such models do."""
    fitted: list[dict[str, Any]] = []
    held: list[str] = []
    for message in messages:
        if message.get("role") == "system":
            held.append(re.sub(r"\s+\Z", "", message.get("content") or ""))
            continue
        if held and message.get("role") == "user":
            message = {**message, "content": "\n\n".join(t for t in [*held, message.get("content") or ""] if t)}
            held = []
        fitted.append(message)
    if held:
        raise RenderError(
            "the chat template knows no system turn, and there is no user turn after it to join it to",
            hint="remove the system turn, or set model.template to a template that has one",
        )
    return fitted
