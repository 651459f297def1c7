"""``tunesmith data check``: what is in a data set, before a minute of training is spent on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from tunesmith.config.errors import UserError
from tunesmith.config.progress import Progress
from tunesmith.data.config import DataConfig
from tunesmith.data.example import Chat
from tunesmith.data.identity import identity
from tunesmith.data.load import load_set
from tunesmith.models.config import ModelConfig
from tunesmith.train.config import TrainConfig
from tunesmith.train.order import total_steps
from tunesmith.verbs.targets import open_renderer


@dataclass(frozen=True)
class Finding:
    """``severity``: error (training would stop) or warning."""

    severity: str
    message: str


@dataclass(frozen=True)
class DataReport:
    """Lines about the set, and what is wrong with it."""

    lines: tuple[str, ...]
    findings: tuple[Finding, ...]


def check(name: str, progress: Progress, *, model: str | None = None, max_length: int = 2048) -> DataReport:
    """Read every row of the set; with a model, render and count tokens as training would."""
    config = DataConfig(train=(name,), max_length=max_length)
    loaded = load_set(name, config, progress)
    total = len(loaded.examples) + len(loaded.bad)
    lines = [f"{loaded.dataset.place}: {total} rows, {loaded.format} ({loaded.reason})"]
    findings = [Finding("error", f"{e.message} ({e.hint})" if e.hint else e.message) for e in loaded.bad]
    chats = [e for e in loaded.examples if isinstance(e, Chat)]
    turns = [sum(m.role == "assistant" for m in e.messages) for e in chats]
    systems = sum(any(m.role == "system" for m in e.messages) for e in chats)
    if turns:
        lines.append(f"answers per row: {min(turns)} to {max(turns)}; {systems} rows with a system prompt")
    seen: dict[bytes, str] = {}
    for example in loaded.examples:
        first = seen.setdefault(identity(example), example.origin)
        if first != example.origin:
            findings.append(Finding("warning", f"{example.origin}: the same as {first}"))
    if model is not None and chats:
        extra, more = _tokens(chats, model, config, progress)
        lines += extra
        findings += more
    loop = TrainConfig()
    rows = len(loaded.examples)
    held = min(max(1, round(rows * config.eval_share)), max(rows - 1, 0))
    rows -= held
    if rows:
        steps = total_steps(rows, loop.batch, loop.epochs, None)
        few = ": probably too few to see a change" if steps < 30 else ""
        lines.append(
            f"with the default settings: {rows} rows x {loop.epochs:g} epochs / {loop.batch} = {steps} steps{few} ({held} held out)"
        )
    return DataReport(tuple(lines), tuple(findings))


def _tokens(
    examples: Sequence[Chat], model: str, config: DataConfig, progress: Progress
) -> tuple[list[str], list[Finding]]:
    _, renderer = open_renderer(ModelConfig(ref=model), config, progress)
    lengths, learned, shortened = [], 0, 0
    findings: list[Finding] = []
    progress.start("rendering", len(examples), "rows")
    for example in examples:
        progress.advance(1)
        try:
            rendered = renderer.render(example)
        except UserError as error:
            findings.append(Finding("error", error.message))
            continue
        lengths.append(len(rendered.ids))
        learned += rendered.learned
        shortened += rendered.dropped_turns > 0
    progress.finish()
    if not lengths:
        return [], [*findings, Finding("error", "no row can be rendered with this model's chat template")]
    lines = [
        f"tokens per row: {min(lengths)} to {max(lengths)}, median {median(lengths):.0f}; {sum(lengths)} in all",
        f"learned tokens: {learned / sum(lengths):.0%}",
    ]
    if shortened:
        findings.append(
            Finding("warning", f"{shortened} rows lose their earliest turns to fit max_length={config.max_length}")
        )
    return lines, findings
