"""Text of the person's own: which rows a model is calibrated with and which it is measured on. Never the same ones.

``--data SET`` if given; else the run's own rows as training encoded them (the held-out ones are measured); else the bundled general
text. What is taken is said.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.errors import DataError, UserError
from tunesmith.config.plugins import load as load_plugin
from tunesmith.config.progress import SILENT, Progress
from tunesmith.data.config import DataConfig, SetConfig
from tunesmith.data.example import Chat, Example, Feedback, Preference, Prompt
from tunesmith.data.split import held_out_numbers
from tunesmith.verbs.run_config import STAGES
from tunesmith.verbs.targets import Target, open_renderer, renderer_of

if TYPE_CHECKING:
    from tunesmith.render.conversation import Renderer

MEASURED_SHARE = 0.2
"""Of a set named by ``--data``, so much is measured on; the rest calibrates."""
MOST_READ = 20_000
"""So many rows of such a set are looked at."""
LEAST = 2048
"""Tokens below which the person's own text is little, and bundled text is added."""
WINDOW = 2048
"""Plain texts are cut into pieces of so many tokens; of a conversation no more calibrate."""


@dataclass(frozen=True)
class Row:
    """Token ids, and which of them were learned or are to be measured (the first never is)."""

    ids: Sequence[int]
    mask: Sequence[bool]


@dataclass(frozen=True)
class OwnText:
    """``calibrate`` and ``measure``: rows with ``ids`` and ``mask``, read when they are asked for; ``name`` says whose they are."""

    calibrate: Sequence[Any]
    measure: Sequence[Any]
    name: str
    general: bool = False
    """It is the bundled text: nothing of the person's own was found."""


def calibration_rows(
    target: Target,
    merged: Path,
    tokens: int,
    seed: int,
    data: str | None = None,
    *,
    progress: Progress = SILENT,
) -> list[tuple[int, ...]]:
    """Rows of token ids, about ``tokens`` of them together, for a target that calibrates; the same for the same ``seed``.

    Whole conversations, rendered as in training (BOS where the template writes it), cut at ``WINDOW`` tokens or what the model reads.
    They need no common length, and there may be fewer tokens than wanted, which is said; to a run's own, bundled text is added up to ``LEAST``. Raises UserError when ``data`` cannot be read.
    """
    text = own_text(target, merged, progress, data=data, seed=seed)
    longest = min(context_limit(merged) or WINDOW, WINDOW)
    rows = _drawn(text, tokens, longest, seed)
    if not rows:
        raise UserError(f"there is no text to calibrate with in {text.name}", hint="name a data set: --data SET")
    count = sum(map(len, rows))
    own = len(rows)
    less = "" if count >= tokens else f" ({tokens} would be better: --data SET names more)"
    if data is None and count < min(tokens, LEAST) and not text.general:
        more = _drawn(_general(target, merged), min(tokens, LEAST) - count, longest, seed)
        rows += more
        less = f" and {sum(map(len, more))} of the bundled general text, since that is little{less}"
    progress.say(f"calibrating with {own} rows, {count} tokens of {text.name}{less}")
    return rows


def _drawn(text: OwnText, tokens: int, longest: int, seed: int) -> list[tuple[int, ...]]:
    """Rows of ``text`` in an order of ``seed``, until there are so many ``tokens``."""
    order = list(range(len(text.calibrate)))
    random.Random(seed).shuffle(order)
    rows: list[tuple[int, ...]] = []
    count = 0
    for i in order:
        row = tuple(int(token) for token in text.calibrate[i].ids[:longest])
        if len(row) < 2:
            continue
        rows.append(row)
        count += len(row)
        if count >= tokens:
            break
    return rows


def own_text(target: Target, merged: Path, progress: Progress, *, data: str | None = None, seed: int = 0) -> OwnText:
    """The rows to calibrate with and to measure on. Raises UserError when ``data`` cannot be read or holds a single row."""
    if data is not None:
        return _of_set(target, merged, data, seed, progress)
    if target.run is not None and (target.learned is not None or not has_new_tokens(target)):
        found = _of_run(target, progress)
        if found is not None:
            return found
    return _general(target, merged)


def _of_set(target: Target, merged: Path, name: str, seed: int, progress: Progress) -> OwnText:
    from tunesmith.data.load import open_set

    choice = SetConfig(set=name)
    opened = open_set(choice, DataConfig(train=(choice,)), progress)
    examples: list[Example] = []
    for value in islice(opened.examples(), MOST_READ):
        if isinstance(value, DataError):
            progress.say(f"left out: {value.message}")
        else:
            examples.append(value)
    rows = encoded(examples, target, merged)
    if len(rows) < 2:
        raise UserError(
            f"{name} has {len(rows)} rows that can be read; one is needed to calibrate with and one to measure on",
            hint="name a larger set",
        )
    held = held_out_numbers(len(rows), MEASURED_SHARE, seed)
    return OwnText(
        [row for i, row in enumerate(rows) if i not in held], [rows[i] for i in sorted(held)], f"the data set {name}"
    )


