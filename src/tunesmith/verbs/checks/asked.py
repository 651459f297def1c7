"""What a deployed model is asked: rows of its run that were held out, else a few questions of our own; and how long its answers may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.config.errors import UserError
from tunesmith.config.progress import Progress
from tunesmith.data.example import Chat, Message
from tunesmith.verbs.targets import Target

if TYPE_CHECKING:
    from tunesmith.render.conversation import Renderer

MOST = 20
"""So many prompts are asked."""
LONGEST, SHORTEST = 1024, 32
"""Bounds of the tokens that an answer may have: a first answer may take some words, and waiting has an end."""
WITHOUT_RUN = 256
"""Tokens that an answer may have when no training says how long answers are."""
MEASURED = 2000
"""Answers of so many training rows are measured."""
QUESTIONS = (
    "What is the capital of France?",
    "What is 2 + 2?",
    "Name three colours.",
    "你好，你是谁？",
    "Translate “good morning” into French.",
    "Which is larger, the sun or the moon?",
)


@dataclass(frozen=True)
class Asked:
    """``chats`` have a prompt and, when they are rows, an answer. ``source`` and ``why`` (of ``limit``, in tokens) are for the report.

    ``trained``: whether a training was to teach answers like these.
    """

    chats: tuple[Chat, ...]
    limit: int
    source: str
    why: str
    trained: bool

    @property
    def rows(self) -> tuple[Chat, ...]:
        """Those with answers, whose loss can be measured."""
        return tuple(chat for chat in self.chats if chat.answer())


def asked(target: Target, renderer: Renderer, progress: Progress) -> Asked:
    """Held-out rows of the target's run (training rows when none was held out), else `QUESTIONS`."""
    trained = target.learned is not None
    if target.config is not None and trained:
        from tunesmith.data.load import load

        try:
            split = load(target.config.data, target.config.train.seed, progress, kind="chat")
            held, learned = ([row for row in part if usable(row)] for part in (split.eval, split.train))
        except UserError as error:  # the data is gone, or is of another kind: the model is asked all the same
            progress.say(f"the rows of the run cannot be asked: {error.message}")
            held = learned = []
        rows, source = (held, "held-out rows") if held else (learned, "training rows, since none was held out")
        if rows:
            lengths = sorted(
                len(renderer.tokenizer(row.answer(), add_special_tokens=False).input_ids)
                for row in spread([*held, *learned], MEASURED)
            )
            p99 = lengths[min(len(lengths) - 1, int(0.99 * len(lengths)))]
            limit = min(max(2 * p99, SHORTEST), LONGEST)
            why = f"twice the {p99} tokens that 99% of the answers it learned from stay within"
            return Asked(tuple(spread(rows, MOST)), limit, source, why, True)
    chats = tuple(Chat((Message("user", text),)) for text in QUESTIONS)
    return Asked(chats, WITHOUT_RUN, "questions of our own", "no training says how long its answers are", trained)


def usable(row: Any) -> bool:
    """Whether a row can be asked of a server: a conversation of texts that ends in an answer."""
    return isinstance(row, Chat) and not row.media and bool(row.prompt()) and bool(row.answer())


def spread(rows: Sequence[Any], most: int) -> list[Any]:
    """At most ``most`` rows, evenly from all: sets are often sorted by topic or language."""
    return list(rows) if len(rows) <= most else [rows[i * len(rows) // most] for i in range(most)]
