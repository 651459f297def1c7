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
    "export last --to hf max_shard_size=2",
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
        str | None, typer.Option("--level", "--type", help="How many bits a GGUF's numbers have; short for level=….")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", help="16-bit original to merge into, for a base that is stored quantized.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="A data set to calibrate with, in place of the run's own."),
    ] = None,
) -> None:
    from tunesmith.verbs.export import export as verb

    place, checks = verb(model, to, progress(), settings=settings or (), out=out, level=level, base=base, data=data)
    for line in checks:
        print(f"  {line}", file=sys.stderr)
    typer.echo(str(place))


export.__doc__ = _help()
