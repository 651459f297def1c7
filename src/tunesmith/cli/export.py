"""The command ``export``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tunesmith.cli.said import RunOrModel, progress


def export(
    model: RunOrModel,
    to: Annotated[str, typer.Option("--to", help="hf (merged safetensors) or gguf.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Where to write; by default into the run's artifacts, or here for models."),
    ] = None,
    level: Annotated[
        str | None, typer.Option("--level", "--type", help="GGUF numbers: f32, f16, bf16 or q8_0.")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", help="16-bit original to merge into, for a base that is stored quantized.")
    ] = None,
) -> None:
    """Merge into safetensors or convert to GGUF; the result is checked against what it was made from."""
    from tunesmith.verbs.export import export as verb

    place, checks = verb(model, to, progress(), out=out, level=level.lower() if level else None, base=base)
    for line in checks:
        print(f"  {line}", file=sys.stderr)
    typer.echo(str(place))
