"""Before and after: the same prompts asked of several engines, and the loss of each on held-out conversations.

It knows engines, not where they came from; each is opened, asked and closed in turn, so that one is in memory at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tunesmith.chat.base import Engine, Sampling, answer
from tunesmith.config.progress import SILENT, Progress
from tunesmith.evaluate.held_out import HeldOut

OTHER_TOKENS = "these models cut text into different tokens, so their losses per token cannot be compared; bits per byte of the text can"


@dataclass(frozen=True)
class Question:
    """What is asked (messages up to the answer), and the reference answer when there is one."""

    messages: tuple[dict[str, Any], ...]
    reference: str = ""

    @property
    def text(self) -> str:
        """The last thing the user said."""
        return str(self.messages[-1]["content"])


@dataclass(frozen=True)
class Candidate:
    """One engine's answers, in the order of the questions. ``loss`` is the mean over learned tokens in nats, ``perplexity`` =
    exp(loss); both None when the engine does not tell distributions, or cuts text into other tokens than the first model that does:
    then ``bits_per_byte`` of the learned text compares them. ``why`` says why figures are missing."""

    name: str
    answers: tuple[str, ...]
    loss: float | None
    perplexity: float | None
    tokens: int
    bits_per_byte: float | None = None
    why: str = ""


@dataclass(frozen=True)
class Comparison:
    """Candidates side by side."""

    questions: tuple[Question, ...]
    candidates: tuple[Candidate, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def same_tokens(self) -> bool:
        """Whether every model that was measured reads the rows as the same tokens, so that losses can be compared."""
        return not any(c.bits_per_byte is not None and c.loss is None for c in self.candidates)

    def figures(self) -> list[list[str]]:
        """A table: its head, then a row for each model. Only the head when nothing was measured."""
        same = self.same_tokens
        rows = [["model", "held-out loss", "perplexity"] if same else ["model", "bits per byte"]]
        if all(c.bits_per_byte is None for c in self.candidates):
            return rows
        for c in self.candidates:
            values = (c.loss, c.perplexity) if same else (c.bits_per_byte,)
            digits = (4, 2) if same else (4,)
            rows.append([c.name, *("–" if v is None else f"{v:.{d}f}" for v, d in zip(values, digits))])
        return rows

    def notes(self) -> list[str]:
        """What to know about the figures."""
        found = [] if self.same_tokens else [OTHER_TOKENS]
        return found + [f"{c.name} was not measured: {c.why}" for c in self.candidates if c.why]

    def markdown(self) -> str:
        """The comparison as a page of Markdown."""
        lines = ["# Comparison", ""]
        head, *rows = self.figures()
        if rows:
            lines += ["| " + " | ".join(map(one_line, row)) + " |" for row in (head, ["---"] * len(head), *rows)]
            lines += ["", *(f"{one_line(note)}\n" for note in self.notes())]
        for i, question in enumerate(self.questions):
            lines += [f"## {i + 1}. {one_line(question.text)}", ""]
            lines += [f"- **{one_line(c.name)}**: {one_line(c.answers[i]) or '(empty)'}" for c in self.candidates]
            lines += [f"- *reference*: {one_line(question.reference)}"] if question.reference else []
            lines.append("")
        return "\n".join(lines)


def compare(
    openers: Sequence[tuple[str, Callable[[], Engine]]],
    questions: Sequence[Question],
    held_out: HeldOut,
    sampling: Sampling,
    progress: Progress = SILENT,
) -> Comparison:
    """Ask every engine every question; measure the loss on ``held_out`` where the engine tells its distribution."""
    candidates = []
    for name, open_ in openers:
        engine = open_()
        try:
            progress.start(f"asking {name}", len(questions), "questions")
            answers = []
            for question in questions:
                answers.append(answer(engine, list(question.messages), sampling).strip())
                progress.advance(1)
            progress.finish()
            found = held_out.measure(engine)
        finally:
            engine.close()
        perplexity = None if found.loss is None else math.exp(min(found.loss, 700.0))
        candidates.append(
            Candidate(name, tuple(answers), found.loss, perplexity, found.tokens, found.bits_per_byte, found.why)
        )
    return Comparison(tuple(questions), tuple(candidates))


def one_line(text: str) -> str:
    """One line that Markdown shows as it is: no markup, table, link, picture or HTML comes of it."""
    return "".join("\\" + c if c in "\\`*_|<>#[]~&" else c for c in " ".join(text.split()))
