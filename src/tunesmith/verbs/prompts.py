"""What models are asked, from a person's file: texts, conversations, or rows with an instruction."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tunesmith.config.errors import UserError
from tunesmith.evaluate.tasks.comparison import Question

FORMS = (
    "one prompt a line (.txt), or a list in .json, or one value a line in .jsonl: texts, conversations ([{role, content}, …] or "
    "{messages: …}), or rows with an instruction"
)
ROLES = ("system", "user", "assistant")
ASKED, INPUTS, ANSWERS = ("instruction", "prompt", "question"), ("input", "query"), ("output", "response", "answer")


def questions(prompts: Sequence[str], file: Path | None, system: str | None) -> list[Question]:
    """Questions of ``prompts``, then of ``file``. ``system`` goes before those that have no system prompt. Raises UserError."""
    found = [Question(({"role": "user", "content": text},)) for text in prompts]
    if file is not None:
        found += _read(file)
    return [with_system(one, system) for one in found]


def with_system(question: Question, system: str | None) -> Question:
    """The question with a system prompt of its own, or this one."""
    if not system or question.messages[0].get("role") == "system":
        return question
    return Question(({"role": "system", "content": system}, *question.messages), question.reference)


def _read(path: Path) -> list[Question]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file", hint=f"--prompts takes {FORMS}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text: {error}", hint=f"--prompts takes {FORMS}") from error
    found = [_question(where, value) for where, value in _values(path, text)]
    if not found:
        raise UserError(f"{path}: there is no prompt in it", hint=f"--prompts takes {FORMS}")
    return found


def _values(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """(where, value) of each entry; empty lines are none."""
    kind = path.suffix.lower()
    try:
        if kind == ".json":
            value = json.loads(text)
            if not isinstance(value, list):
                raise UserError(f"{path}: expected a list", hint=f"--prompts takes {FORMS}")
            yield from ((f"{path}: entry {i}", one) for i, one in enumerate(value, 1) if one != "")
            return
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                yield f"{path}:{number}", json.loads(line) if kind == ".jsonl" else line.strip()
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: cannot be read as JSON: {error}", hint=f"--prompts takes {FORMS}") from error


def _question(where: str, value: Any) -> Question:
    if isinstance(value, str):
        return Question(({"role": "user", "content": value},))
    if isinstance(value, dict) and "messages" in value:
        value = value["messages"]
    if isinstance(value, list):
        return _conversation(where, value)
    if isinstance(value, dict):
        asked, answer = (next((value[key] for key in keys if key in value), None) for keys in (ASKED, ANSWERS))
        more = next((value[key] for key in INPUTS if value.get(key)), None)
        parts = [asked, more] if more is not None else [asked]
        if all(isinstance(part, str) for part in parts) and any(part.strip() for part in parts if part):
            content = "\n".join(part for part in parts if part)
            before = value.get("system")
            messages = [{"role": "user", "content": content}]
            if isinstance(before, str) and before:
                messages.insert(0, {"role": "system", "content": before})
            return Question(tuple(messages), answer if isinstance(answer, str) else "")
    raise UserError(f"{where} is no prompt: {_short(value)}", hint=f"--prompts takes {FORMS}")


def _conversation(where: str, value: Sequence[Any]) -> Question:
    """Messages up to the last question; an answer behind it is the reference."""
    messages = []
    for place, one in enumerate(value, 1):
        if not isinstance(one, dict) or one.get("role") not in ROLES or not isinstance(one.get("content"), str):
            raise UserError(
                f"{where}: message {place} is {_short(one)}", hint=f"a message has a role ({', '.join(ROLES)}) and a content that is a text"
            )  # fmt: skip
        messages.append({"role": str(one["role"]), "content": one["content"]})
    reference = ""
    if messages and messages[-1]["role"] == "assistant":
        reference = messages.pop()["content"]
    if not messages or messages[-1]["role"] != "user":
        raise UserError(
            f"{where}: the conversation does not end with a question of the user", hint=f"--prompts takes {FORMS}"
        )
    return Question(tuple(messages), reference)


def _short(value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= 80 else shown[:79] + "…"
