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
        list[str],
        typer.Argument(
            metavar="A B…",
            help="Two or more: runs, ID@base, models, .gguf files, base.gguf+adapter.gguf, ollama:NAME, URL#MODEL.",
        ),
    ],
    prompt: Annotated[list[str] | None, typer.Option("-p", "--prompt", help="A prompt; repeat for more.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", help="A file: one prompt per line, or a JSON list of texts, conversations or rows."),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="A data set: its questions are asked and its loss is measured.")
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="System prompt, for questions without one.")] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a page of it here too, with the differences marked.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most rows that are asked.")] = 12,
    max_tokens: MaxTokens = 128,
) -> None:
    """Ask several models the same and show the answers side by side, with held-out loss and perplexity."""
    from tunesmith.verbs.compare import print_comparison, run_comparison

    if len(models) < 2:
        raise UserError("compare needs at least two models", hint="for example: tunesmith compare last@base last")
    result, folder = run_comparison(
        models, progress(), prompts=prompt or (), prompts_file=prompts, data=data, limit=limit, max_tokens=max_tokens,
        system=system, html=html,
    )  # fmt: skip
    print_comparison(result, most=len(result.questions))
    if folder is not None:
        print(f"report: {folder / 'comparison.html'} (and .md, .json)", file=sys.stderr)
    if html is not None:
        print(f"page: {html}", file=sys.stderr)


def deploy(
    model: RunOrModel,
    name: Annotated[str, typer.Option("--name", help="What it is called in Ollama, for example my-model:7b.")],
    to: Annotated[str, typer.Option("--to", help="Where to: ollama.")] = "ollama",
    level: Annotated[
        str | None,
        typer.Option(
            "--level",
            help="GGUF numbers: q8_0 (default), f16, q6_k, q5_k_m, q4_k_m or any level of `export --to gguf` (docs/export-gguf.md).",
        ),
    ] = None,
    as_: Annotated[
        str, typer.Option("--as", help="model (merged), or adapter: a GGUF LoRA on a base that Ollama has (--on).")
    ] = "model",
    on: Annotated[str | None, typer.Option("--on", help="With --as adapter: the base's name in Ollama.")] = None,
    quantize_on_server: Annotated[
        str | None,
        typer.Option("--quantize-on-server", help="Send 16 bits and let Ollama make q8_0, q4_k_m or q4_k_s of them."),
    ] = None,
    url: Annotated[
        str | None, typer.Option("--url", help="The Ollama server; by default the one on this machine (OLLAMA_HOST).")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Prove that the served model is the trained one.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Serve it even if the proof fails.")] = False,
) -> None:
    """Make a run answer in Ollama: merge, convert, create it there, prove that it is the same model, ask it once."""
    if to != "ollama":
        raise UserError(f"cannot deploy to {to!r}", hint="only ollama is built in")
    level = None if level is None else level.lower()
    if as_ == "adapter":
        if force or not verify:
            raise UserError(
                "--force and --no-verify belong to --as model", hint="an adapter is always proved: leave them out"
            )
        _deploy_adapter(model, name, on, level, url, quantize_on_server)
        return
    if as_ != "model" or on is not None:
        raise UserError(
            f"--as {as_} is unknown" if as_ != "model" else "--on belongs to --as adapter", hint="--as model or --as adapter --on NAME"
        )  # fmt: skip
    from tunesmith.verbs.deploy import deploy as verb
    from tunesmith.verbs.prove import ProofFailed

    level = level or ("f16" if quantize_on_server else "q8_0")
    try:
        done = verb(
            model, name, progress(), level=level, url=url, verify=verify, force=force, quantize_on_server=quantize_on_server
        )  # fmt: skip
    except ProofFailed as failed:
        typer.echo("\n".join(failed.proof.checklist()))
        raise
    typer.echo(f"GGUF: {done.made.file}\nModelfile: {done.made.modelfile} ({done.made.template_reason})")
    if done.proof is not None:
        typer.echo("\n".join(done.proof.checklist()))
    if done.report is None:
        typer.echo(f"No Ollama server answers at {done.server}. Where Ollama runs, finish with:\n    {done.command}")
        return
    for note in done.report.notes:
        print(f"note: {note}", file=sys.stderr)
    typer.echo(f"{name} is at {done.report.url}, read back: {', '.join(done.report.checks)}")
    typer.echo(f"> {done.report.question}\n{done.report.answer}")


def _deploy_adapter(
    model: str, name: str, on: str | None, level: str | None, url: str | None, quantize: str | None
) -> None:
    if on is None or quantize is not None:
        raise UserError(
            "--as adapter needs the base's name in Ollama"
            if on is None
            else "an adapter is not quantized on the server",
            hint="for example --as adapter --on llama3.2:1b",
        )
    from tunesmith.verbs.deploy_adapter import deploy_adapter as verb

    done = verb(model, name, on, progress(), level=level or "f32", url=url)
    typer.echo(f"GGUF adapter: {done.made.file}\nModelfile: {done.made.modelfile} ({done.made.template_reason})")
    if done.report is None:
        typer.echo(
            f"No Ollama server answers at {done.server}. Where Ollama has {on}, finish with:\n    {done.command}"
        )
        return
    for note in done.report.notes:
        print(f"note: {note}", file=sys.stderr)
    typer.echo(f"{name} is at {done.report.url}: {on} with the adapter, checked: {', '.join(done.report.checks)}")
    typer.echo(f"> {done.report.question}\n{done.report.answer}")
