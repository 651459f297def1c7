"""Counts by length -> a bar chart as SVG. Holds numbers and the page's own words only; everything is escaped all the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT, BASE, TOP, SIDE = 480, 170, 142, 20, 4
"""Of the drawing, in its own units: the bars stand on BASE and end below TOP."""

Bin = tuple[int, int, int]
"""From, up to but not including, count."""


def bins_of(value: Any) -> list[Bin]:
    """Bins out of an answer: ``[[from, to, count], …]``; what is not three whole numbers is left out."""
    found = value if isinstance(value, list) else []
    return [(b[0], b[1], b[2]) for b in found if isinstance(b, list) and len(b) == 3 and all(_is_count(n) for n in b)]


def bins_of_counts(value: Any, most: int = 16) -> list[Bin]:
    """Bins out of counts by number (``{"2": 206, "4": 8}``); what lies beyond ``most`` numbers is taken together."""
    counts = value if isinstance(value, Mapping) else {}
    each = sorted((int(k), n) for k, n in counts.items() if str(k).isdigit() and _is_count(n))
    bins = [(k, k + 1, n) for k, n in each[:most]]
    if len(each) > most:
        bins.append((each[most][0], each[-1][0] + 1, sum(n for _, n in each[most:])))
    return bins


def name(found: Bin) -> str:
    """``12`` or ``20–39``."""
    low, high, _ = found
    return f"{low:,}" if high <= low + 1 else f"{low:,}–{high - 1:,}"


def svg(bins: Sequence[Bin], label: str) -> str:
    """The chart; ``label`` is read out in its place."""
    most = max((n for _, _, n in bins), default=0) or 1
    step = min(56.0, (WIDTH - 2 * SIDE) / max(1, len(bins)))  # one lonely bar need not fill the page
    every = max(
        1, -(-max((len(name(b)) for b in bins), default=1) * 8 // int(step))
    )  # names that would touch are left out
    parts = []
    for i, one in enumerate(bins):
        count = one[2]
        height = max(2.0 if count else 0.0, (BASE - TOP) * count / most)
        left, middle = SIDE + i * step, SIDE + (i + 0.5) * step
        parts.append(
            f'<g><title>{escape(name(one))}: {count:,}</title><rect x="{left + step * 0.08:.1f}" '
            f'y="{BASE - height:.1f}" width="{step * 0.84:.1f}" height="{height:.1f}" rx="2"/>'
            f'<text x="{middle:.1f}" y="{BASE - height - 5:.1f}" class="n">{f"{count:,}" if count else ""}</text>'
            + (f'<text x="{middle:.1f}" y="{BASE + 18}">{escape(name(one))}</text>' if i % every == 0 else "")
            + "</g>"
        )
    return (
        f'<svg class="histogram" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label, quote=True)}">'
        f'{"".join(parts)}<line x1="{SIDE}" y1="{BASE}" x2="{WIDTH - SIDE}" y2="{BASE}"/></svg>'
    )  # fmt: skip


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
