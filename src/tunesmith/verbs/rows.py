"""The rows of a training run: loaded, encoded in batches, kept in the cache, and pinned in the run's folder."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.config.errors import DataError, TrainingError, UserError
from tunesmith.config.files import write_json
from tunesmith.config.load import dump
from tunesmith.config.progress import Progress
from tunesmith.data.example import system_of
from tunesmith.data.identity import identity
from tunesmith.data.load import OpenSet, bad_rows_error, examples_of, open_set
from tunesmith.data.split import plan
from tunesmith.render.cache import cached
from tunesmith.render.identity import identity_of_renderer
from tunesmith.render.selection import Selection
from tunesmith.render.store import Store, StoreWriter
from tunesmith.render.workers import BATCH, batched, in_order
from tunesmith.runs.folder import RunFolder
from tunesmith.verbs.read_data import counted

if TYPE_CHECKING:
    from tunesmith.data.example import Example
    from tunesmith.render.conversation import Renderer
    from tunesmith.stages.base import Stage
    from tunesmith.verbs.run_config import TrainRun


SYSTEM = "system"
"""What a store and a run's ``rows.json`` call the system prompt that all of their rows have."""
LISTED = 20
"""So many rows that are left out are named in the log; all of them are counted."""
COUNTED = {
    "dropped_thinking": "the chat template does not show the thinking of some answers; it is not learned",
    "dropped_words": "the chat template does not show the words beside a tool call; they are not learned",
    "unended": "the chat template writes no end of turn after an answer, so none is learned there",
    "unlike_serving": "an answer is learned after another prompt than the one it will be asked for with (earlier thinking, or an "
    "opening of thinking that it does not have)",
    "ignored_tools": "the chat template does not show the definitions of tools",
}
"""What ``Rendered`` counts, in words."""


@dataclass(frozen=True)
class Rows:
    """Encoded rows, read from the cache as they are needed, and those that are left out."""

    train: Selection
    eval: Selection
    failures: tuple[UserError, ...] = ()


def encode(config: TrainRun, stage: Stage, kind: str, renderer: Renderer, progress: Progress) -> Rows:
    """Encode the data of a run as examples of ``kind``, set by set; what was encoded before comes from the cache.

    What cannot be read or encoded is an error, or counted and named with ``skip_bad``. Which rows are learned and which held
    out is decided by ``data.split.plan``, as for everybody who reads the data.
    """
    data = config.data
    how = {"stage": dump(config.stage), "kind": kind, "renderer": identity_of_renderer(renderer)}
    opened = [[open_set(choice, data, progress) for choice in choices] for choices in (data.train, data.eval)]
    counts = [counted(one, kind) for sets in opened for one in sets]
    progress.start("encoding", sum(c.rows for c in counts if c) if all(counts) else None, "rows")
    train, held = ([_encode_set(stage, one, config, how, progress) for one in sets] for sets in opened)
    planned = plan(
        [_identities(store) for store in train], [_identities(store) for store in held], data, config.train.seed
    )
    failures = [failure.error for store in (*train, *held) for failure in store.failures]
    rows = Rows(
        Selection(train, _items(train, planned.train)),
        Selection(held if data.eval else train, _items(held if data.eval else train, planned.eval)),
        tuple(failures),
    )
    if not len(rows.train) or not np.sum(rows.train.weights):
        raise TrainingError(
            "there is nothing to learn: no row has a learned token", hint="look at the rows with `tunesmith data check`"
        )
    _report(rows, data.max_length, progress)
    for note in planned.notes:
        progress.say(note)
    return rows


def _encode_set(stage: Stage, opened: OpenSet, config: TrainRun, how: Mapping[str, Any], progress: Progress) -> Store:
    names = [part.name for part in opened.source.parts]
    key = {**how, "data": opened.fingerprint(), "place": opened.place, "names": names}  # origins are told in messages

    def refuse(bad: Sequence[DataError], readable: int) -> DataError:
        return bad_rows_error(opened, bad, len(bad) + readable)

    known = counted(opened, how["kind"])
    store = encode_rows(
        stage, examples_of(opened, how["kind"]), key, progress, count=known.rows if known else None,
        skip_bad=config.data.skip_bad, refuse=refuse,
    )  # fmt: skip
    progress.say(f"{opened.name}: {len(store)} rows, {opened.format} ({opened.reason})")
    for note in opened.notes:
        progress.say(note)
    return store


