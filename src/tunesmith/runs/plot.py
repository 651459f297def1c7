"""The loss curve of a run as a picture, drawn from its metrics alone."""

from __future__ import annotations

from pathlib import Path

from tunesmith.runs.folder import RunFolder


def plot_loss(run: RunFolder) -> Path | None:
    """``artifacts/loss.png``: training and evaluation loss against the step; None when there is no metric yet."""
    steps = [(r["step"], r["loss"]) for r in run.metrics() if r.get("kind") == "step"]
    evals = [(r["step"], r["eval_loss"]) for r in run.metrics() if r.get("kind") == "eval"]
    if not steps:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*zip(*steps), color="#9db8d9", linewidth=1, label="training loss")
    if len(steps) > 5:
        axes.plot(*zip(*smoothed(steps)), color="#1f5fa8", linewidth=2, label="training loss, smoothed")
    if evals:
        axes.plot(*zip(*evals), color="#d9822b", marker="o", linewidth=2, label="evaluation loss")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per learned token)")
    axes.set_title(run.id, fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    path = run.artifacts / "loss.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial.png")
    figure.savefig(temporary)
    temporary.replace(path)
    return path


def smoothed(points: list[tuple[int, float]], weight: float = 0.8) -> list[tuple[int, float]]:
    """Exponential moving average with the start-up bias divided out (as Adam does)."""
    average, correction, out = 0.0, 1.0, []
    for step, value in points:
        average = weight * average + (1 - weight) * value
        correction *= weight
        out.append((step, average / (1 - correction)))
    return out
