"""``tunesmith data show``: some rows of a set, as they were read or as a model sees them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rich.text import Text

from tunesmith.config.errors import DataError, RenderError, UserError
from tunesmith.config.files import write_atomic
from tunesmith.config.progress import Progress
from tunesmith.data.doctor.base import row_of
from tunesmith.data.doctor.sets import place_of
from tunesmith.data.example import Chat, Example, Feedback, Preference, Prompt
from tunesmith.data.load import OpenSet, open_set
from tunesmith.render.segments import Segment, segments
from tunesmith.render.show_page import Block, PageRow, page
from tunesmith.render.show_terminal import coloured, visible
from tunesmith.render.sides import Side, sides
from tunesmith.verbs.run_config import TrainRun

ROLE_COLOURS = {"system": "yellow", "user": "cyan", "assistant": "green", "tool": "magenta"}


@dataclass(frozen=True)
class Shown:
    """One row: an example or the error instead, and its sides when a model was named and its template takes the row."""

    origin: str
    example: Example | None
    sides: tuple[Side, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class ShownSet:
    """Rows of a set. ``model`` None = as they were read; ``special_ids`` are the ids of its control tokens."""

    name: str
    rows: tuple[Shown, ...]
    model: str | None = None
    special_ids: frozenset[int] = frozenset()


def show(run: TrainRun, progress: Progress, *, count: int, row: int | None, seed: int | None, tokens: bool) -> ShownSet:
    """``count`` rows of the config's first training set: the first ones, those from ``row`` (counted from 1), or ones drawn with
    ``seed``. With ``tokens`` rendered as training would. Raises UserError when the row is not there."""
    if row is not None and seed is not None:
        raise UserError(
            "--row and --seed cannot be given together", hint="--row 5 -n 3 shows rows 5 to 7; --seed 1 draws some"
        )
    if len(run.data.train) > 1:
        others = ", ".join(str(choice) for choice in run.data.train[1:])
        progress.say(f"rows of {run.data.train[0]} are shown; not those of {others}: name one set to see its rows")
    source = open_set(run.data.train[0], run.data, progress)
    picked = _picked(source, count, row, seed)
    renderer = None
    special: frozenset[int] = frozenset()
    if tokens:
        from tunesmith.render.token_pass import special_tokens_of
        from tunesmith.verbs.targets import open_renderer

        _, renderer = open_renderer(run.model, run.data, progress)
        tokenizer = renderer.tokenizer
        special = frozenset(tokenizer.convert_tokens_to_ids(token) for token in special_tokens_of(tokenizer))
    shown: list[Shown] = []
    for number, value in picked:
        if isinstance(value, DataError):
            shown.append(Shown(place_of(value, source.name, number), None, problem=value.message))
            continue
        try:
            shown.append(Shown(value.origin, value, sides(renderer, value) if renderer is not None else ()))
        except RenderError as error:
            shown.append(Shown(value.origin, value, problem=error.message))
    model = run.model.ref + (f" with the template {run.model.template}" if run.model.template else "")
    return ShownSet(source.name, tuple(shown), model if tokens else None, special)


def _picked(source: OpenSet, count: int, row: int | None, seed: int | None) -> list[tuple[int, Example | DataError]]:
    rows = enumerate(source.examples(), 1)
    if seed is None:
        first = row or 1
        found = list(islice(rows, first - 1, first - 1 + count))
        if not found:
            total = sum(1 for _ in source.examples())
            raise UserError(f"{source.name} has no row {first}", hint=f"it has {total:,} rows")
        return found
    kept: list[tuple[int, Example | DataError]] = []
    draw = random.Random(seed)
    for number, value in rows:  # reservoir sampling, so that the set need not fit into memory
        if len(kept) < count:
            kept.append((number, value))
        elif (place := draw.randrange(number)) < count:
            kept[place] = (number, value)
    return sorted(kept, key=lambda entry: entry[0])


def lines(shown: ShownSet, *, marks: bool) -> Iterator[Text]:
    """For a terminal, or with ``marks`` for a pipe."""
    if shown.model is not None:
        legend = Text("learned: ") + (Text("⟦…⟧") if marks else Text("green", style="green"))
        yield legend + Text(f"; tokens and template of {shown.model}", style="dim")
    for row in shown.rows:
        yield Text()
        yield Text(f"── {row.origin}", style="bold")
        if row.problem:
            yield Text(f"error: {visible(row.problem)}", style="red")
        for side in row.sides:
            yield _facts(side)
            yield coloured(segments(side.rendered, shown.special_ids), marks=marks)
        if isinstance(row.example, Prompt) and row.sides:  # they stand in no text, but the rewards read them
            for where, what, value in _besides(row.example):
                yield Text(f"[{f'{where} {what}'.strip()}] ", style="magenta") + Text(visible(value))
        if row.example is not None and not row.sides:
            yield from _as_read(row.example)
    if shown.model is None:
        yield Text()
        yield Text(
            "hint: --model NAME shows the tokens and what is learned of them (--model demo, for example)", style="dim"
        )


def _facts(side: Side) -> Text:
    rendered = side.rendered
    count, learned, dropped = _figures(side)
    line = Text(f"{side.label}: " if side.label else "", style="bold")
    line.append(f"{count:,} tokens, {learned:,} learned ({learned / max(1, count):.0%})", style="dim")
    if dropped:
        line.append(f"; {dropped} earlier turns dropped to fit", style="yellow")
    if rendered.straddling:
        line.append(
            "; the first token of an answer also holds the end of the prompt and is not learned", style="yellow"
        )
    return line


def _figures(side: Side) -> tuple[int, int, int]:
    return len(side.rendered.ids), side.rendered.learned, side.rendered.dropped_turns


def _as_read(example: Example) -> Iterator[Text]:
    for what, role, value in _parts(example):
        yield Text(f"[{what}] ", style=ROLE_COLOURS.get(role, "magenta")) + Text(visible(value))


def _parts(example: Example) -> Iterator[tuple[str, str, str]]:
    """(where, role, text) of all that a row holds: its texts, each turn's calls after it, and what stands beside them."""
    beside = list(_besides(example))
    for piece in row_of(0, "train", example).pieces:
        own = [b for b in beside if piece.where.startswith(f"{b[0]} (") or piece.where == b[0]]
        if piece.text or not own:
            yield piece.where, piece.role, piece.text
        for where, what, value in own:
            yield f"{where} {what}".strip(), "", value
        beside = [b for b in beside if b not in own]
    for where, what, value in beside:
        yield f"{where} {what}".strip(), "", value


