"""``tunesmith compare``: several models, the same prompts, side by side."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

from tunesmith.chat.base import Sampling
from tunesmith.config.errors import UserError
from tunesmith.config.files import write_atomic, write_json
from tunesmith.config.progress import Progress
from tunesmith.data.config import DataConfig
from tunesmith.data.example import Chat, Example
from tunesmith.data.load import bad_rows_error, load, load_set
from tunesmith.evaluate.comparison_page import page
from tunesmith.evaluate.held_out import HeldOut
from tunesmith.evaluate.quality_report import plain
from tunesmith.evaluate.tasks.comparison import Comparison, Question, compare
from tunesmith.runs.folder import RunFolder, find_run
from tunesmith.verbs.gguf import system_of
from tunesmith.verbs.prompts import questions, with_system
from tunesmith.verbs.targets import open_engine, reference_of, renderer_of, target_of
from tunesmith.verbs.train import config_of_run


def run_comparison(
    models: Sequence[str],
    progress: Progress,
    *,
    prompts: Sequence[str] = (),
    prompts_file: Path | None = None,
    data: str | None = None,
    limit: int = 12,
    max_tokens: int = 128,
    names: Sequence[str] = (),
    system: str | None = None,
    html: Path | None = None,
) -> tuple[Comparison, Path | None]:
    """Compare ``models`` (references). Prompts: given ones, a file's (``verbs.prompts``), a data set's, else the held-out rows of
    the first run among the models. With rows that have answers the held-out loss is measured too. ``system``: a system prompt for
    questions without one ("": none); by default that of the runs' training, where all rows had the same, since a run that was deployed
    has it too. ``html``: where a page of it is written too.

    Returns the comparison and, when a run is among the models, the folder of its artifacts that holds the report.
    """
    if html is not None and html.is_dir():
        raise UserError(f"{html} is a folder", hint="--html takes the name of a file, for example comparison.html")
    run = _first_run(models)
    rows: list[Chat] = []
    if data is not None:
        loaded = load_set(data, DataConfig(train=(data,)), progress, kind="chat")
        if loaded.bad:
            raise bad_rows_error(loaded.dataset, loaded.bad, len(loaded.bad) + len(loaded.examples))
        rows = _chats(loaded.examples)
    elif not prompts and prompts_file is None:
        if run is None:
            raise UserError("nothing to ask", hint='give prompts with -p "…", --prompts FILE or --data SET')
        config = config_of_run(run)
        rows = _chats(load(config.data, config.train.seed, progress, kind="chat").eval)
        if not rows:
            raise UserError(
                f"run {run.id} held no rows out", hint='give prompts with -p "…", --prompts FILE or --data SET'
            )
    if system is None and (system := _system_of_training(models)):
        progress.say("questions without a system prompt are asked with the one of the training; --system gives another")
    asked = questions(prompts, prompts_file, system)
    for row in _spread(rows, max(0, limit - len(asked))):
        asked.append(with_system(Question(tuple(row.prompt()), row.answer()), system))
    held_out = _held_out(models, rows, progress)
    called = list(names) or list(models)
    openers = [(name, lambda m=model, n=name: open_engine(m, progress, name=n)) for model, name in zip(models, called)]
    result = compare(openers, asked, held_out, Sampling(max_tokens=max_tokens), progress)
    shown = page(result, " · ".join(called))
    if html is not None:
        html.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(html, shown)
    folder = None
    if run is not None:
        folder = run.artifacts
        write_json(folder / "comparison.json", plain(result.as_dict()))
        write_atomic(folder / "comparison.md", result.markdown())
        write_atomic(folder / "comparison.html", shown)
    return result, folder


def _spread(rows: Sequence[Chat], most: int) -> list[Chat]:
    """At most ``most`` rows, evenly from the whole set: sets are often sorted by topic or language."""
    return list(rows) if len(rows) <= most else [rows[i * len(rows) // most] for i in range(most)]


def _chats(examples: Sequence[Example]) -> list[Chat]:
    """The examples, all of them conversations. Raises UserError when one is not."""
    for example in examples:
        if not isinstance(example, Chat):
            raise UserError(
                f"{example.origin}: is no conversation with an answer, so models cannot be compared on it",
                hint='give prompts with -p "…", --prompts FILE, or a set of conversations with --data SET',
            )
    return [example for example in examples if isinstance(example, Chat)]


def _system_of_training(models: Sequence[str]) -> str | None:
    """The one system prompt that all runs among ``models`` were trained with; None when they differ, or had none."""
    references = [reference_of(model) for model in models]
    found = {system_of(find_run(one.name)) for one in references if one.kind == "run"}
    return found.pop() if len(found) == 1 else None


def _first_run(models: Sequence[str]) -> RunFolder | None:
    """All names are read first: one that names nothing is said before anything is opened."""
    references = [reference_of(model) for model in models]
    runs = [find_run(reference.name) for reference in references if reference.kind == "run"]
    return runs[0] if runs else None


def _held_out(models: Sequence[str], rows: Sequence[Chat], progress: Progress) -> HeldOut:
    """The rows as the first model whose tokenizer is here reads them."""
    for model in models if rows else ():
        reference = reference_of(model)
        if reference.kind not in ("ollama", "url") and not (
            reference.kind == "path" and reference.path.suffix == ".gguf"
        ):
            return HeldOut.of(rows, renderer_of(target_of(model, progress)))
    return HeldOut()


def print_comparison(result: Comparison, *, most: int = 12) -> None:
    """The comparison on stdout: a table on a terminal wide enough, else one answer per line."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    if console.is_terminal:
        table = Table(box=box.ROUNDED, show_lines=True, expand=True)
        table.add_column("prompt", style="dim", ratio=2)
        for candidate in result.candidates:
            table.add_column(escape(candidate.name), ratio=3)
        for i, question in enumerate(result.questions[:most]):
            table.add_row(
                *(escape(_plain(text)) for text in (question.text, *(c.answers[i] for c in result.candidates)))
            )
        console.print(table)
    else:
        for i, question in enumerate(result.questions[:most]):
            print(f"\n> {_plain(question.text)}")
            for candidate in result.candidates:
                print(f"  {candidate.name}: {_plain(candidate.answers[i])}")
        print()
    for line in _figures(result):
        console.print(line, markup=False, soft_wrap=True)


def _figures(result: Comparison) -> list[str]:
    """A line for each model that was measured, then what to know about the figures."""
    first, lines = result.candidates[0], []
    for one in result.candidates:
        change = ""
        if not result.same_tokens and one.bits_per_byte is not None:
            if one is not first and first.bits_per_byte is not None:
                change = f"  ({one.bits_per_byte - first.bits_per_byte:+.4f})"
            lines.append(f"{one.name}: {one.bits_per_byte:.4f} bits per byte{change}")
        elif result.same_tokens and one.loss is not None and one.perplexity is not None:
            if one is not first and first.loss is not None and first.perplexity:
                change = (
                    f"  (loss {one.loss - first.loss:+.4f}, perplexity {one.perplexity / first.perplexity - 1:+.0%})"
                )
            lines.append(
                f"{one.name}: held-out loss {one.loss:.4f}, perplexity {one.perplexity:.2f} over {one.tokens} tokens{change}"
            )
    return [*lines, *result.notes()]


def _plain(text: str) -> str:
    """One line in which nothing steers the terminal."""
    return "".join("\ufffd" if unicodedata.category(c) == "Cc" else c for c in " ".join(text.split())) or "(empty)"
