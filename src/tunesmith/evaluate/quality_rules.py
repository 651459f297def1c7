"""From figures to words: which export to use, and which not. Every bound stands here and in docs/export.md.

The first text decides: the person's own data, where there are any.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tunesmith.evaluate.tasks.quality import Figures, Measured

GOOD_KL, GOOD_RISE = 0.05, 0.05
"""Recommended: the smallest export with at most this mean KL (nats) and this much more perplexity (share) on the first text."""
FINE_KL, FINE_RISE = 0.01, 0.01
"""Below these nothing is noticed."""
BROKEN_KL, BROKEN_RATIO, BROKEN_TOP1 = 0.5, 1.5, 0.75
"""Not to be used: a mean KL above, a perplexity of more than so many times, or (first text only) a top-1 agreement below."""
FEW = 100
"""Positions below which a text is too short to judge by how often the likeliest token is another one."""

Verdict = Literal["fine", "good", "coarse", "broken"]


@dataclass(frozen=True)
class Recommendation:
    """``use``: the name of an export, None when every one is broken. ``words``: why, and what else may be had."""

    use: str | None
    words: str


def rise(figures: Figures, reference: Figures) -> float:
    """By which share the perplexity is higher (0.03 = 3 %)."""
    return figures.perplexity / reference.perplexity - 1


def verdict(one: Measured, reference: Measured) -> Verdict:
    """How much was lost."""
    first = next(iter(one.figures))
    for name, found in one.figures.items():
        if damage(found, reference.figures[name], strict=name == first) is not None:
            return "broken"
    kl, more = one.figures[first].mean_kl, rise(one.figures[first], reference.figures[first])
    if kl <= FINE_KL and more <= FINE_RISE:
        return "fine"
    return "good" if kl <= GOOD_KL and more <= GOOD_RISE else "coarse"


def damage(found: Figures, reference: Figures, *, strict: bool) -> str | None:
    """What makes an export unusable on one text, in words; None when nothing does."""
    ratio = found.perplexity / reference.perplexity
    if not ratio <= BROKEN_RATIO:
        return f"perplexity {number(found.perplexity)} in place of {number(reference.perplexity)}"
    if not found.mean_kl <= BROKEN_KL:
        return f"mean KL {found.mean_kl:.2g} (at most {BROKEN_KL:g})"
    if strict and found.tokens >= FEW and not found.top1 >= BROKEN_TOP1:
        return f"another likeliest token at {1 - found.top1:.0%} of the positions"
    return None


def warnings(exports: Sequence[Measured], reference: Measured) -> list[str]:
    """One loud line for every export that must not be used."""
    lines = []
    for one in exports:
        first = next(iter(one.figures))
        for name, found in one.figures.items():
            why = damage(found, reference.figures[name], strict=name == first)
            if why is not None:
                lines.append(f"DO NOT USE {one.name}: it is broken on {name}: {why}")
                break
    return lines


def recommend(exports: Sequence[Measured], reference: Measured) -> Recommendation:
    """The smallest export within the bounds; else the one that lost least."""
    if not exports:
        return Recommendation(None, "nothing was measured")
    judged = [(one, verdict(one, reference)) for one in sorted(exports, key=lambda one: one.bytes)]
    usable = [one for one, word in judged if word != "broken"]
    good = [one for one, word in judged if word in ("fine", "good")]
    fine = [one for one, word in judged if word == "fine"]
    if not usable:
        which = "this export cannot be used" if len(exports) == 1 else "none of these can be used"
        return Recommendation(None, f"{which}: export with more bits (or --to hf)")
    if good:
        words = f"use {_told(good[0], reference)}"
        if fine and fine[0] is not good[0]:
            words += f"; {_told(fine[0], reference)} if nothing may change"
        return Recommendation(good[0].name, words)
    first = next(iter(reference.figures))
    best = min(usable, key=lambda one: one.figures[first].mean_kl)
    return Recommendation(
        best.name,
        f"no export stays within a mean KL of {GOOD_KL:g} and {GOOD_RISE:.0%} more perplexity; the nearest is "
        f"{_told(best, reference)}: take more bits where there is room",
    )


def _told(one: Measured, reference: Measured) -> str:
    """``q4_k_m (105 MB, perplexity +3.2 %, mean KL 0.041)``."""
    first = next(iter(one.figures))
    found = one.figures[first]
    return f"{one.name} ({size(one.bytes)}, perplexity {percent(rise(found, reference.figures[first]))}, mean KL {found.mean_kl:.2g})"


def percent(share: float) -> str:
    """``+3.2 %``; a thousandfold rise is no percentage any more."""
    return f"{share * 100:+.1f} %" if share < 9.995 else f"× {number(share + 1)}"


def number(value: float) -> str:
    """``29.31``, ``1.2e+05``."""
    return f"{value:.2f}" if math.isfinite(value) and value < 1e4 else f"{value:.1e}"


def size(count: int) -> str:
    """Bytes in kB, MB or GB of 10^3, 10^6 and 10^9."""
    if count >= 9_995_000:
        return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
    return f"{count / 1e6:.2f} MB" if count >= 10_000 else f"{count / 1e3:.2f} kB"