def _besides(example: Example) -> Iterator[tuple[str, str, str]]:
    """What a row holds beside its texts: the turn it belongs to (or ""), what it is, and its words."""
    if isinstance(example, Feedback):
        yield "", "marked", "good" if example.good else "bad"
        example = example.chat
    if isinstance(example, Prompt):
        if example.reference is not None:
            yield "", "reference answer", example.reference
        if example.verifier:
            yield "", "verifier", json.dumps(example.verifier, ensure_ascii=False)
    if isinstance(example, Chat | Preference | Prompt):
        messages = (*example.prompt, *example.chosen) if isinstance(example, Preference) else example.messages
        for number, message in enumerate(messages, 1):
            for call in message.tool_calls:
                yield f"turn {number}", "calls", json.dumps(call.get("function", call), ensure_ascii=False)
            if message.train is not None:
                yield f"turn {number}", "is", "learned" if message.train else "not learned"
        if example.tools:
            yield "", "tools", ", ".join(str(t.get("function", t).get("name", t)) for t in example.tools)
        for media in example.media:
            yield "", media.kind, media.source


def write_page(shown: ShownSet, path: Path) -> None:
    """The rows as one self-contained HTML page, atomically."""
    rows = []
    for row in shown.rows:
        blocks = [Block(s.label, list(segments(s.rendered, shown.special_ids)), _figures(s)) for s in row.sides]
        if row.example is not None and not row.sides:
            blocks = [Block(where, [Segment(text, (), (), False, False)]) for where, _, text in _parts(row.example)]
        rows.append(PageRow(row.origin, blocks, row.problem))
    content = page(shown.name, shown.model or "", rows)
    write_atomic(path, content.encode("utf-8", "replace"))


def as_dict(shown: ShownSet) -> dict[str, Any]:
    """For JSON: texts as they were read, and per side the rendered text with ids, mask, character spans and the segments to draw."""
    return {
        "set": shown.name,
        "model": shown.model,
        "rows": [
            {
                "origin": row.origin,
                "problem": row.problem or None,
                "pieces": [
                    {"role": p.role, "where": p.where, "text": p.text} for p in row_of(0, "train", row.example).pieces
                ] if row.example is not None else [],
                "sides": [
                    {
                        "label": side.label,
                        "text": side.rendered.text,
                        "ids": side.rendered.ids,
                        "mask": side.rendered.mask,
                        "offsets": side.rendered.offsets,
                        "dropped_turns": side.rendered.dropped_turns,
                        "segments": [asdict(piece) for piece in segments(side.rendered, shown.special_ids)],
                    }
                    for side in row.sides
                ],
            }
            for row in shown.rows
        ],
    }  # fmt: skip