def _of_run(target: Target, progress: Progress) -> OwnText | None:
    """The run's rows out of the cache, or encoded again; those it kept when its data are gone or not what they were."""
    from tunesmith.verbs.rows import digest_of, encode

    run, config = target.run, target.config
    assert run is not None and config is not None
    kept = run.path / "rows.json"
    try:
        pinned = json.loads(kept.read_text(encoding="utf-8"))
        _, renderer = open_renderer(config.model, config.data, SILENT, run=run)
        plugin = load_plugin(STAGES, config.stage.kind)
        progress.start("reading the run's rows")
        rows = encode(config, plugin.build(config.stage, renderer), plugin.EXAMPLES, renderer, SILENT)
        progress.finish()
        if pinned.get("of") == "stores" and pinned["sha256"] != digest_of(rows):
            raise DataError("they are not what the run learned")
        if not hasattr(rows.train[0], "ids"):
            raise DataError("they are no conversations or texts")
    except (UserError, OSError, ValueError) as error:
        why = error.message if isinstance(error, UserError) else str(error)
        probes = _probes(kept)
        progress.say(
            f"the data of run {run.id} cannot be used ({why}); "
            + (f"{len(probes)} rows that it kept are measured" if probes else "the bundled general text is taken")
            + "; --data SET names other text"
        )
        if not probes:
            return None
        general = _general(target, target.base.folder)
        return OwnText(general.calibrate, probes, f"the {len(probes)} rows that run {run.id} kept")
    if len(rows.eval):
        return OwnText(rows.train, rows.eval, f"run {run.id}'s own data")
    aside = max(1, min(16, len(rows.train) // 5))
    progress.say(f"run {run.id} held no rows out: {aside} of its training rows are measured instead")
    return OwnText(rows.train[aside:], rows.train[:aside], f"run {run.id}'s own data (which it was trained on)")


def _probes(kept: Path) -> list[Row]:
    try:
        found = json.loads(kept.read_text(encoding="utf-8"))["probes"]
    except (OSError, ValueError, KeyError):
        return []
    return [whole(ids) for ids in found if len(ids) > 1]


def _general(target: Target, merged: Path) -> OwnText:
    from tunesmith.data.general import examples_to_calibrate

    return OwnText(encoded(examples_to_calibrate(), target, merged), [], "the bundled general text", general=True)


def whole(ids: Sequence[int]) -> Row:
    """A row that is measured at every token but the first."""
    return Row(tuple(ids), (False, *[True] * (len(ids) - 1)))


def encoded(examples: Sequence[Example], target: Target, merged: Path) -> list[Row]:
    """Examples as rows: conversations through the chat template, plain texts as they stand, in pieces of at most ``WINDOW`` tokens.

    A model without a chat template reads the words of a conversation one after the other. Rows that the template refuses fall out.
    """
    renderer, tokenizer = renderer_or_tokenizer(target, merged)
    longest = min(context_limit(merged) or WINDOW, WINDOW)
    rows: list[Row] = []
    for example in examples:
        chat = _chat(example)
        if chat is None or renderer is None:
            text = "\n".join(m.content for m in chat.messages) if chat is not None else getattr(example, "text", "")
            ids = tokenizer(text)["input_ids"]
            rows += [whole(ids[at : at + longest]) for at in range(0, len(ids), longest) if len(ids) - at > 1]
            continue
        try:
            found = renderer.render(chat)
        except UserError:
            continue
        rows.append(Row(found.ids, tuple(map(bool, found.mask))) if any(found.mask[1:]) else whole(found.ids))
    return rows


def _chat(example: Example) -> Chat | None:
    if isinstance(example, Chat):
        return example
    if isinstance(example, Feedback):
        return example.chat
    if isinstance(example, Preference):
        return example.chats()[0]
    return Chat(example.messages, origin=example.origin) if isinstance(example, Prompt) else None


def renderer_or_tokenizer(target: Target, merged: Path) -> tuple[Renderer | None, Any]:
    """The renderer of the merged model, None when it has no chat template; and its tokenizer."""
    from tunesmith.models.open import open_tokenizer

    try:
        renderer = renderer_of(target, exported=merged)
    except UserError:
        return None, open_tokenizer(merged)
    return renderer, renderer.tokenizer


def context_limit(folder: Path) -> int:
    """Tokens that the model in ``folder`` reads at most; 0 when its config does not say."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config", config)
    return int(config.get("max_position_embeddings") or 0)


def has_new_tokens(target: Target) -> bool:
    """Whether its run added tokens, which the base does not know."""
    return target.config is not None and bool(target.config.model.add_tokens or target.config.model.add_special_tokens)
