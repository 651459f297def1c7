"""The quality report as a picture: what each export lost, by size. Colours by Okabe and Ito, told apart without red and green,
and every text has a mark of its own.
"""

from __future__ import annotations

import io

from tunesmith.evaluate import quality_rules as rules
from tunesmith.evaluate.quality_report import QualityReport
from tunesmith.evaluate.quality_rules import number, size

COLOURS, MARKS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7"), ("o", "s", "^", "D")
GREY = "#999999"
FLOOR, CEILING = 1e-5, 1e4
"""KL below and above are drawn here: the axis is logarithmic."""


def picture(report: QualityReport) -> bytes:
    """A PNG: a line for each export from small (below) to large, with its size, its mean KL and its perplexity times that of 16
    bit (both on logarithmic axes), on every text."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    exports = sorted(report.exports, key=lambda one: one.bytes)
    lines = list(range(len(exports)))
    use = report.recommendation.use
    broken = {one.name for one in exports if report.verdict(one) == "broken"}
    figure = Figure(figsize=(12.5, 2.9 + 0.34 * len(exports)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    weights, left, right = figure.subplots(1, 3, sharey=True, width_ratios=(0.8, 1.5, 1.5))
    figure.suptitle(
        f"What the exports of {report.model} lose against 16 bit ({size(report.reference.bytes)})", fontsize=13
    )

    weights.barh(lines, [one.bytes for one in exports], color=GREY, height=0.62)
    for y, one in zip(lines, exports):
        weights.annotate(
            size(one.bytes), (one.bytes, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8
        )
    weights.set_yticks(lines, [one.name for one in exports])
    for label, one in zip(weights.get_yticklabels(), exports):
        label.set_fontweight("bold" if one.name == use else "normal")
    weights.set_xlim(0, 1.35 * max((one.bytes for one in exports), default=1))
    weights.xaxis.set_major_locator(MaxNLocator(3))
    weights.xaxis.set_major_formatter(FuncFormatter(lambda value, _: "0" if value == 0 else size(int(value))))
    weights.set_xlabel("size of the file or folder")

    for i, name in reversed(list(enumerate(report.texts))):
        kl = [min(max(one.figures[name].mean_kl, FLOOR), CEILING) for one in exports]
        base = report.reference.figures[name].perplexity
        ratio = [min(max(one.figures[name].perplexity / base, 0.1), CEILING) for one in exports]
        how = {
            "color": COLOURS[i % 4],
            "marker": MARKS[i % 4],
            "markersize": 7 if i == 0 else 5,
            "linewidth": 1.8 if i == 0 else 0.9,
        }
        of = f" ({number(base)} in 16 bit)"
        left.plot(kl, lines, label=name, zorder=3 - i / 10, **how)
        right.plot(ratio, lines, label=name + of, zorder=3 - i / 10, **how)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_ylim(-0.7, len(exports) - 0.3)
        axes.grid(True, axis="both", which="major", alpha=0.3)
        for y, one in zip(lines, exports):
            if one.name in broken:
                axes.axhspan(y - 0.5, y + 0.5, facecolor="none", edgecolor="0.75", hatch="////", linewidth=0, zorder=0)
            if one.name == use:
                axes.axhspan(y - 0.5, y + 0.5, facecolor="#F0E442", alpha=0.55, linewidth=0, zorder=0)
    left.set_xlabel("mean KL divergence to 16 bit (nats)")
    left.axvline(rules.GOOD_KL, color="0.3", linestyle="--", linewidth=1.2)
    left.axvline(rules.BROKEN_KL, color="0.3", linestyle=":", linewidth=1.6)
    right.set_xlabel("perplexity, times that of 16 bit")
    right.axvline(1 + rules.GOOD_RISE, color="0.3", linestyle="--", linewidth=1.2)
    right.axvline(rules.BROKEN_RATIO, color="0.3", linestyle=":", linewidth=1.6)
    shown = [x for line in right.get_lines() for x in line.get_xdata()]  # the bounds among them
    low, high = 0.97 * min([1.0, *shown]), 1.07 * max(shown)
    right.set_xlim(low, high)
    right.xaxis.set_major_locator(LogLocator(subs=(1.0, 1.2, 1.5, 2.0, 3.0, 5.0) if high < 20 else (1.0,)))
    right.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    right.xaxis.set_minor_formatter(NullFormatter())
    low, high = left.get_xlim()
    left.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 100 * low else (1.0,)))
    left.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    left.xaxis.set_minor_formatter(NullFormatter())
    _legend(figure, right, recommended=use is not None, broken=bool(broken))
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _legend(figure: object, right: object, *, recommended: bool, broken: bool) -> None:
    """One legend below: the texts, the two bounds, and what a coloured or hatched line means, where there is one."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles, labels = right.get_legend_handles_labels()  # type: ignore[attr-defined]
    handles, labels = handles[::-1], labels[::-1]
    handles += [
        Line2D([], [], color="0.3", linestyle="--"),
        Line2D([], [], color="0.3", linestyle=":", linewidth=1.6),
    ]
    labels += [
        f"good: up to {rules.GOOD_KL:g} nats, × {1 + rules.GOOD_RISE:g}",
        f"broken: above {rules.BROKEN_KL:g} nats, × {rules.BROKEN_RATIO:g}",
    ]
    if recommended:
        handles.append(Patch(facecolor="#F0E442", alpha=0.55))
        labels.append("recommended")
    if broken:
        handles.append(Patch(facecolor="none", edgecolor="0.75", hatch="////"))
        labels.append("broken: do not use")
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9, frameon=False)  # type: ignore[attr-defined]
