"""What an export lost: perplexity, KL divergence, agreement, changed answers and speed, against the model it was made from.

The reference runs once; its distributions lie in a file on disk in half precision (only at the positions that are measured), so that
memory stays at one passage, whatever the number of exports. Their logarithms are rounded to 11 bits, which moves a mean KL
by less than 1e-5 nats (the difference enters squared); the likeliest token and the loss are kept exactly.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tunesmith.config.errors import UserError
from tunesmith.config.progress import SILENT, Progress
from tunesmith.evaluate.parity import per_position

if TYPE_CHECKING:
    import numpy as np

SPEED_PROMPT, SPEED_ANSWER, SPEED_TIMES = 128, 24, 2
"""Speed: a prompt of so many tokens, an answer of so many; the faster of so many tries counts."""


class Engine(Protocol):
    """An engine in this process (``chat.base.Engine``) that also continues token ids."""

    def logprobs(self, tokens: Sequence[int]) -> np.ndarray: ...

    def continuation(self, prompt: Sequence[int], most: int, *, stop: bool = True) -> list[int]: ...


@dataclass(frozen=True)
class Passage:
    """Token ids [T]; ``scored[t]``: whether token t, given those before it, is measured (the first never is)."""

    ids: tuple[int, ...]
    scored: tuple[bool, ...]

    @property
    def positions(self) -> list[int]:
        """The positions whose next token is measured."""
        return [t - 1 for t, flag in enumerate(self.scored) if flag and t > 0]


@dataclass(frozen=True)
class Text:
    """Passages under one heading: the person's own data, general text of a language."""

    name: str
    passages: tuple[Passage, ...]

    @property
    def tokens(self) -> int:
        return sum(len(passage.positions) for passage in self.passages)


@dataclass(frozen=True)
class Asked:
    """A prompt: token ids, and how it is shown."""

    ids: tuple[int, ...]
    shown: str


@dataclass(frozen=True)
class Figures:
    """On one text. ``perplexity`` = exp(mean loss); KL in nats from the reference; ``top1`` the share of positions (0..1) where both
    find the same token most likely. For the reference itself 0, 0 and 1."""

    perplexity: float
    mean_kl: float
    p95_kl: float
    top1: float
    tokens: int


@dataclass(frozen=True)
class Speed:
    """Tokens per second: reading a prompt, and writing an answer."""

    prompt: float
    answer: float


@dataclass(frozen=True)
class Measured:
    """One model. ``figures``: text -> figures, in the order of the texts. ``answers``: in the order of the prompts."""

    name: str
    bytes: int
    figures: dict[str, Figures]
    answers: tuple[str, ...]
    changed: float | None
    """Share of the answers (0..1) that are not the reference's, word for word; None when the reference could not answer."""
    speed: Speed | None
    """None of a reference that could not answer."""


@dataclass
class Reference:
    """The 16-bit model, asked once; ``numbers``: in which ones it was computed, in words. ``close`` removes its file."""

    measured: Measured
    texts: tuple[Text, ...]
    asked: tuple[Asked, ...]
    answer_tokens: int
    decode: Callable[[Sequence[int]], str]
    file: Path
    vocabulary: int
    numbers: str = "in fp32"
    top: list[np.ndarray] = field(default_factory=list)
    """Per passage: the likeliest token at each measured position."""

    def distributions(self) -> np.ndarray:
        """Natural-log probabilities at all measured positions, one after the other: float16, [positions, vocabulary], on disk."""
        import numpy as np

        return np.memmap(self.file, np.float16, "r").reshape(-1, self.vocabulary)

    def close(self) -> None:
        self.file.unlink(missing_ok=True)


def remember(
    engine: Engine,
    texts: Sequence[Text],
    asked: Sequence[Asked],
    file: Path,
    *,
    decode: Callable[[Sequence[int]], str],
    answer_tokens: int = 48,
    bytes_: int = 0,
    numbers: str = "in fp32",
    progress: Progress = SILENT,
) -> Reference:
    """Ask the reference: distributions into the new ``file``; answers and speed, if it can continue a text.

    Raises UserError when there is nothing to measure.
    """
    import numpy as np

    texts = tuple(text for text in texts if text.tokens)
    if not texts:
        raise UserError("there is no text to measure on", hint="name a data set: --data SET")
    progress.start("measuring the 16-bit model", sum(text.tokens for text in texts), "tokens")
    figures: dict[str, Figures] = {}
    top: list[np.ndarray] = []
    vocabulary = 0
    try:
        with file.open("wb") as out:
            for text in texts:
                losses = []
                for passage in text.passages:
                    rows = engine.logprobs(passage.ids)[passage.positions]
                    vocabulary = rows.shape[1] or vocabulary
                    losses.append(loss_of(rows, passage))
                    top.append(rows.argmax(-1))
                    out.write(np.maximum(rows, np.finfo(np.float16).min).astype(np.float16).tobytes())
                    progress.advance(len(rows))
                figures[text.name] = Figures(_perplexity(losses), 0.0, 0.0, 1.0, text.tokens)
        progress.finish(", ".join(f"{name}: perplexity {found.perplexity:.2f}" for name, found in figures.items()))
        answers: tuple[str, ...] = ()
        speed = None
        if hasattr(engine, "continuation"):
            answers = _answers(engine, "the 16-bit model", asked, answer_tokens, decode, progress)
            speed = speed_of(engine, texts)
            progress.finish()
        measured = Measured("16 bit", bytes_, figures, answers, 0.0 if answers else None, speed)
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    return Reference(measured, texts, tuple(asked), answer_tokens, decode, file, vocabulary, numbers, top)


