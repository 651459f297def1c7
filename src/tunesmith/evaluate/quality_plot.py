"""The quality report as a picture: what each export lost against its size. Colours by Okabe and Ito, told apart without red and green."""

from __future__ import annotations

import io

from tunesmith.evaluate import quality_rules as rules
from tunesmith.evaluate.quality_report import QualityReport

COLOURS, MARKS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7"), ("o", "s", "^", "D")
FLOOR = 1e-5
"""KL below this is drawn here: the axis is logarithmic."""


def picture(report: QualityReport) -> bytes:
    """A PNG: mean KL (logarithmic) and perplexity (times that of 16 bit) against size, every text a line, every export named."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    exports = sorted(report.exports, key=lambda one: one.bytes)
    gigabytes = max((one.bytes for one in exports), default=0) >= 2e9
    unit, divisor = ("GB", 1e9) if gigabytes else ("MB", 1e6)
    sizes = [one.bytes / divisor for one in exports]
    figure = Figure(figsize=(13, 6.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    figure.suptitle(f"What the exports of {report.model} lose against 16 bit", fontsize=14)
    for i, (name, colour, mark) in enumerate(zip(report.texts, COLOURS, MARKS)):
        kl = [max(one.figures[name].mean_kl, FLOOR) for one in exports]
        ratio = [max(one.figures[name].perplexity / report.reference.figures[name].perplexity, 1e-9) for one in exports]
        for axes, values in ((left, kl), (right, ratio)):
            axes.plot(
                sizes, values, color=colour, marker=mark, markersize=7 if i == 0 else 5, linewidth=2 if i == 0 else 1,
                alpha=1 if i == 0 else 0.75, label=name, zorder=3 - i * 0.1,
            )  # fmt: skip
    first = next(iter(report.texts))
    use = report.recommendation.use
    broken = [i for i, one in enumerate(exports) if report.verdict(one) == "broken"]
    for axes in (left, right):
        if axes is left:
            values = [max(one.figures[first].mean_kl, FLOOR) for one in exports]
        else:
            values = [one.figures[first].perplexity / report.reference.figures[first].perplexity for one in exports]
        if broken:
            axes.plot(
                [sizes[i] for i in broken], [values[i] for i in broken], "x", color="black", markersize=13,
                markeredgewidth=2.2, label="broken: do not use", zorder=5,
            )  # fmt: skip
        for i, one in enumerate(exports):
            if one.name == use:
                axes.plot(
                    [sizes[i]], [values[i]], "o", markersize=17, markerfacecolor="none", markeredgecolor="black",
                    markeredgewidth=1.6, label="recommended", zorder=5,
                )  # fmt: skip
        _name(axes, [one.name for one in exports], sizes, values)
        axes.set_xlabel(f"size ({unit})")
        axes.grid(True, which="major", alpha=0.3)
        axes.margins(x=0.08, y=0.15)
        axes.xaxis.set_major_locator(MaxNLocator(8))
    left.set_yscale("log")
    left.set_ylabel("mean KL divergence (nats), log scale")
    left.axhline(rules.GOOD_KL, color="0.4", linestyle="--", linewidth=1, label=f"good: below {rules.GOOD_KL:g}")
    left.axhline(rules.BROKEN_KL, color="0.4", linestyle=":", linewidth=1.4, label=f"broken: above {rules.BROKEN_KL:g}")
    right.set_ylabel("perplexity, times that of 16 bit, log scale")
    right.set_yscale("log")
    right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    right.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    right.axhline(
        1 + rules.GOOD_RISE, color="0.4", linestyle="--", linewidth=1, label=f"good: below {1 + rules.GOOD_RISE:g}"
    )
    right.axhline(
        rules.BROKEN_RATIO, color="0.4", linestyle=":", linewidth=1.4, label=f"broken: above {rules.BROKEN_RATIO:g}"
    )
    for axes in (left, right):
        axes.legend(fontsize=9, loc="upper right")
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _name(axes: object, names: list[str], sizes: list[float], values: list[float]) -> None:
    """Every export's name beside its mark, above and below in turn so that neighbours do not cover each other."""
    for i, (name, x, y) in enumerate(zip(names, sizes, values)):
        above = i % 2 == 0
        axes.annotate(  # type: ignore[attr-defined]
            name, (x, y), textcoords="offset points", xytext=(0, 11 if above else -11), ha="center",
            va="bottom" if above else "top", fontsize=8.5, rotation=35 if len(names) > 8 else 0, zorder=6,
        )  # fmt: skip
