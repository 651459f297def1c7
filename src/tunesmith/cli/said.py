"""What several commands say: their progress, and how a run ended."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tunesmith.config.progress import Progress
    from tunesmith.runs.folder import RunFolder


RunOrModel = Annotated[
    str,
    typer.Argument(
        metavar="RUN_OR_MODEL",
        help="A run (its id, a part of it, or 'last'), a folder, hf:org/name, ms:org/name, demo, base+adapter.",
    ),
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="Most tokens of an answer.")]


def progress() -> Progress:
    """What long work reports to: bars in a terminal, lines elsewhere."""
    from tunesmith.verbs.console import console_progress

    return console_progress()


def figure(name: str, value: object, between: str = " ") -> str:
    """``eval loss 1.2345``: a figure of a run's result."""
    return f"{name.replace('_', ' ')}{between}{f'{value:.4f}' if isinstance(value, float) else value}"


def report_run(run: RunFolder) -> None:
    """How a run ended, and what can be done with it next."""
    status = run.status()
    figures = ", ".join(figure(name, value) for name, value in status.result.items())
    typer.echo(
        f"{run.id}: {status.state} at step {status.step} of {status.total_steps}{', ' + figures if figures else ''}"
    )
    if status.note:
        typer.echo(status.note)
    if status.state == "stopped":
        print(f"hint: go on with: tunesmith runs resume {run.id}", file=sys.stderr)
        raise typer.Exit(130)  # as after Ctrl-C everywhere: what a script meant to do with the finished run is not done
    else:
        commands = [f"chat {run.id}", f"compare {run.id}@base {run.id}", f"deploy {run.id} --name my-model"]
        print("next:\n" + "\n".join(f"  tunesmith {command}" for command in commands), file=sys.stderr)
