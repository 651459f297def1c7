"""The answer of ``tunesmith data check --json``, read in bounded memory: of a million findings the first ones of each kind are kept.

The answer is one JSON object whose last key is ``findings``, one finding a line. It holds texts of the data: nothing in it is
trusted to be of the type it should be.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SEVERITIES = ("error", "warning", "info")
KEEP = 300
"""Findings kept of each check and severity."""
_LONGEST = 2000
"""Characters kept of a text of a finding."""


@dataclass(frozen=True)
class Finding:
    """One finding, as the command told it. ``row`` counts the rows of its part from 0, -1 = the whole set."""

    severity: str
    message: str
    mend: str
    place: str
    excerpt: str
    part: str
    row: int


@dataclass
class Group:
    """The findings of one check: how many of each severity, and the first of them."""

    check: str
    title: str
    mends: str
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SEVERITIES, 0))
    kept: list[Finding] = field(default_factory=list)

    def of(self, severity: str) -> list[Finding]:
        """The kept findings of a severity, '' = all, the gravest first."""
        found = [f for f in self.kept if severity in ("", f.severity)]
        return sorted(found, key=lambda f: SEVERITIES.index(f.severity))

    def count(self, severity: str) -> int:
        """How many there are, kept or not; '' = of all severities."""
        return sum(n for s, n in self.counts.items() if severity in ("", s))


@dataclass(frozen=True)
class Report:
    """The figures as the command gave them, and the findings by check in its order (the gravest first)."""

    head: Mapping[str, Any]
    groups: tuple[Group, ...]

    @property
    def sets(self) -> list[Mapping[str, Any]]:
        return [s for s in self.head.get("sets") or [] if isinstance(s, Mapping)]

    @property
    def shape(self) -> Mapping[str, Any]:
        """Rows, kinds, roles, turns of the training sets."""
        return _mapping(_mapping(self.head.get("shape")).get("train"))

    @property
    def tokens(self) -> Mapping[str, Any]:
        """Figures of token lengths; empty without a model."""
        return _mapping(self.head.get("tokens"))

    def count(self, severity: str) -> int:
        return sum(group.count(severity) for group in self.groups)

    @property
    def training(self) -> Mapping[str, Any]:
        """Figures of the optimizer steps."""
        return _mapping(self.head.get("training"))

    def row_of(self, finding: Finding) -> tuple[int, int] | None:
        """Which of the training sets a finding is of, from 0, and the number of the row in it, from 1; None for the set as a whole
        or evaluation rows."""
        if finding.part != "train" or finding.row < 0:
            return None
        row = finding.row
        for at, source in enumerate(s for s in self.sets if s.get("part") == "train"):
            rows = source.get("rows")
            if not isinstance(rows, int):
                continue
            if row < rows:
                return at, row + 1
            row -= rows
        return None


def read_report(path: Path) -> Report:
    """Raises ValueError when the file is not such an answer."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        return parse(lines)


def parse(lines: Iterable[str]) -> Report:
    """``read_report`` of lines."""
    lines = iter(lines)
    head: list[str] = []
    for line in lines:
        head.append(line)
        if line.strip() == '"findings": [':
            break
    else:
        raise ValueError("there is no list of findings")
    values = json.loads("".join(head) + "]}")
    about = _mapping(values.get("checks"))
    groups: dict[str, Group] = {}
    for line in lines:
        if line.strip() == "]":
            break
        found = json.loads(line.strip().removesuffix(","))
        check = str(found.get("check", ""))
        if check not in groups:
            told = _mapping(about.get(check))
            groups[check] = Group(check, str(told.get("title") or check), str(told.get("mends") or ""))
        _add(groups[check], found)
    else:
        raise ValueError("the list of findings has no end")
    return Report(values, tuple(groups.values()))


def _add(group: Group, found: Mapping[str, Any]) -> None:
    severity = found.get("severity") if found.get("severity") in SEVERITIES else "info"
    assert isinstance(severity, str)
    group.counts[severity] += 1
    if group.counts[severity] > KEEP:
        return
    row = found.get("row")
    texts = {key: str(found.get(key) or "")[:_LONGEST] for key in ("message", "mend", "place", "excerpt", "part")}
    group.kept.append(Finding(severity, row=row if isinstance(row, int) else -1, **texts))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
