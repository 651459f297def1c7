"""Before and after: the same prompts asked of several engines, and the loss of each on held-out conversations.

It knows engines, not where they came from; each is opened, asked and closed in turn, so that one is in memory at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tunesmith.chat.base import Engine, Sampling, answer
from tunesmith.config.errors import UserError
from tunesmith.config.progress import SILENT, Progress
from tunesmith.render.conversation import Rendered


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
    """One engine's answers, in the order of the questions. ``loss`` is the mean over learned tokens in nats, None when
    the engine does not tell distributions; ``perplexity`` = exp(loss)."""

    name: str
    answers: tuple[str, ...]
    loss: float | None
    perplexity: float | None
    tokens: int


@dataclass(frozen=True)
class Comparison:
    """Candidates side by side."""

    questions: tuple[Question, ...]
    candidates: tuple[Candidate, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def markdown(self) -> str:
        """The comparison as a page of Markdown."""
        lines = ["# Comparison", ""]
        if any(c.loss is not None for c in self.candidates):
            lines += ["| model | held-out loss | perplexity |", "|---|---|---|"]
            for c in self.candidates:
                figures = "– | –" if c.loss is None or c.perplexity is None else f"{c.loss:.4f} | {c.perplexity:.2f}"
                lines.append(f"| {c.name} | {figures} |")
            lines.append("")
        for i, question in enumerate(self.questions):
            lines += [f"## {i + 1}. {_one_line(question.text)}", ""]
            lines += [f"- **{c.name}**: {_one_line(c.answers[i])}" for c in self.candidates]
            lines += [f"- *reference*: {_one_line(question.reference)}"] if question.reference else []
            lines.append("")
        return "\n".join(lines)


def compare(
    openers: Sequence[tuple[str, Callable[[], Engine]]],
    questions: Sequence[Question],
    held_out: Sequence[Rendered],
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
            loss, tokens = _loss(engine, held_out)
        finally:
            engine.close()
        perplexity = None if loss is None else math.exp(min(loss, 700.0))
        candidates.append(Candidate(name, tuple(answers), loss, perplexity, tokens))
    return Comparison(tuple(questions), tuple(candidates))


def _loss(engine: Engine, held_out: Sequence[Rendered]) -> tuple[float | None, int]:
    if not held_out:
        return None, 0
    try:
        return held_out_loss(engine, held_out)
    except UserError:  # a server, which tells no distribution
        return None, 0


def held_out_loss(engine: Engine, held_out: Sequence[Rendered]) -> tuple[float, int]:
    """Mean of -log p(x_t | x_<t) over the learned tokens of all rows (nats), and how many tokens that is."""
    import numpy as np

    total, count = 0.0, 0
    for row in held_out:
        logprobs = engine.logprobs(row.ids)
        learned = np.flatnonzero(np.asarray(row.mask[1:]))
        targets = np.asarray(row.ids[1:])[learned]
        total -= float(logprobs[learned, targets].astype(np.float64).sum())
        count += len(learned)
    if count == 0:
        raise UserError("the held-out rows have no learned token")
    return total / count, count


def _one_line(text: str) -> str:
    return " ".join(text.split()) or "(empty)"
