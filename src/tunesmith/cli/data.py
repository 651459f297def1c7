"""The commands ``tunesmith data …``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from tunesmith.cli.said import progress

app = typer.Typer(help="Look at data before training.", no_args_is_help=True)


@app.command("check")
def data_check(
    sets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SET… [key.sub=value]…",
            help="Registered names, files, folders, patterns, hf:/ms:org/name, or '{set: …, columns: {…}}'; settings as in `train`.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Count tokens with this model's tokenizer and template.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="A training config (YAML): its data, model and settings.")
    ] = None,
    fix: Annotated[
        Path | None,
        typer.Option(
            "--fix",
            metavar="OUT",
            help="Write a cleaned copy (.jsonl) and OUT.dropped.jsonl, the list of what was dropped or changed.",
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw how turns and tokens are spread.")
    ] = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="With a model: render every row, however long that takes; else 20,000 drawn ones where all would take over a minute.",
        ),
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Show every finding, not the first few of each kind.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Everything as JSON.")] = False,
) -> None:
    """Read every row and say what is in it and what is wrong. Exit code 2 when an error is found, 0 with warnings."""
    from tunesmith.verbs import data as verb

    named, overrides = _sets_and_settings(sets or ())
    run, reference = verb.settings(named, overrides, config, model)
    stage_named = config is not None or any(o.startswith("stage") for o in overrides)
    checked = verb.check(
        run, progress(), tokens=reference is not None, full=full, fix=fix, picture=plot, stage_named=stage_named
    )
    if as_json:
        for piece in verb.as_json(checked):
            typer.echo(piece, nl=False)
    else:
        from rich.console import Console

        from tunesmith.verbs.data_report import report

        console = Console(highlight=False, soft_wrap=True)
        for line in report(checked, everything=everything):
            console.print(line)
    if not checked.ok:
        raise typer.Exit(2)


@app.command("templates")
def data_templates(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Print this one's Jinja text.")] = None,
) -> None:
    """Chat templates by name, for model.template: what each ends a turn with, and its form for tools and thinking."""
    from tunesmith.verbs.templates import listing, text_of

    if name is not None:
        typer.echo(text_of(name), nl=False)
        return
    for template in listing():
        ends = "the tokenizer's eos" if template.end_of_turn == "eos_token" else template.end_of_turn
        typer.echo(
            f"{template.name:<18} {template.family}\n    end of turn: {ends}; tools: {template.tools}; thinking: {template.thinking}"
        )


@app.command("show")
def data_show(
    sets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SET [key.sub=value]…",
            help="A registered name, file, folder, pattern, hf:/ms:org/name, or '{set: …, columns: {…}}'.",
        ),
    ] = None,
    count: Annotated[int, typer.Option("-n", min=1, max=1000, help="How many rows.")] = 3,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Show the tokens of this model, the learned ones coloured.")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="A training config (YAML).")] = None,
    row: Annotated[int | None, typer.Option("--row", min=1, help="Begin at this row, counted from 1.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Rows drawn at random with this seed.")] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page that needs nothing else.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything as JSON.")] = False,
) -> None:
    """Show rows as a model sees them: special tokens visible, what is learned coloured."""
    from tunesmith.verbs import data as verb
    from tunesmith.verbs import data_show as show

    named, overrides = _sets_and_settings(sets or ())
    run, reference = verb.settings(named, overrides, config, model)
    shown = show.show(run, progress(), count=count, row=row, seed=seed, tokens=reference is not None)
    if html is not None:
        show.write_page(shown, html)
        print(f"page: {html}", file=sys.stderr)
    elif as_json:
        typer.echo(json.dumps(show.as_dict(shown), ensure_ascii=False, indent=1))
    else:
        from rich.console import Console

        console = Console(highlight=False, soft_wrap=True)
        for line in show.lines(shown, marks=not console.is_terminal):
            console.print(line)


def _sets_and_settings(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Sets (names, or ``{set: …, columns: …}``), and ``key=value`` settings; what is a file is a set, whatever its name."""
    from tunesmith.verbs.data import is_there

    settings = [w for w in words if "=" in w and not w.startswith("{") and not is_there(Path(w))]
    return [w for w in words if w not in settings], settings
