"""The rows of a training run: loaded, encoded in batches, kept in the cache, and pinned in the run's folder."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.config.errors import TrainingError, UserError
from tunesmith.config.files import write_json
from tunesmith.config.load import dump
from tunesmith.config.progress import Progress
from tunesmith.render.cache import cached
from tunesmith.render.identity import identity_of_examples, identity_of_renderer
from tunesmith.render.store import Store, StoreWriter
from tunesmith.render.workers import BATCH, batched, in_order
from tunesmith.runs.folder import RunFolder

if TYPE_CHECKING:
    from tunesmith.data.example import Example
    from tunesmith.render.conversation import Renderer
    from tunesmith.stages.base import Stage
    from tunesmith.verbs.run_config import TrainRun


@dataclass(frozen=True)
class Rows:
    """Encoded rows, read from the cache as they are needed."""

    train: Store
    eval: Store


def encode(config: TrainRun, stage: Stage, renderer: Renderer, progress: Progress) -> Rows:
    """Load and encode the data of a run; what cannot be encoded is an error, or counted and named with ``skip_bad``."""
    from tunesmith.data.load import load

    split = load(config.data, config.train.seed)
    for note in split.notes:
        progress.say(note)
    how = {"stage": dump(config.stage), "renderer": identity_of_renderer(renderer)}
    progress.start("encoding", len(split.train) + len(split.eval), "rows")
    train, eval = (
        encode_rows(
            stage,
            part,
            how | {"data": identity_of_examples(part)},
            progress,
            count=len(part),
            skip_bad=config.data.skip_bad,
        )
        for part in (split.train, split.eval)
    )
    rows = Rows(train, eval)
    if not len(train) or not np.sum(train.weights):
        raise TrainingError(
            "there is nothing to learn: no row has a learned token", hint="look at the rows with `tunesmith data check`"
        )
    _report(rows, config.data.max_length, progress)
    return rows


def encode_rows(
    stage: Stage,
    examples: Iterable[Example],
    key: Mapping[str, Any],
    progress: Progress,
    *,
    count: int | None = None,
    skip_bad: bool = False,
) -> Store:
    """The items of ``examples``, out of the cache where it has them; ``examples`` are then not read at all.

    ``key``: JSON values that decide the items together: what the data, the stage and the renderer are. ``count``: how many
    examples there are, if known. Raises the error of the first row that cannot be encoded, unless ``skip_bad``: then they
    are among the ``failures`` of the store, as are rows of which no token is learned.
    """

    def make(writer: StoreWriter) -> None:
        gc.freeze()  # examples in memory are many objects: looking through them again and again takes a sixth of the time
        try:
            fill(writer)
        finally:
            gc.unfreeze()

    def fill(writer: StoreWriter) -> None:
        row = 0
        for batch, results in in_order(stage.encode_many, batched(examples, BATCH), rows=count):
            items = []
            for example, result in zip(batch, results):
                if isinstance(result, UserError):
                    if not skip_bad:
                        raise result
                    writer.fail(row, result)
                elif result.weight == 0:
                    writer.fail(row, UserError(f"{example.origin}: no token of it is learned"))
                else:
                    items.append(result)
                row += 1
            writer.add(items)
            progress.advance(len(batch))

    store, warm = cached({**key, "skip_bad": skip_bad}, stage.layout, make, progress)
    if warm:
        progress.advance(len(store) + len(store.failures), "kept from before")
    return store


def _report(rows: Rows, max_length: int, progress: Progress) -> None:
    """What the rows are like, and every row that is left out."""
    tokens, learned = (float(np.sum(values)) for values in (rows.train.lengths, rows.train.weights))
    progress.finish(
        f"{len(rows.train)} rows, {int(tokens)} tokens, {learned / tokens:.0%} of them learned; {len(rows.eval)} rows held out"
    )
    shortened = sum(int(np.count_nonzero(part.number("dropped_turns"))) for part in (rows.train, rows.eval))
    if shortened:
        progress.say(f"{shortened} conversations lost their earliest turns to fit data.max_length={max_length}")
    straddling = int(np.sum(rows.train.number("straddling")))
    if straddling:
        progress.say(
            f"warning: the first token of {straddling} answers also holds the end of the prompt before it, and is not learned "
            "(answers that begin with white space, or a chat template that ends its prompt with some)"
        )
    for part in (rows.train, rows.eval):
        for failure in part.failures:
            progress.say(f"left out: {failure.error.message}")


def pin_rows(run: RunFolder, rows: Rows) -> None:
    """Keep what the rows were (a hash) and some of them as probes for later comparisons.

    Raises TrainingError when a run with checkpoints would go on with other rows than it began with.
    """
    digest = hashlib.sha256(f"{rows.train.digest} {rows.eval.digest}".encode()).hexdigest()
    place = run.path / "rows.json"
    if run.checkpoint_steps() and place.is_file():
        before = json.loads(place.read_text(encoding="utf-8"))
        now = digest if before.get("of") == "stores" else _digest_of_tuples([rows.train, rows.eval])
        if before["sha256"] != now:
            raise TrainingError(
                f"the data of run {run.id} is not what it began with ({before['train']} rows then, {len(rows.train)} now, "
                "or other text in them)",
                hint="bring the old data back, or start a new run with the new data",
            )
    probes = [getattr(item, "ids", np.zeros(0, np.int64)).tolist() for item in (rows.eval or rows.train)[:8]]
    pinned = {"sha256": digest, "of": "stores", "train": len(rows.train), "eval": len(rows.eval)}
    write_json(place, pinned | {"probes": probes})


def _digest_of_tuples(parts: Sequence[Store]) -> str:
    """The hash that runs made before there were stores have in their ``rows.json``."""
    digest = hashlib.sha256()
    for item in _items(parts):
        digest.update(repr((tuple(item.ids.tolist()), tuple(item.mask.astype(int).tolist()))).encode())
    return digest.hexdigest()


def _items(parts: Sequence[Store]) -> Iterator[Any]:
    for part in parts:
        yield from part
