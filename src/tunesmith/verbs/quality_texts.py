"""What exports are measured on: rows of the person's own, general text, and prompts to answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tunesmith.data.general import passages_to_measure, questions
from tunesmith.evaluate.quality_rules import FEW
from tunesmith.evaluate.tasks.quality import Asked, Passage, Text

if TYPE_CHECKING:
    from tunesmith.render.conversation import Renderer
    from tunesmith.verbs.calibration import OwnText

LONGEST = 512
"""Longest passage in tokens: the distributions of one (512 × 150k × 4 B = 0.3 GB) are in memory."""
ROWS = 16
"""Rows of the person's own data that are measured, unless said otherwise."""
PER_ROW = 64
"""For each of them, so many tokens of general text in each language."""
ANSWERS = 8
"""Prompts that are answered."""
OWN = "own data"
LANGUAGES = {"en": "English", "zh": "Chinese"}


def texts_of(own: OwnText, tokenizer: Any, rows: int, longest: int) -> tuple[tuple[Text, ...], dict[str, str]]:
    """The texts, the person's own first (last, when it is too short to judge by); and what each is, in words. Passages have at most ``longest`` tokens."""
    found: list[Text] = []
    about: dict[str, str] = {}
    chosen = spread(own.measure, rows)
    if chosen:
        text = Text(OWN, tuple(_passage(row, longest) for row in chosen))
        found.append(text)
        about[OWN] = f"{text.tokens} tokens of {len(chosen)} rows of {own.name}; none of them was calibrated with"
    for language, passages in passages_to_measure().items():
        pieces: list[Passage] = []
        left = PER_ROW * rows
        for words in passages:
            ids = tokenizer(words)["input_ids"][: min(left, longest)]
            if len(ids) > 1:
                pieces.append(Passage(tuple(ids), (False, *[True] * (len(ids) - 1))))
                left -= len(ids)
        text = Text(LANGUAGES[language], tuple(pieces))
        found.append(text)
        about[text.name] = f"{text.tokens} tokens of the bundled general text"
    if chosen and found[0].tokens < FEW and len(found) > 1:  # the first text decides
        found.append(found.pop(0))
    return tuple(found), about


def asked_of(own: OwnText, renderer: Renderer | None, tokenizer: Any, longest: int) -> tuple[Asked, ...]:
    """The prompts of rows that are measured, as compare asks them; general questions where there are none."""
    found = []
    for row in spread(own.measure, ANSWERS):
        ids = prompt_of(row.ids, row.mask)
        if 0 < len(ids) <= longest:
            found.append(Asked(ids, tokenizer.decode(list(ids), skip_special_tokens=True).strip()))
    if found:
        return tuple(found)
    for question in questions():
        if renderer is not None:
            ids = tuple(renderer.prompt_ids([{"role": "user", "content": question}]))
        else:
            ids = tuple(tokenizer(question)["input_ids"])
        if len(ids) <= longest:
            found.append(Asked(ids, question))
    return tuple(found)


def spread(rows: Sequence[Any], most: int) -> list[Any]:
    """At most ``most`` rows, evenly from all of them: sets are often sorted by topic or language."""
    count = min(most, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


def prompt_of(ids: Sequence[int], mask: Sequence[bool]) -> tuple[int, ...]:
    """What stands before the last learned stretch of a row: what a person would ask. Empty when all or nothing is learned."""
    flags = [bool(flag) for flag in mask]
    if True not in flags:
        return ()
    last = len(flags) - 1 - flags[::-1].index(True)
    while last > 0 and flags[last - 1]:
        last -= 1
    return tuple(int(token) for token in ids[:last]) if last > 1 else ()


def _passage(row: Any, longest: int) -> Passage:
    ids = tuple(int(token) for token in row.ids[:longest])
    scored = (False, *(bool(flag) for flag in row.mask[1:longest]))
    return Passage(ids, scored if any(scored) else (False, *[True] * (len(ids) - 1)))
