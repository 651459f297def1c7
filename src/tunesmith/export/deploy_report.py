"""What a deployment proved: six checks, one record, and its pages. Knows how it is written down, not how it is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tunesmith.config.files import write_atomic, write_json
from tunesmith.evaluate.quality_report import plain
from tunesmith.evaluate.tasks.comparison import Comparison, one_line

State = Literal["passed", "failed", "not measured"]
SIGNS: dict[State, str] = {"passed": "✓", "failed": "✗", "not measured": "–"}
NAMES = {
    1: "prompts as in training",
    2: "tokens as in training",
    3: "numbers as in training",
    4: "answers end",
    5: "capabilities and settings as meant",
    6: "before and after",
}
ERRORS = (1, 2, 3, 4)
"""Numbers of the checks whose failure means that another model is served than the one that was trained."""


@dataclass(frozen=True)
class Check:
    """One thing that was proved, refuted or not measured. ``figures`` are sentences; ``means`` and ``todo`` are for a failure."""

    number: int
    state: State
    figures: tuple[str, ...] = ()
    means: str = ""
    todo: str = ""

    @property
    def name(self) -> str:
        """What is checked, in words."""
        return NAMES[self.number]

    @property
    def sign(self) -> str:
        """✓, ✗ or –."""
        return SIGNS[self.state]

    @property
    def broken(self) -> bool:
        """Whether another model would be served."""
        return self.state == "failed" and self.number in ERRORS

    def lines(self) -> list[str]:
        """The check as lines of a checklist."""
        first, *more = self.figures or ("",)
        found = [f"{self.sign} {self.number} {self.name}: {first}".rstrip(": "), *(f"    {line}" for line in more)]
        if self.state == "failed":
            found += [f"    what it means: {self.means}"] * bool(self.means) + [f"    what to do: {self.todo}"] * bool(
                self.todo
            )
        return found


@dataclass(frozen=True)
class Proof:
    """All of it. ``outcome`` is what became of the model, one sentence; ``facts`` stand at the head of the pages;
    ``server`` is what the server told of the deployed model, None without one."""

    name: str
    outcome: str
    checks: tuple[Check, ...]
    facts: Mapping[str, str] = field(default_factory=dict)
    comparison: Comparison | None = None
    parity: Mapping[str, Any] | None = None
    server: Mapping[str, Any] | None = None

    @property
    def broken(self) -> tuple[Check, ...]:
        """The failed checks that forbid to serve the model."""
        return tuple(check for check in self.checks if check.broken)

    def checklist(self) -> list[str]:
        """Lines for a terminal."""
        return [line for check in self.checks for line in check.lines()]

    def as_dict(self) -> dict[str, Any]:
        """For JSON. Checks carry their names."""
        checks = [{**asdict(check), "name": check.name, "broken": check.broken} for check in self.checks]
        comparison = self.comparison.as_dict() if self.comparison is not None else None
        return {
            "name": self.name, "outcome": self.outcome, **self.facts, "parity": self.parity, "checks": checks,
            "server": self.server, "comparison": comparison,
        }  # fmt: skip

    def markdown(self) -> str:
        """A page of Markdown."""
        lines = [f"# {one_line(self.name)} in Ollama", "", one_line(self.outcome), "", *_table(self.facts), ""]
        for check in self.checks:
            lines += [f"## {check.sign} {check.number}. {check.name}", "", *(f"- {one_line(f)}" for f in check.figures)]
            if check.state == "failed":
                lines += [f"- **What it means:** {one_line(check.means)}"] * bool(check.means)
                lines += [f"- **What to do:** {one_line(check.todo)}"] * bool(check.todo)
            lines.append("")
        if self.comparison is not None:
            lines.append(self.comparison.markdown().replace("# Comparison", "# Before and after", 1))
        return "\n".join(lines)

    def save(self, folder: Path) -> Path:
        """Write ``deploy_report.json``, ``.md`` and ``.html`` into ``folder``; returns the path of the HTML page."""
        from tunesmith.export.deploy_page import page

        write_json(folder / "deploy_report.json", plain(self.as_dict()))
        write_atomic(folder / "deploy_report.md", self.markdown())
        write_atomic(folder / "deploy_report.html", page(self))
        return folder / "deploy_report.html"


def _table(facts: Mapping[str, str]) -> list[str]:
    rows = [f"| {what.replace('_', ' ')} | {one_line(value)} |" for what, value in facts.items()]
    return ["| | |", "|---|---|", *rows] if rows else []