def measure(engine: Engine, reference: Reference, name: str, bytes_: int, progress: Progress = SILENT) -> Measured:
    """One export against the reference, on the same texts and prompts. Raises UserError for another vocabulary."""
    progress.start(f"measuring {name}", sum(text.tokens for text in reference.texts), "tokens")
    figures = figures_of(engine, reference, progress)
    progress.finish(", ".join(f"{name}: mean KL {one.mean_kl:.2g}" for name, one in figures.items()))
    asked = reference.asked if reference.measured.answers else ()
    answers = _answers(engine, name, asked, reference.answer_tokens, reference.decode, progress)
    changed = sum(mine != theirs for mine, theirs in zip(answers, reference.measured.answers))
    share = changed / len(answers) if answers else None
    found = Measured(name, bytes_, figures, answers, share, speed_of(engine, reference.texts))
    progress.finish()
    return found


def _answers(
    engine: Engine,
    name: str,
    asked: Sequence[Asked],
    most: int,
    decode: Callable[[Sequence[int]], str],
    progress: Progress,
) -> tuple[str, ...]:
    """The greedy answers; the task that is begun here is open for the timing that follows."""
    progress.start(f"asking {name}, and timing it", len(asked), "prompts")
    answers = []
    for one in asked:
        answers.append(decode(engine.continuation(one.ids, most)).strip())
        progress.advance()
    return tuple(answers)


def figures_of(
    engine: Engine, reference: Reference, progress: Progress = SILENT, *, only_first: bool = False
) -> dict[str, Figures]:
    """The figures alone, of all texts or of the first one. One passage is in memory at a time."""
    import numpy as np

    known, at, number = reference.distributions(), 0, 0
    figures: dict[str, Figures] = {}
    for text in reference.texts[:1] if only_first else reference.texts:
        losses, kls, agrees = [], [], []
        for passage in text.passages:
            positions = passage.positions
            rows = engine.logprobs(passage.ids)[positions]
            if len(positions):
                kls.append(per_position(known[at : at + len(positions)], rows)[0])
            losses.append(loss_of(rows, passage))
            agrees.append(rows.argmax(-1) == reference.top[number])
            at, number = at + len(positions), number + 1
            progress.advance(len(positions))
        kl = np.concatenate(kls)
        finite = bool(np.isfinite(kl).all())
        figures[text.name] = Figures(
            _perplexity(losses),
            float(kl.mean()),
            float(np.percentile(kl, 95)) if finite else math.inf,
            float(np.concatenate(agrees).mean()),
            text.tokens,
        )
    return figures


def loss_of(rows: np.ndarray, passage: Passage) -> np.ndarray:
    """-log p of each measured token, float64 [positions]; ``rows``: the distributions at these positions."""
    import numpy as np

    targets = [passage.ids[t + 1] for t in passage.positions]
    return -rows[np.arange(len(targets)), targets].astype(np.float64)


def _perplexity(losses: Sequence[np.ndarray]) -> float:
    """exp(mean over all tokens), at most 1e300."""
    import numpy as np

    return math.exp(min(float(np.concatenate(losses).mean()), 690.0))


def speed_of(engine: Engine, texts: Sequence[Text]) -> Speed:
    """Time to the first token of an answer, and from there to the last: the difference of two runs over the same prompt."""
    ids = [token for text in texts for passage in text.passages for token in passage.ids][:SPEED_PROMPT]

    def seconds(new: int) -> float:
        best = math.inf
        for _ in range(SPEED_TIMES):
            began = time.perf_counter()
            engine.continuation(ids, new, stop=False)
            best = min(best, time.perf_counter() - began)
        return best

    first = seconds(1)
    rest = max(seconds(1 + SPEED_ANSWER) - first, 1e-9)
    return Speed(len(ids) / first, SPEED_ANSWER / rest)
