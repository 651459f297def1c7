"""In which order turns can be learned from, and the message for those that cannot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from tunesmith.config.errors import DataError
from tunesmith.data.example import Message


def check_order(
    messages: Sequence[Message],
    place: str,
    *,
    ends: Literal["answer", "question"] = "answer",
    after: Message | None = None,
) -> None:
    """Raises DataError naming the turn when the turns of one conversation are not in an order that can be learned.

    At most one system turn, the first; then user or tool turns alternate with assistant turns, beginning with the user and
    ending as ``ends`` says. Several tool results may follow each other. Two user turns or two answers in a row are refused:
    many published chat templates refuse them, the others make two turns out of what was meant as one. ``after`` is the last
    turn of the prompt when ``messages`` are only what follows it.
    """
    before = after
    for i, message in enumerate(messages):
        where = f"{place}, turn {i + 1}"
        if message.role == "system":
            if i or after is not None:
                raise DataError(
                    f"{where}: a system turn that is not the first",
                    hint="there is one system turn, at the beginning; join them, or make this one part of a user turn",
                )
            continue
        _check_pair(before, message, where)
        _check_filled(message, where)
        before = message
    if before is None or not messages:
        raise DataError(
            f"{place}: there is no turn of the user and no answer in it", hint="fill it in, or take the row out"
        )
    if ends == "answer" and before.role != "assistant":
        raise DataError(
            f"{place}: the conversation ends with turn {len(messages)}, a turn of the {before.role}: it has no answer to learn",
            hint="add the answer, or take the last turn out; for prompts without answers, name the format: prompt",
        )
    if ends == "question" and before.role == "assistant":
        raise DataError(
            f"{place}: the prompt ends with turn {len(messages)}, an answer of the assistant",
            hint="a prompt ends with the user (or a tool result); the answer comes after it",
        )


def _check_pair(before: Message | None, message: Message, where: str) -> None:
    if before is None:
        if message.role != "user":
            raise DataError(
                f"{where}: the conversation begins with the {message.role}, expected the user: turns must alternate, user first",
                hint="put the question before it, or take this turn out",
            )
    elif message.role == "assistant" and before.role == "assistant":
        raise DataError(
            f"{where} is from the assistant, and so is the one before it: turns must alternate",
            hint="join the two (a tool call goes into `tool_calls` of the same turn), or put what stood between them back",
        )
    elif message.role == "user" and before.role != "assistant":
        said = "a tool result without an answer of the assistant" if before.role == "tool" else "another user turn"
        raise DataError(
            f"{where} is from the user and follows {said}: turns must alternate",
            hint="put the missing answer between them, or join the two turns",
        )
    elif message.role == "tool" and before.role == "user":
        raise DataError(
            f"{where} is a tool result that follows the user: turns must alternate",
            hint="the assistant's call comes before the result of the tool",
        )


def _check_filled(message: Message, where: str) -> None:
    if message.content.strip() or message.tool_calls or message.role == "tool":
        return  # a tool may well answer nothing
    thought = ": it has a thought, but nothing is said" if message.thinking else ""
    raise DataError(
        f"{where} ({message.role}) is empty{thought}", hint="fill it in, or take the conversation (or its end) out"
    )


def with_system(messages: tuple[Message, ...], system: str, place: str) -> tuple[Message, ...]:
    """The turns with the text of a ``system`` column; an empty system turn is none. Raises DataError for two different ones (of
    which LLaMA-Factory drops the column's without a word)."""
    own = messages[0].content if messages and messages[0].role == "system" else ""
    rest = messages[1:] if messages and messages[0].role == "system" else messages
    if own.strip() and system.strip() and own.strip() != system.strip():
        raise DataError(
            f"{place}: a system turn and another text in the column `system`: only one of them can be learned",
            hint="take one of them out, or join them in the system turn",
        )
    if own.strip():
        return messages
    return (Message("system", system), *rest) if system.strip() else rest
