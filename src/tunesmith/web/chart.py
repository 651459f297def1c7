"""Metric records -> the options of the loss chart (ECharts). Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tunesmith.web.figures import is_number
from tunesmith.web.follow import Record

Point = tuple[float, float]
MOST_POINTS = 800
GREY = "#8a8f98"
TRAIN, EVAL = "#0d9488", "#d97706"


def series(records: Sequence[Record], kind: str, name: str) -> list[Point]:
    """``name`` against step of the records of ``kind``; not-a-numbers are left out."""
    return [
        (r["step"], r[name])
        for r in records
        if r.get("kind") == kind and is_number(r.get("step")) and is_number(r.get(name))
    ]


def smooth(points: Sequence[Point]) -> list[Point]:
    """Exponential moving average with bias correction (Adam's, https://arxiv.org/abs/1412.6980), window ~ 1/30 of the run."""
    keep = 1 - 1 / max(4.0, len(points) / 30)
    total = weight = 0.0
    smoothed = []
    for step, value in points:
        total = keep * total + (1 - keep) * value
        weight = keep * weight + (1 - keep)
        smoothed.append((step, total / weight))
    return smoothed


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most about ``most`` points that keep the picture: of each stretch its lowest and its highest, and both ends."""
    if len(points) <= most:
        return list(points)
    count = max(1, most // 2)
    kept: list[Point] = [points[0]]
    for i in range(count):
        stretch = points[i * len(points) // count : (i + 1) * len(points) // count]
        low, high = min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])
        kept += sorted({low, high})
    kept.append(points[-1])
    return sorted(set(kept))


def _rounded(points: Sequence[Point]) -> list[list[float]]:
    return [[step, float(f"{value:.5g}")] for step, value in points]


def options(records: Sequence[Record], t: Callable[[str], str]) -> dict[str, Any]:
    """ECharts options: train loss (faint) with its moving average, and eval loss with a dot per evaluation."""
    loss = series(records, "step", "loss")
    evaluated = series(records, "eval", "eval_loss")
    raw, average, measured = t("chart.train"), t("chart.average"), t("chart.eval")
    few = len(loss) < 8
    axis = {
        "axisLabel": {"color": GREY},
        "axisLine": {"lineStyle": {"color": GREY, "opacity": 0.4}},
        "splitLine": {"lineStyle": {"color": GREY, "opacity": 0.18}},
        "nameTextStyle": {"color": GREY},
    }
    lines = [
        {
            "name": raw,
            "type": "line",
            "data": _rounded(thin(loss)),
            "showSymbol": few,
            "symbolSize": 6,
            "itemStyle": {"color": TRAIN, "opacity": 1 if few else 0.4},
            "lineStyle": {"width": 2 if few else 1, "opacity": 1 if few else 0.4},
        }
    ]
    if not few:
        lines.append(
            {
                "name": average,
                "type": "line",
                "data": _rounded(thin(smooth(loss))),
                "showSymbol": False,
                "itemStyle": {"color": TRAIN},
                "lineStyle": {"width": 2.5},
            }
        )
    if evaluated:
        lines.append(
            {
                "name": measured,
                "type": "line",
                "data": _rounded(thin(evaluated)),
                "symbol": "circle",
                "symbolSize": 7,
                "itemStyle": {"color": EVAL},
                "lineStyle": {"width": 2, "type": "dashed"},
            }
        )
    return {
        "animation": False,
        "grid": {"left": 12, "right": 24, "top": 44, "bottom": 32, "containLabel": True},
        "legend": {
            "top": 4,
            "left": 4,
            "textStyle": {"color": GREY},
            "icon": "roundRect",
            "data": [line["name"] for line in lines],
        },
        "tooltip": {"trigger": "axis", "confine": True},
        "xAxis": {
            "type": "value",
            "min": "dataMin",
            "max": "dataMax",
            "minInterval": 1,
            "name": t("chart.step"),
            "nameLocation": "middle",
            "nameGap": 28,
            **axis,
            "splitLine": {"show": False},
        },
        "yAxis": {"type": "value", "scale": True, **axis},
        "series": lines,
    }
