"""The commands ``compare`` and ``deploy``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tunesmith.cli.said import MaxTokens, RunOrModel, progress
from tunesmith.config.errors import UserError


def compare(
    models: Annotated[
        list[str], typer.Argument(metavar="A B…", help="Two or more: runs, ID@base, models, .gguf files, ollama:NAME.")
    ],
    prompt: Annotated[list[str] | None, typer.Option("-p", "--prompt", help="A prompt; repeat for more.")] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="A file with one prompt per line, or a JSON list.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="A data set: its questions are asked and its loss is measured.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most prompts that are asked.")] = 12,
    max_tokens: MaxTokens = 128,
) -> None:
    """Ask several models the same and show the answers side by side, with held-out loss and perplexity."""
    from tunesmith.verbs.compare import print_comparison, run_comparison

    if len(models) < 2:
        raise UserError("compare needs at least two models", hint="for example: tunesmith compare last@base last")
    result, folder = run_comparison(
        models, progress(), prompts=prompt or (), prompts_file=prompts, data=data, limit=limit, max_tokens=max_tokens
    )
    print_comparison(result, most=limit)
    if folder is not None:
        print(f"report: {folder / 'comparison.md'}", file=sys.stderr)


def deploy(
    model: RunOrModel,
    name: Annotated[str, typer.Option("--name", help="What it is called in Ollama, for example my-model:7b.")],
    to: Annotated[str, typer.Option("--to", help="Where to: ollama.")] = "ollama",
    level: Annotated[str, typer.Option("--level", help="GGUF numbers: f32, f16, bf16 or q8_0.")] = "q8_0",
    url: Annotated[
        str | None, typer.Option("--url", help="The Ollama server; by default OLLAMA_HOST, else this machine.")
    ] = None,
) -> None:
    """Make a run answer in Ollama: merge, convert, prove that it is the same model, create it, ask it once."""
    if to != "ollama":
        raise UserError(f"cannot deploy to {to!r}", hint="only ollama is built in")
    from tunesmith.verbs.deploy import deploy as verb

    done = verb(model, name, progress(), level=level.lower(), url=url)
    typer.echo(f"GGUF: {done.made.file}\nModelfile: {done.made.modelfile} ({done.made.template_reason})")
    if done.report is None:
        typer.echo(f"No Ollama server answers at {done.server}. Where Ollama runs, finish with:\n    {done.command}")
        return
    for note in done.report.notes:
        print(f"note: {note}", file=sys.stderr)
    typer.echo(f"{name} is at {done.report.url}, checked: {', '.join(done.report.checks)}")
    typer.echo(f"> {done.report.question}\n{done.report.answer}")
