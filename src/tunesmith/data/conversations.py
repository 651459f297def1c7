"""Rows with a list of turns (ShareGPT and OpenAI messages): a conversation, a pair of answers, or one with a verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.config.errors import DataError
from tunesmith.data.assemble import BESIDE, chat_of, pair_of
from tunesmith.data.columns import FieldMap, found, list_of, names_in, text_of, truth_of
from tunesmith.data.detect import misfit
from tunesmith.data.example import Chat, Feedback, Preference
from tunesmith.data.turns import read_said, read_turns

COLUMNS = ("conversations", "messages", "conversation")
ROLES: Mapping[str, str] = {"chosen": "chosen", "rejected": "rejected", "kto_tag": "kto_tag", **BESIDE}


def turn_column(row: Mapping[str, Any], key: str, home: str) -> str | None:
    """The column of ``row`` whose turns have the key ``key`` (``from`` or ``role``); a list that does not tell counts for
    its usual column ``home``."""
    for column in COLUMNS:
        turns = list_of(row.get(column), repr(column))
        if not isinstance(turns, list):
            continue
        turn = next((t for t in turns if isinstance(t, dict)), {})
        if turn.get(key) is not None or (column == home and not {"from", "role"} & turn.keys()):
            return column
    return None


def convert_turns(
    row: Mapping[str, Any], origin: str, fields: FieldMap, name: str, home: str
) -> Chat | Preference | Feedback:
    """One row of format ``name``, its turns by default in the column ``home``. Raises DataError."""
    column = fields.find(row, "messages", home, *COLUMNS)
    if column is None:
        raise misfit(
            row, origin, fields, name, f"the column {fields.column('messages', home)!r} with the turns is missing"
        )
    listed = list_of(row[column], f"{origin}: {column!r}")
    if not isinstance(listed, list):
        raise misfit(row, origin, fields, name, f"{column!r} should be a list of turns, found {found(row[column])}")
    turns = read_turns(listed, f"{origin}: {column!r}" if column != home else origin, fields)
    chosen, rejected = fields.find(row, "chosen", "chosen"), fields.find(row, "rejected", "rejected")
    asks = bool(turns.messages) and turns.messages[-1].role != "assistant"
    if fields.ranking or (asks and chosen and rejected and row[chosen] is not None and row[rejected] is not None):
        columns = [c or fields.column(role) for c, role in ((chosen, "chosen"), (rejected, "rejected"))]
        if missing := [c for c in columns if c not in row]:
            raise DataError(
                f"{origin}: the column {missing[0]!r} is missing, and the set is said to be pairs (ranking)",
                hint=f"this row has: {names_in(row)}; tell other names with `columns` (chosen, rejected)",
            )
        better, worse = (read_said(row[c], f"{origin}: {c!r}", fields, "assistant") for c in columns)
        return pair_of(turns, better, worse, row, origin, fields)
    chat = chat_of(turns, row, origin, fields)
    tag = fields.find(row, "kto_tag", "kto_tag")
    if tag is None and "kto_tag" in fields.columns:
        text_of(row, fields.columns["kto_tag"], origin)  # raises: the column is missing
    return chat if tag is None else Feedback(chat, truth_of(row[tag], f"{origin}: {tag!r}"))