def _identities(store: Store) -> list[bytes]:
    """One identity for every readable row of the data; a row that could not be encoded is like no other."""
    known = dict(zip(store.rows.tolist(), store.identities.tolist()))
    total = len(store) + sum(failure.row >= 0 for failure in store.failures)
    return [known.get(row, f"row {row} of {store.folder.name}".encode()) for row in range(total)]


def _items(stores: Sequence[Store], places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Places of readable rows -> places of items; rows that could not be encoded fall out."""
    at = [{row: item for item, row in enumerate(store.rows.tolist())} for store in stores]
    return [(i, at[i][row]) for i, row in places if row in at[i]]


def _refuse(bad: Sequence[DataError], readable: int) -> DataError:
    return bad[0]


def encode_rows(
    stage: Stage,
    examples: Iterable[Example | DataError],
    key: Mapping[str, Any],
    progress: Progress,
    *,
    count: int | None = None,
    skip_bad: bool = False,
    refuse: Callable[[Sequence[DataError], int], DataError] = _refuse,
) -> Store:
    """The items of ``examples``, out of the cache where it has them; ``examples`` are then not read at all.

    ``key``: JSON values that decide the items together: what the data, the stage and the renderer are. ``count``: how many
    examples there are, if known. Raises the error of the first row that cannot be encoded, and ``refuse(errors, readable
    rows)`` when some cannot be read, unless ``skip_bad``: then they are among the ``failures`` of the store, as are rows of
    which no token is learned.
    """

    def make(writer: StoreWriter) -> None:
        gc.freeze()  # examples in memory are many objects: looking through them again and again takes a sixth of the time
        try:
            fill(writer)
        finally:
            gc.unfreeze()

    def fill(writer: StoreWriter) -> None:
        bad: list[DataError] = []
        systems: set[str] = set()
        row = 0

        def readable() -> Iterator[Example]:
            for value in examples:
                if isinstance(value, DataError):
                    bad.append(value)
                else:
                    yield value

        for batch, results in in_order(stage.encode_many, batched(readable(), BATCH), rows=count):
            items, numbers, identities = [], [], []
            for example, result in zip(batch, results):
                if isinstance(result, UserError):
                    if not skip_bad:
                        raise result
                    writer.fail(row, result)
                elif result.weight == 0:
                    writer.fail(row, UserError(f"{example.origin}: no token of it is learned"))
                else:
                    items.append(result)
                    numbers.append(row)
                    identities.append(identity(example))
                    if len(systems) < 2:
                        systems.add(system_of(example))
                row += 1
            writer.add(items, numbers, identities)
            progress.advance(len(batch))
        writer.facts[SYSTEM] = systems.pop() if len(systems) == 1 else None
        if bad and (not skip_bad or row == 0):
            raise refuse(bad, row)
        for error in bad:
            writer.fail(-1, error)

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
    for error in rows.failures[:LISTED]:
        progress.say(f"left out: {error.message}")
    if len(rows.failures) > LISTED:
        progress.say(f"left out: {len(rows.failures) - LISTED} more; `tunesmith data check` names all")
    for name, words in COUNTED.items():
        count = int(np.count_nonzero(rows.train.number(name)))
        if count:
            progress.say(f"{count} rows: {words}")


def pin_rows(run: RunFolder, rows: Rows) -> None:
    """Keep what the rows were (a hash), some of them as probes for later comparisons, and the one system prompt of all that is
    learned from (none when they have different ones, or none).

    Raises TrainingError when a run with checkpoints would go on with other rows than it began with.
    """
    digest = digest_of(rows)
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
    write_json(place, pinned | {SYSTEM: rows.train.fact(SYSTEM) or None, "probes": probes})


def digest_of(rows: Rows) -> str:
    """The hash of all rows of a run, as its ``rows.json`` has it."""
    return hashlib.sha256(f"{rows.train.digest} {rows.eval.digest}".encode()).hexdigest()


def _digest_of_tuples(parts: Sequence[Selection]) -> str:
    """The hash that runs made before there were stores have in their ``rows.json``."""
    digest = hashlib.sha256()
    for item in (item for part in parts for item in part):
        digest.update(repr((tuple(item.ids.tolist()), tuple(item.mask.astype(int).tolist()))).encode())
    return digest.hexdigest()
