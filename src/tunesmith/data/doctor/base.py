"""What a check of the data doctor is given and what it gives back. Knows no single check."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from tunesmith.config.errors import DataError
from tunesmith.data.example import Chat, Example, Feedback, Message, Preference, Prompt, Text

if TYPE_CHECKING:
    from tunesmith.data.doctor.fingerprints import Fingerprints

Severity = Literal["error", "warning", "info"]
Fix = Literal["drop", "change", ""]
Part = Literal["train", "eval"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
SEPARATOR = "\x1f"
"""Stands between the pieces of a row's joined text; counted as no text by the checks."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found. ``error``: training would stop, or learn something broken; ``warning``: look at it;
    ``info``: worth knowing.

    ``place`` is ``file:row`` ("" = the set as a whole), ``row`` its number in its part (-1 = the set as a whole), ``mend`` says
    what to do, ``fix`` what ``--fix`` does about it.
    """

    severity: Severity
    message: str
    mend: str
    place: str = ""
    excerpt: str = ""
    fix: Fix = ""
    part: Part = "train"
    row: int = -1


@dataclass(frozen=True, slots=True)
class Piece:
    """One text of a row: whose it is, and where it stands ("turn 2 (assistant)")."""

    role: str
    where: str
    text: str


@dataclass(frozen=True, slots=True)
class Row:
    """A row that could be read. ``index`` counts the rows of its part from 0, unreadable ones included; ``text`` is all pieces
    joined, so that a check can ask once whether there is anything to look for."""

    index: int
    part: Part
    example: Example
    pieces: tuple[Piece, ...]
    text: str

    @property
    def origin(self) -> str:
        return self.example.origin

    def finding(self, severity: Severity, message: str, mend: str, excerpt: str = "", fix: Fix = "") -> Finding:
        """A finding about this row."""
        shown = excerpt or shorten(next((p.text for p in self.pieces if p.role != "system" and p.text.strip()), ""))
        return Finding(severity, message, mend, self.origin, shown, fix, self.part, self.index)

    def answers(self) -> list[Piece]:
        """What the assistant says."""
        return [p for p in self.pieces if p.role == "assistant"]


@dataclass(frozen=True)
class Context:
    """What checks may know of the whole. ``special_tokens``: those of the model, in their written form; None without a model.

    ``held_out(n)``: which of n training rows the config would hold out for evaluation (empty with an own evaluation set).
    ``kind``: of the examples (``data.example.KINDS``) that ``stage`` learns from; ``stage_named``: whether a person chose it.
    """

    train: Fingerprints
    eval: Fingerprints
    special_tokens: frozenset[str] | None = None
    held_out: Callable[[int], frozenset[int]] | None = None
    kind: str | None = None
    stage: str = ""
    stage_named: bool = False


class Check:
    """The base of every check: override what is needed.

    Rows come once (``row``), evaluation rows first; then ``end``; then rows for which ``again_rows`` asked come a second time
    (``again``), so that nothing of a row has to be kept, and with them those that could not be read (``unread``, with the
    beginning of the raw row). ``clean`` mends one text.
    """

    title: ClassVar[str]
    """Heading over its findings."""
    mends: ClassVar[str] = "leaves it"
    """What ``--fix`` does about what it finds."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def row(self, row: Row) -> Iterable[Finding]:
        return ()

    def unread(self, index: int, part: Part, error: DataError, excerpt: str) -> Iterable[Finding]:
        return ()

    def end(self) -> Iterable[Finding]:
        """After the last row: findings about the set as a whole."""
        return ()

    def again_rows(self) -> Iterable[int]:
        """After ``end``: numbers of the training rows to see again."""
        return ()

    def again(self, row: Row) -> Iterable[Finding]:
        return ()

    def clean(self, text: str) -> str:
        """The text as ``--fix`` writes it, for findings with ``fix="change"``."""
        return text


def row_of(index: int, part: Part, example: Example) -> Row:
    """The row with its texts laid out."""
    pieces = tuple(_pieces(example))
    return Row(index, part, example, pieces, SEPARATOR.join([p.text for p in pieces]))


def _pieces(example: Example) -> list[Piece]:
    if isinstance(example, Feedback):
        example = example.chat
    if isinstance(example, Chat):
        return _turns(example.messages, "turn", 1)
    if isinstance(example, Preference):
        after = len(example.prompt) + 1
        return [
            *_turns(example.prompt, "turn", 1),
            *_turns(example.chosen, "chosen turn", after),
            *_turns(example.rejected, "rejected turn", after),
        ]
    if isinstance(example, Prompt):
        reference = [Piece("reference", "the reference", example.reference)] if example.reference else []
        return _turns(example.messages, "turn", 1) + reference
    assert isinstance(example, Text)
    return [Piece("text", "the text", example.text)]


def _turns(messages: Sequence[Message], word: str, first: int) -> list[Piece]:
    pieces = []
    for number, message in enumerate(messages, first):
        if message.thinking:
            pieces.append(Piece("thinking", f"{word} {number} (thinking)", message.thinking))
        pieces.append(Piece(message.role, f"{word} {number} ({message.role})", message.content))
    return pieces


def question_of(example: Example) -> str:
    """Everything before the last answer, as one text; "" where there is no question."""
    if isinstance(example, Feedback):
        example = example.chat
    if isinstance(example, Text):
        return ""
    messages = example.prompt if isinstance(example, Preference) else example.messages
    if isinstance(example, Chat):
        last = max((i for i, m in enumerate(messages) if m.role == "assistant"), default=len(messages))
        messages = messages[:last]
    return SEPARATOR.join([f"{m.role}\x1e{_said(m)}" for m in messages])


def answer_of(example: Example) -> str:
    """The last answer (the better one of two) with the tools it calls; "" where there is none."""
    if isinstance(example, Feedback):
        example = example.chat
    if isinstance(example, Preference):
        return SEPARATOR.join([_said(m) for m in example.chosen])
    if not isinstance(example, Chat):
        return ""
    return next((_said(m) for m in reversed(example.messages) if m.role == "assistant"), "")


def _said(message: Message) -> str:
    return f"{message.content}{message.tool_calls}" if message.tool_calls else message.content


def whole_of(row: Row) -> str:
    """All that makes two rows the same row, as one text: roles, texts, tools and their calls, media, labels."""
    text = "".join([f"{p.role}\x1e{p.text}\x1f" for p in row.pieces])
    example = row.example
    if isinstance(example, Feedback):
        text += f"\x1d{example.good}"
        example = example.chat
    if isinstance(example, Text):
        return text
    messages = (
        (*example.prompt, *example.chosen, *example.rejected) if isinstance(example, Preference) else example.messages
    )
    for message in messages:
        if message.tool_calls or message.train is not None or message.name or message.tool_call_id:
            text += f"\x1d{message.tool_calls}{message.train}{message.name}"
    for more in (example.tools, example.media, getattr(example, "verifier", None)):
        if more:
            text += f"\x1d{more}"
    return text


def shorten(text: str, at: int = 0, width: int = 70) -> str:
    """About ``width`` characters of ``text`` around position ``at``, on one line, with what cannot be seen written out."""
    start = max(0, at - width // 3)
    piece = text[start : start + width]
    shown = "".join([c if c.isprintable() else _written(c) for c in piece])
    return ("…" if start else "") + shown + ("…" if start + width < len(text) else "")


def _written(character: str) -> str:
    if character in "\n\r\t":
        return {"\n": "⏎", "\r": "␍", "\t": "␉"}[character]
    if unicodedata.category(character) == "Zs":
        return " "
    return f"‹U+{ord(character):04X}›"
