"""Pairs of a better and a worse answer: ``prompt``, ``chosen`` and ``rejected``, as texts or as messages.

Without a prompt it is what ``chosen`` and ``rejected`` have in common at the beginning: whole turns of messages and of
transcripts (``Human: … Assistant: …``), of other texts as far as the last white space they share.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tunesmith.config.errors import DataError
from tunesmith.data.assemble import BESIDE, pair_of
from tunesmith.data.columns import FieldMap
from tunesmith.data.detect import misfit
from tunesmith.data.example import Preference
from tunesmith.data.turns import Turns, is_turns, read_said, read_turns

PRECEDENCE = 10
EXPECTS = "'chosen' and 'rejected' (and 'prompt')"
ROLES: Mapping[str, str] = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected", **BESIDE}
_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


def detect(row: Mapping[str, Any]) -> str | None:
    """Why this row looks like a preference pair, or None. Pairs beside a list of turns or an instruction are of those formats."""
    if row.get("chosen") is None or row.get("rejected") is None:
        return None
    whole = _begins_with_question(row["chosen"])
    beside = {"conversations", "messages", "conversation"} & {k for k, v in row.items() if isinstance(v, list)}
    if (beside and not whole) or (
        "prompt" not in row and not whole and {"instruction", "question", "input"} & row.keys()
    ):
        return None
    return "it has the keys " + ", ".join(repr(key) for key in ("prompt", "chosen", "rejected") if key in row)


def convert(row: Mapping[str, Any], origin: str, fields: FieldMap) -> Preference:
    """One row as a pair. Raises DataError, also when chosen and rejected are the same."""
    columns = [fields.find(row, role, role) for role in ("chosen", "rejected")]
    for role, column in zip(("chosen", "rejected"), columns):
        if column is None:
            raise misfit(row, origin, fields, "preference", f"the column {fields.column(role)!r} is missing")
    asked = fields.find(row, "prompt", "prompt")
    chosen, rejected = (row[c] for c in columns if c is not None)
    if asked is None and isinstance(chosen, str) and isinstance(rejected, str):
        return pair_of(*_common_text(chosen, rejected, origin), row, origin, fields)
    good, bad = (
        read_said(value, f"{origin}: {column!r}", fields, "assistant")
        for value, column in zip((chosen, rejected), columns)
    )
    if asked is not None and not (_has_question(good) or _has_question(bad)):
        prompt = read_said(row[asked], f"{origin}: {asked!r}", fields, "user")
        return pair_of(prompt, good, bad, row, origin, fields)
    prompt, good, bad = _common_turns(good, bad, origin)
    if asked is not None and row[asked] is not None:
        _check_prompt(prompt, read_said(row[asked], f"{origin}: {asked!r}", fields, "user"), origin, asked)
    return pair_of(prompt, good, bad, row, origin, fields)


def _begins_with_question(value: Any) -> bool:
    turns = [v for v in value if isinstance(v, dict)] if is_turns(value) and isinstance(value, list) else []
    return bool(turns) and turns[0].get("role", turns[0].get("from")) not in ("assistant", "gpt")


def _has_question(turns: Turns) -> bool:
    return bool(turns.messages) and turns.messages[0].role != "assistant"


def _common_turns(chosen: Turns, rejected: Turns, origin: str) -> tuple[Turns, Turns, Turns]:
    """The turns at the beginning of both, and what follows them in each."""
    pairs = list(zip(chosen.messages, rejected.messages))
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
    if same == len(chosen.messages) == len(rejected.messages):
        raise DataError(
            f"{origin}: 'chosen' and 'rejected' are the same", hint="take the row out: nothing can be preferred"
        )
    if same == 0:
        raise DataError(
            f"{origin}: 'chosen' and 'rejected' have no turn in common at the beginning, and there is no prompt",
            hint="add a column `prompt`, or begin both with the same turns",
        )
    media = chosen.media if chosen.media == rejected.media else ()
    if media != chosen.media or media != rejected.media:
        raise DataError(f"{origin}: 'chosen' and 'rejected' have different media", hint="put them into the prompt")
    return Turns(chosen.messages[:same], media), Turns(chosen.messages[same:]), Turns(rejected.messages[same:])


def _check_prompt(common: Turns, told: Turns, origin: str, column: str) -> None:
    """A prompt told beside whole conversations must be in what they share."""
    shared = [(m.role, m.content.strip()) for m in common.messages]
    for message in told.messages:
        if (message.role, message.content.strip()) not in shared:
            raise DataError(
                f"{origin}: {column!r} is not among the turns that 'chosen' and 'rejected' begin with: {message.content[:40]!r}",
                hint="make them agree, or take the prompt out: what the two begin with is then taken",
            )


def _common_text(chosen: str, rejected: str, origin: str) -> tuple[Turns, Turns, Turns]:
    if chosen == rejected:
        raise DataError(
            f"{origin}: 'chosen' and 'rejected' are the same", hint="take the row out: nothing can be preferred"
        )
    if _SPEAKER.match(chosen) and _SPEAKER.match(rejected):
        return _common_turns(_transcript(chosen, origin), _transcript(rejected, origin), origin)
    same = next((i for i, (a, b) in enumerate(zip(chosen, rejected)) if a != b), min(len(chosen), len(rejected)))
    shared = chosen[:same]
    begin = max((i for i, c in enumerate(shared) if c.isspace()), default=0)
    if not shared[:begin].strip():
        raise DataError(
            f"{origin}: there is no prompt, and the texts of 'chosen' and 'rejected' do not begin alike",
            hint="add a column `prompt`, or tell its name with `columns`",
        )
    texts = (("user", shared[:begin]), ("assistant", chosen[begin:]), ("assistant", rejected[begin:]))
    prompt, good, bad = (read_said(text, origin, FieldMap(), who) for who, text in texts)  # type: ignore[arg-type]
    return prompt, good, bad


def _transcript(text: str, origin: str) -> Turns:
    parts = _SPEAKER.split(text)[1:]
    turns = [
        {"from": "human" if who == "Human" else "gpt", "value": said.strip()}
        for who, said in zip(parts[::2], parts[1::2])
    ]
    return read_turns(turns, f"{origin}, transcript", FieldMap())
