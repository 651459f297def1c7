"""``tunesmith compare``: several models, the same prompts, side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tunesmith.chat.base import Sampling
from tunesmith.config.errors import UserError
from tunesmith.config.files import write_atomic, write_json
from tunesmith.config.progress import Progress
from tunesmith.data.config import DataConfig
from tunesmith.data.example import Chat, Example
from tunesmith.data.load import bad_rows_error, load, load_set
from tunesmith.evaluate.tasks.comparison import Comparison, Question, compare
from tunesmith.render.conversation import Rendered
from tunesmith.runs.folder import RunFolder, find_run
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
) -> tuple[Comparison, Path | None]:
    """Compare ``models`` (references). Prompts: given ones, a file's, a data set's, else the held-out rows of the first run
    among the models. With rows that have answers the held-out loss is measured too.

    Returns the comparison and, when a run is among the models, the folder of its artifacts that holds the report.
    """
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
    asked = [*prompts, *(_read_prompts(prompts_file) if prompts_file is not None else [])]
    questions = [Question(({"role": "user", "content": text},)) for text in asked]
    questions += [Question(tuple(row.prompt()), row.answer()) for row in _spread(rows, max(0, limit - len(asked)))]
    held_out = _rendered(models, rows, progress)
    called = list(names) or list(models)
    openers = [(name, lambda m=model, n=name: open_engine(m, progress, name=n)) for model, name in zip(models, called)]
    result = compare(openers, questions, held_out, Sampling(max_tokens=max_tokens), progress)
    folder = None
    if run is not None:
        folder = run.artifacts
        write_json(folder / "comparison.json", result.as_dict())
        write_atomic(folder / "comparison.md", result.markdown())
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


def _first_run(models: Sequence[str]) -> RunFolder | None:
    for model in models:
        reference = reference_of(model)
        if reference.kind == "run":
            return find_run(reference.name)
    return None


def _rendered(models: Sequence[str], rows: Sequence[Chat], progress: Progress) -> list[Rendered]:
    """The rows as tokens of the first model whose tokenizer is here."""
    if not rows:
        return []
    for model in models:
        if reference_of(model).kind not in ("ollama", "url") and not model.endswith(".gguf"):
            renderer = renderer_of(target_of(model, progress))
            return [renderer.render(row) for row in rows]
    return []


def _read_prompts(path: Path) -> list[str]:
    """One prompt per line (.txt), or a JSON list of texts."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = json.loads(text) if path.suffix == ".json" else [line.strip() for line in text.splitlines()]
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file", hint="--prompts takes one prompt per line, or a JSON list of texts"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read as prompts: {error}", hint="one prompt per line, or a JSON list of texts"
        ) from error
    if not isinstance(found, list) or not all(isinstance(p, str) for p in found):
        raise UserError(f"{path}: expected a list of texts")
    prompts = [p for p in found if p]
    if not prompts:
        raise UserError(f"{path}: there is no prompt in it")
    return prompts


def print_comparison(result: Comparison, *, most: int = 12) -> None:
    """The comparison on stdout: a table on a terminal wide enough, else one answer per line."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if console.is_terminal:
        table = Table(box=box.ROUNDED, show_lines=True, expand=True)
        table.add_column("prompt", style="dim", ratio=2)
        for candidate in result.candidates:
            table.add_column(candidate.name, ratio=3)
        for i, question in enumerate(result.questions[:most]):
            table.add_row(_plain(question.text), *(_plain(c.answers[i]) for c in result.candidates))
        console.print(table)
    else:
        for i, question in enumerate(result.questions[:most]):
            print(f"\n> {_plain(question.text)}")
            for candidate in result.candidates:
                print(f"  {candidate.name}: {_plain(candidate.answers[i])}")
        print()
    first = result.candidates[0]
    for candidate in result.candidates:
        if candidate.loss is None or candidate.perplexity is None:
            continue
        change = ""
        if candidate is not first and first.loss is not None and first.perplexity:
            change = f"  (loss {candidate.loss - first.loss:+.4f}, perplexity {candidate.perplexity / first.perplexity - 1:+.0%})"
        console.print(
            f"{candidate.name}: held-out loss {candidate.loss:.4f}, perplexity {candidate.perplexity:.2f} over {candidate.tokens} tokens{change}",
            markup=False, soft_wrap=True,
        )  # fmt: skip


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(" ".join(text.split())) or "(empty)"
