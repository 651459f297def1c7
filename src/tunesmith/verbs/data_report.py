"""The report of ``tunesmith data check`` for a person: figures, then findings by check, the gravest first."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from rich.text import Text

from tunesmith.data.doctor.base import SEVERITIES, Finding
from tunesmith.data.doctor.histogram import bars, bins
from tunesmith.verbs.console import duration
from tunesmith.verbs.data import Checked, check_of

COLOURS = {"error": "bold red", "warning": "yellow", "info": "cyan"}
FIRST = 3
"""Findings of a check that are shown without ``--all``."""


def report(checked: Checked, *, everything: bool = False) -> Iterator[Text]:
    """Lines with colours, which a console leaves out where nobody sees them."""
    yield from map(Text, _figures(checked))
    findings = checked.found.findings
    for name in findings.checks():
        yield Text()
        yield from _group(checked, name, everything)
    yield Text()
    counted = ", ".join(_many(findings.count(s), s) for s in SEVERITIES if findings.count(s))
    yield Text(counted or "nothing wrong found", style="bold")
    yield Text(f"{checked.found.rows:,} rows checked in {duration(checked.found.seconds)}", style="dim")
    if checked.fixed is not None:
        fixed = checked.fixed
        yield Text(
            f"{fixed.path}: {fixed.kept:,} rows kept, {fixed.changed:,} of them changed; {fixed.dropped:,} dropped"
        )
        yield Text(f"what was dropped and changed: {fixed.list_path}")
        columns = getattr(getattr(checked.train[0], "fields", None), "columns", None)
        if columns:
            yield Text("hint: the copy has the same column names; register it with the same `columns`")


def _many(count: int, severity: str) -> str:
    if severity == "info":
        return f"{count:,} to know"
    return f"{count:,} {severity}{'' if count == 1 else 's'}"


def _figures(checked: Checked) -> Iterator[str]:
    found = checked.found
    for part, sources in (("train", checked.train), ("eval", checked.eval)):
        for source, rows in zip(sources, found.counts[part]):  # type: ignore[index]
            yield f"{source.place}: {rows:,} rows, {source.format} ({source.reason}){' [evaluation]' if part == 'eval' else ''}"
            yield from (f"note: {note}" for note in source.notes)
    yield from found.shapes["train"].lines()
    if checked.tokens is not None:
        yield from _token_figures(checked)
    yield checked.steps.line()


def _token_figures(checked: Checked) -> Iterator[str]:
    assert checked.tokens is not None
    figures = checked.tokens.summary()
    some = figures["rendered_rows"] < figures["of_rows"] - checked.found.shapes["train"].unreadable
    source = (
        f"lengths from {figures['rendered_rows']:,} of {figures['of_rows']:,} rows, drawn at random" if some else ""
    )
    if "max" not in figures:
        return
    yield (
        f"tokens per row: {figures['min']:,} to {figures['max']:,}, median {figures['p50']:,}, 99 % below "
        f"{figures['p99'] + 1:,}; {figures['total']:,} in all{f' ({source})' if source else ''}"
    )
    if len(checked.tokens.lengths) >= 10:
        for line in bars(bins(checked.tokens.lengths, checked.config.data.max_length)):
            yield f"  {line}"
    yield f"learned tokens: {figures['learned_share']:.0%}"


def _group(checked: Checked, name: str, everything: bool) -> Iterator[Text]:
    findings = checked.found.findings
    check = check_of(checked, name)
    counts = [(s, findings.count(s, name)) for s in SEVERITIES if findings.count(s, name)]
    heading = Text("● ", style=COLOURS[counts[0][0]]) + Text(check.title, style="bold")
    yield (
        heading + Text(f": {', '.join(_many(n, s) for s, n in counts)}") + Text(f"  (--fix {check.mends})", style="dim")
    )
    total = sum(n for _, n in counts)
    shown = findings.of(name) if everything else islice(findings.of(name), FIRST)
    said = ""
    for finding in shown:
        yield from _one(finding, with_mend=finding.mend != said)
        said = finding.mend
    if not everything and total > FIRST:
        yield Text(f"  … and {total - FIRST:,} more (--all shows them, --json too)", style="dim")


def _one(finding: Finding, *, with_mend: bool) -> Iterator[Text]:
    message = (
        finding.message.removeprefix(finding.place).removeprefix(":").lstrip(" ,") if finding.place else finding.message
    )
    line = Text(f"  {finding.severity}: ", style=COLOURS[finding.severity])
    yield line + Text(f"{finding.place}: " if finding.place else "", style="cyan") + Text(message)
    if finding.excerpt:
        yield Text(f"      {finding.excerpt}", style="dim")
    if with_mend:
        yield Text(f"      mend: {finding.mend}", style="green")
