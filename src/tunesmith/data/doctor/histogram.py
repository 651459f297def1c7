"""How lengths are spread: bars for the terminal, and a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLOCKS = " ▏▎▍▌▋▊▉█"
_COLOUR = "#1f5fa8"
_IN_SIGHT = 4
"""A limit up to so many times the longest row is drawn."""


def bins(lengths: Sequence[int], limit: int | None = None, most: int = 10) -> list[tuple[int, int, int]]:
    """``(from, up to but not including, rows)`` with round borders; one border is at ``limit + 1`` when it lies inside.

    The last bin takes the longest hundredth together, so that one giant row does not squeeze all others into one bar.
    """
    values = np.asarray(lengths)
    if not len(values):
        return []
    low, high = int(values.min()), int(values.max()) + 1
    cut = max(low + 1, int(np.percentile(values, 99)) + 1)
    step = _round_step((cut - low) / most)
    edges = list(range(low // step * step, cut + step, step))
    if edges[-1] < high:
        edges.append(high)
    if limit is not None and low <= limit and limit + 1 < high:
        edges = sorted({*edges, limit + 1})
    counts = np.histogram(values, [*edges[:-1], edges[-1] - 0.5])[0]
    return [(a, b, int(n)) for a, b, n in zip(edges, edges[1:], counts)]


def _round_step(wanted: float) -> int:
    power = 10 ** max(0, math.floor(math.log10(max(1.0, wanted))))
    return next((int(m * power) for m in (1, 2, 5, 10) if m * power >= wanted), 10 * power)


def bars(found: Sequence[tuple[int, int, int]], width: int = 40) -> list[str]:
    """One line per bin; the longest bar has ``width`` characters."""
    if not found:
        return []
    most = max(n for _, _, n in found) or 1
    names = [f"{a:,}" if b == a + 1 else f"{a:,}–{b - 1:,}" for a, b, _ in found]
    column = max(map(len, names))
    lines = []
    for name, (_, _, count) in zip(names, found):
        whole, rest = divmod(round(count / most * width * 8), 8)
        bar = "█" * whole + (_BLOCKS[rest] if rest else "")
        lines.append(f"{name:>{column}}  {bar or ('▏' if count else '')} {count:,}".rstrip())
    return lines


def plot(
    path: Path,
    turns: dict[int, int],
    lengths: Sequence[int],
    limit: int | None,
    title: str,
    learned: float | None = None,
) -> None:
    """A picture of the turns per row and, when there are any, the tokens per row, with ``limit`` (data.max_length) marked and
    the share of ``learned`` tokens in the title.

    Raises OSError when it cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9 if lengths else 5, 3.6), dpi=120, layout="constrained")
    axes = figure.subplots(1, 2 if lengths else 1, squeeze=False)[0]
    _draw_turns(axes[0], turns)
    if lengths:
        _draw_lengths(axes[1], lengths, limit)
    for one in axes:
        one.grid(alpha=0.25, axis="y")
        one.set_axisbelow(True)
        one.yaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(title if learned is None else f"{title}\nlearned tokens: {learned:.0%}", fontsize=10)
    temporary = path.with_name(f".{path.name}.partial.png")
    try:
        figure.savefig(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _draw_turns(axes: Axes, turns: dict[int, int]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.bar(list(turns), list(turns.values()), color=_COLOUR)
    axes.set_xlabel("turns per row")
    axes.set_ylabel("rows")
    if turns:  # room on both sides: a single bar would fill the picture, and there would be ticks inside it
        axes.set_xlim(min(turns) - 1.5, max(turns) + 1.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _draw_lengths(axes: Axes, lengths: Sequence[int], limit: int | None) -> None:
    values: NDArray[np.int64] = np.asarray(lengths, dtype=np.int64)
    axes.hist(values, bins=min(60, max(5, int(values.max() - values.min()) + 1)), color=_COLOUR)
    axes.set_xlabel("tokens per row")
    if limit is None:
        return
    label = f"data.max_length = {limit:,}"
    if limit <= _IN_SIGHT * values.max():
        axes.axvline(limit, color="#d9822b", label=label)
        axes.legend(frameon=False)
    else:  # a line out there would press all bars into one
        axes.set_xlabel(f"tokens per row\n({label} lies far to the right)")
