"""The command ``export``."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Annotated

import typer

from tunesmith.cli.said import RunOrModel, progress
from tunesmith.config.summaries import summaries

EXAMPLES = (
    "export last --to gguf",
    "export last --to gguf --level q4_k_m",
    "export last --to gguf --levels usual --keep recommended",
    "export last --to gguf --target-size 4GB",
    "export last --to gguf --max-kl 0.05",
    "export last --to hf max_shard_size=2 --push org/name",
)


def _help() -> str:
    """What the command does, the targets there are, and examples."""
    targets = {
        name.replace("_", "-"): line.partition(": ")[2] if line.startswith("``--to") else line
        for name, line in summaries("tunesmith.export.targets").items()
    }
    listed = "\n".join(
        _entry(name, line.partition(". ")[0].rstrip(".").replace("`", "")) for name, line in targets.items()
    )
    examples = "\n".join(f"  tunesmith {line}" for line in EXAMPLES)
    return (
        "Make files of a run or model for other programs; the result is checked against what it was made from.\n\n"
        f"\b\nTargets (`tunesmith schema export` lists their settings):\n{listed}\n\n\b\nExamples:\n{examples}"
    )


def _entry(name: str, line: str) -> str:
    return textwrap.fill(line, 74, initial_indent=f"  {name:13} ", subsequent_indent=" " * 16)


def export(
    model: RunOrModel,
    to: Annotated[str, typer.Option("--to", help="The target: what to make.")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value]…", help="Settings of the target.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Where to write; by default into the run's artifacts, or here for models."),
    ] = None,
    level: Annotated[
        str | None,
        typer.Option(
            "--level",
            "--type",
            help="How many bits a GGUF's numbers have, f16 by default (deploy sends q8_0); short for level=….",
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", help="16-bit original to merge into, for a base that is stored quantized.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="A data set to calibrate with and to measure on, in place of the run's own."),
    ] = None,
    levels: Annotated[
        str | None, typer.Option("--levels", help="Several GGUF levels in one table: all, usual, or q8_0,q4_k_m,….")
    ] = None,
    keep: Annotated[str, typer.Option("--keep", help="Which files of --levels stay: all, or recommended.")] = "all",
    target_size: Annotated[
        str | None, typer.Option("--target-size", help="The finest GGUF level that fits: 4GB, 3.5GiB, 700MB.")
    ] = None,
    max_kl: Annotated[
        float | None,
        typer.Option("--max-kl", min=0, help="The smallest GGUF level with at most this mean KL (nats) on your text."),
    ] = None,
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Measure what a quantized export lost, and say which to use.")
    ] = True,
    report_rows: Annotated[
        int, typer.Option("--report-rows", min=1, help="So many held-out rows are measured, and text in proportion.")
    ] = 16,
    push: Annotated[
        str | None, typer.Option("--push", help="Send the result to a hub too: org/name, hf:org/name or ms:org/name.")
    ] = None,
    public: Annotated[
        bool, typer.Option("--public/--private", help="Whether everybody can see what --push sends.")
    ] = False,
) -> None:
    from tunesmith.config.errors import UserError
    from tunesmith.verbs.export import Choice, Push
    from tunesmith.verbs.export import export as verb

    if public and push is None:
        raise UserError("--public says who sees what --push sends", hint="add --push org/name, or leave --public out")
    choice = Choice(levels, target_size, max_kl, keep, report, report_rows)
    place, checks = verb(
        model,
        to,
        progress(),
        settings=settings or (),
        out=out,
        level=level,
        base=base,
        data=data,
        choice=choice,
        onto=Push(push, public) if push is not None else None,
    )
    for line in checks:
        print(f"  {line}", file=sys.stderr)
    typer.echo(str(place))


export.__doc__ = _help()
