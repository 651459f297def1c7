"""The quality report on a terminal, and the rule that no export is lost because it cannot be measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tunesmith.config.errors import UserError
from tunesmith.config.faults import keep_traceback
from tunesmith.config.progress import Progress
from tunesmith.evaluate.quality_report import QualityReport


@contextmanager
def never_lost(what: str, progress: Progress) -> Iterator[None]:
    """Around what is measured of a finished export: whatever prevents it is a warning. ``what``: ``the quality report was not made``.

    The details of an error that nobody foresaw are kept (``config.faults``).
    """
    try:
        yield
    except Exception as error:
        progress.finish("not measured")
        progress.say(f"warning: {what}: {why(error)}")


def why(error: Exception) -> str:
    """The reason in words; of an error that nobody foresaw with the file that holds its details. To be called while it is handled."""
    from tunesmith.verbs.opening import ran_out_of_memory

    if isinstance(error, UserError):
        return str(error)
    if ran_out_of_memory(error):
        return "memory ran out\nhint: close other programs, or use a machine with more memory"
    if isinstance(error, OSError):
        return str(error)
    log = keep_traceback()
    return f"{type(error).__name__}: {error}\nhint: this is a fault of Tunesmith's; the details are in {log}"


def print_quality(report: QualityReport) -> None:
    """The table, the warnings and the recommendation, on stderr."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(stderr=True, highlight=False)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    header, rows = report.short(wide=console.width >= 110)
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right")
    bold = report.recommendation.use
    for row in rows:
        table.add_row(*row, style="bold" if row[0] == bold else "red" if row[-1] == "BROKEN" else None)
    console.print(table)
    for line in report.warnings:
        console.print(f"WARNING: {line}", style="bold red", markup=False, soft_wrap=True)
    for note in report.all_notes:
        console.print(note, markup=False, soft_wrap=True)
    words = report.recommendation.words
    console.print(words[:1].upper() + words[1:], markup=False, soft_wrap=True)
