"""The quality report: all measured exports of one model in a table, with a recommendation and answers side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tunesmith.evaluate import quality_rules as rules
from tunesmith.evaluate.quality_rules import number, percent, rise, size
from tunesmith.evaluate.tasks.quality import Figures, Measured, Speed

FP32 = "in fp32"
EXAMPLES = 3
"""So many changed answers of each export are shown."""
VERDICTS = {"fine": "fine", "good": "good", "coarse": "coarse", "broken": "BROKEN"}


@dataclass(frozen=True)
class QualityReport:
    """``texts``: name -> what it is, in words. ``base_speed``: export -> the speed of 16 bit in the same engine, where it was
    measured. ``failed``: export -> why it could not be made."""

    model: str
    reference: Measured
    exports: tuple[Measured, ...]
    texts: Mapping[str, str]
    prompts: tuple[str, ...]
    base_speed: Mapping[str, Speed]
    failed: Mapping[str, str]
    notes: tuple[str, ...] = ()
    numbers: str = FP32
    """In which the 16-bit model was computed, in words."""

    @property
    def recommendation(self) -> rules.Recommendation:
        return rules.recommend(self.exports, self.reference)

    @property
    def warnings(self) -> list[str]:
        return rules.warnings(self.exports, self.reference)

    @property
    def all_notes(self) -> tuple[str, ...]:
        """The notes, and what the numbers of the reference mean for the figures."""
        told = []
        if self.numbers != FP32:
            told.append(
                f"this machine's memory does not hold the 16-bit model in fp32 as a whole: it was computed {self.numbers}"
            )
        if self.numbers != FP32 and "fp32" not in self.numbers:
            told.append(
                "that rounding is in every KL here; compare exports with each other, and small figures with care"
            )
        if not self.reference.answers and self.prompts:
            told.append("so it could not answer: changed answers and its speed were not measured")
        return (*told, *self.notes)

    def verdict(self, one: Measured) -> str:
        return rules.verdict(one, self.reference)

    def as_dict(self) -> dict[str, Any]:
        """For the JSON file: every figure, rule and answer. What is not finite is written as text."""
        found = self.recommendation
        return plain({
            "model": self.model,
            "texts": dict(self.texts),
            "reference": {**asdict(self.reference), "numbers": self.numbers},
            "exports": [asdict(one) | {"verdict": self.verdict(one)} for one in self.exports],
            "base_speed": {name: asdict(speed) for name, speed in self.base_speed.items()},
            "failed": dict(self.failed),
            "prompts": list(self.prompts),
            "recommended": found.use,
            "recommendation": found.words,
            "warnings": self.warnings,
            "notes": list(self.all_notes),
            "rules": {
                "good": {"mean_kl": rules.GOOD_KL, "perplexity_rise": rules.GOOD_RISE},
                "fine": {"mean_kl": rules.FINE_KL, "perplexity_rise": rules.FINE_RISE},
                "broken": {"mean_kl": rules.BROKEN_KL, "perplexity_ratio": rules.BROKEN_RATIO, "top1": rules.BROKEN_TOP1},
            },
        })  # fmt: skip

    def header(self) -> list[str]:
        """The table's columns."""
        first, *others = self.texts
        columns = ["export", "size", f"perplexity ({first})", "mean KL", "95 % KL", "top-1"]
        columns += [f"{name}: perplexity, KL" for name in others]
        return [*columns, "changed answers", "prompt tok/s", "answer tok/s", "verdict"]

    def rows(self) -> list[list[str]]:
        """The table: 16 bit first, then the exports from large to small."""
        return [self._row(one) for one in (self.reference, *sorted(self.exports, key=lambda one: -one.bytes))]

    def _row(self, one: Measured) -> list[str]:
        is_reference = one is self.reference
        first, *others = self.texts
        own, theirs = one.figures[first], self.reference.figures[first]
        cells = [one.name, size(one.bytes)]
        if is_reference:
            cells += [number(own.perplexity), "–", "–", "–", *(number(one.figures[name].perplexity) for name in others)]
        else:
            cells += [f"{number(own.perplexity)} ({percent(rise(own, theirs))})", _kl(own.mean_kl), _kl(own.p95_kl)]
            cells += [f"{own.top1:.1%}", *(self._other(one.figures[name], name) for name in others)]
        changed = "–" if is_reference else _share(one.changed)
        base = self.base_speed.get(one.name)
        cells += [
            changed,
            _speed(one.speed.prompt if one.speed else None, base.prompt if base else None, is_reference),
            _speed(one.speed.answer if one.speed else None, base.answer if base else None, is_reference),
        ]
        return [*cells, "–" if is_reference else VERDICTS[self.verdict(one)]]

    def short(self, *, wide: bool) -> tuple[list[str], list[list[str]]]:
        """Header and rows for a terminal: fewer columns, and the other texts' KL where it is ``wide``."""
        first, *others = self.texts
        others = others if wide else []
        header = [
            "export",
            "size",
            "perplexity",
            "KL",
            *(["95 % KL"] if wide else []),
            "top-1",
            *(f"KL {n}" for n in others),
        ]
        table = []
        for one in (self.reference, *sorted(self.exports, key=lambda one: -one.bytes)):
            found, theirs = one.figures[first], self.reference.figures[first]
            if one is self.reference:
                cells = [number(found.perplexity), *["–"] * (2 + wide + len(others)), "–"]
            else:
                cells = [percent(rise(found, theirs)), _kl(found.mean_kl), *([_kl(found.p95_kl)] if wide else [])]
                cells += [f"{found.top1:.1%}", *(_kl(one.figures[n].mean_kl) for n in others), _share(one.changed)]
            word = "–" if one is self.reference else VERDICTS[self.verdict(one)]
            speed = _speed(one.speed.answer if one.speed else None, None, one is self.reference)
            table.append([one.name, size(one.bytes), *cells, speed, word])
        return [*header, "changed", "tok/s", "verdict"], table

    def _other(self, found: Figures, name: str) -> str:
        return f"{percent(rise(found, self.reference.figures[name]))}, {_kl(found.mean_kl)}"

    def markdown(self) -> str:
        """The report as a page of Markdown."""
        lines = [f"# Quality of the exports of {self.model}", "", f"**{_first_up(self.recommendation.words)}.**", ""]
        for line in self.warnings:
            lines += [f"> **{line}**", ">"]
        lines += [""] if self.warnings else []
        lines += [_line(self.header()), _line(["---"] * len(self.header())), *map(_line, self.rows()), ""]
        lines += [f"- {name}: could not be made: {why}" for name, why in self.failed.items()]
        lines += [
            f"Against the 16-bit model {self.numbers}. KL in nats, the mean and the 95th percentile over all positions; top-1: how often "
            "both find the same token most likely; changed answers: greedy answers that differ in any word. "
            "Speed: on this machine, in brackets against 16 bit in the same engine where that was measured; that of the first row, in "
            "brackets, is transformers', which is no measure for a GGUF in llama.cpp.",
            "",
            *(f"- {name}: {words}" for name, words in self.texts.items()),
            *(f"- {note}" for note in self.all_notes),
            f"- good: at most {rules.GOOD_KL:g} mean KL and {rules.GOOD_RISE:.0%} more perplexity on the first text; fine: at "
            f"most {rules.FINE_KL:g} and {rules.FINE_RISE:.0%}; coarse: more than good; broken: mean KL above {rules.BROKEN_KL:g} or perplexity above "
            f"{rules.BROKEN_RATIO:g} times on any text, or a top-1 agreement below {rules.BROKEN_TOP1:.0%} on the first",
            "",
            *self._side_by_side(),
        ]
        return "\n".join(lines)

    def _side_by_side(self) -> list[str]:
        """Answers that changed, beside those of the 16-bit model."""
        lines: list[str] = []
        for one in sorted(self.exports, key=lambda one: -one.bytes):
            answers = zip(self.prompts, self.reference.answers, one.answers)
            changed = [row for row in answers if row[1] != row[2]]
            if not changed:
                continue
            lines += [f"## Answers that {one.name} changed ({len(changed)} of {len(one.answers)})", ""]
            lines += ["| prompt | 16 bit | " + one.name + " |", "|---|---|---|"]
            lines += [_line([_cell(text) for text in row]) for row in changed[:EXAMPLES]]
            lines.append("")
        return lines


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str, most: int = 240) -> str:
    """One line of a table, without what Markdown would take for its own."""
    text = " ".join(text.split()) or "(empty)"
    text = text if len(text) <= most else "…" + text[1 - most :]
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "\\`").replace("*", "\\*")


def _kl(value: float) -> str:
    return f"{value:.2g}" if value < 100 else f"{value:.0f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _speed(value: float | None, base: float | None, in_transformers: bool) -> str:
    """``in_transformers``: of the 16-bit model, which is not asked in the engine of the exports beside it."""
    if value is None:
        return "–"
    if in_transformers:
        return f"({value:.0f})"
    return f"{value:.0f}" + (f" (× {value / base:.2f})" if base else "")


def _first_up(text: str) -> str:
    return text[:1].upper() + text[1:]


def plain(value: Any) -> Any:
    """JSON knows no infinity."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
