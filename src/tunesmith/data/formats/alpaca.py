"""Alpaca: ``instruction``, ``input``, ``output`` (or ``prompt``, ``query``, ``response``), ``system`` and ``history``.

With ``chosen`` and ``rejected`` in place of the answer it is a pair, with ``kto_tag`` an answer with a verdict; with nothing but
``columns: {"prompt": …}`` it is plain text, all three as in LLaMA-Factory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.config.errors import DataError
from tunesmith.data.assemble import BESIDE, chat_of, joined, pair_of
from tunesmith.data.columns import FieldMap, found, list_of, text_of, truth_of
from tunesmith.data.detect import misfit
from tunesmith.data.example import Chat, Feedback, Preference, Text
from tunesmith.data.media import read_media
from tunesmith.data.turns import Turns, read_said

PRECEDENCE = 50
EXPECTS = "'instruction' (or 'prompt', 'input') and 'output' (or 'response'), or 'question' and 'answer'"
ROLES: Mapping[str, str] = {
    "prompt": "instruction", "query": "input", "response": "output", "history": "history",
    "chosen": "chosen", "rejected": "rejected", "kto_tag": "kto_tag", **BESIDE,
}  # fmt: skip
"""Names in ``columns`` of a dataset_info.json -> the column each stands for by default."""
QUESTIONS, INPUTS, ANSWERS = ("instruction", "prompt", "question"), ("input", "query"), ("output", "response")


def detect(row: Mapping[str, Any]) -> str | None:
    """Why this row looks like Alpaca, or None."""
    asked = next((c for c in (*QUESTIONS, *INPUTS) if c in row), None)
    answer = next((c for c in _answers(row) if c in row), None)
    if asked and answer:
        return f"it has the keys {asked!r} and {answer!r}"
    if "instruction" in row and isinstance(row.get("chosen"), str) and isinstance(row.get("rejected"), str):
        return "it has the keys 'instruction', 'chosen' and 'rejected'"
    return None


def _answers(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Columns of the answer; `answer` beside `prompt` is a reference to compare with (the format prompt)."""
    return (*ANSWERS, "answer") if "question" in row else ANSWERS


def convert(row: Mapping[str, Any], origin: str, fields: FieldMap) -> Chat | Preference | Feedback | Text:
    """One row; ``input`` follows ``instruction`` on a new line. Raises DataError."""
    asked = _question(row, origin, fields)
    before = _history(row, origin, fields)
    answer = fields.find(row, "response", *_answers(row))
    chosen, rejected = fields.find(row, "chosen", "chosen"), fields.find(row, "rejected", "rejected")
    if fields.ranking or (answer is None and chosen and rejected):
        better, worse = (
            _said(row, fields.column(role), origin, "assistant", fields) for role in ("chosen", "rejected")
        )
        prompt = joined(before, read_said(asked, origin, FieldMap(), "user"))
        return pair_of(prompt, better, worse, row, origin, fields)
    if answer is None:
        if "prompt" in fields.columns and not before.messages and not {"response", "kto_tag"} & fields.columns.keys():
            return Text(asked, origin)
        raise misfit(row, origin, fields, "alpaca", f"the column {fields.column('response', 'output')!r} is missing")
    said = _said(row, answer, origin, "assistant", fields)
    if not text_of(row, answer, origin).strip():
        raise DataError(f"{origin}: the answer is empty ({answer!r})", hint="fill it in, or take the row out")
    chat = chat_of(joined(before, read_said(asked, origin, FieldMap(), "user"), said), row, origin, fields)
    tag = fields.find(row, "kto_tag", "kto_tag")
    if tag is None and "kto_tag" in fields.columns:
        text_of(row, fields.columns["kto_tag"], origin)  # raises: the column is missing
    return chat if tag is None else Feedback(chat, truth_of(row[tag], f"{origin}: {tag!r}"))


def _question(row: Mapping[str, Any], origin: str, fields: FieldMap) -> str:
    prompt, query = fields.find(row, "prompt", *QUESTIONS), fields.find(row, "query", *INPUTS)
    if (prompt is None and query is None) or (prompt is None and "prompt" in fields.columns):
        raise misfit(row, origin, fields, "alpaca", f"the column {fields.column('prompt', 'instruction')!r} is missing")
    parts = [
        text_of(row, c, origin, optional=c == query or query is not None) for c in (prompt, query) if c is not None
    ]
    question = "\n".join(part for part in parts if part)
    if not question.strip() and not read_media(row, origin, fields):
        columns = " and ".join(repr(c) for c in (prompt, query) if c is not None)
        raise DataError(f"{origin}: the question is empty ({columns})", hint="fill it in, or take the row out")
    return question


def _history(row: Mapping[str, Any], origin: str, fields: FieldMap) -> Turns:
    column = fields.find(row, "history", "history")
    history = None if column is None else list_of(row[column], f"{origin}: {column!r}")
    if history is None or history == "":
        return Turns(())
    if not isinstance(history, list):
        raise DataError(
            f"{origin}: {column!r} should be a list of [question, answer] pairs, found {found(history)}",
            hint='expected [["question", "answer"], …], the earlier turns',
        )
    turns: list[Turns] = []
    for i, pair in enumerate(history):
        if not (isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(t, str) for t in pair)):
            raise DataError(
                f"{origin}: entry {i + 1} of {column!r} should be a pair of texts [question, answer], found {found(pair)}",
                hint='expected [["question", "answer"], …], the earlier turns',
            )
        place = f"{origin}: entry {i + 1} of {column!r}"
        turns += [read_said(pair[0], place, fields, "user"), read_said(pair[1], place, fields, "assistant")]
    return joined(*turns)


def _said(row: Mapping[str, Any], column: str, origin: str, role: Any, fields: FieldMap) -> Turns:
    return read_said(text_of(row, column, origin), f"{origin}: {column!r}", fields, role)
