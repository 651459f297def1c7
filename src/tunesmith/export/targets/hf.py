"""``--to hf``: a complete model folder in safetensors, with what was learned (an adapter, or weights) in its base.

The base is read and written block by block, so memory does not grow with the model; an export that was interrupted goes on at
the shard where it stood.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from tunesmith.config.base import Config as BaseConfig
from tunesmith.config.base import setting
from tunesmith.config.errors import ExportError
from tunesmith.config.progress import SILENT, Progress
from tunesmith.export import companions, trained
from tunesmith.export.adapters import CONFIG, WEIGHTS, Adapter, combined, read_adapters
from tunesmith.export.base import Report, check_target, partial_of, proved, resumable, size_of
from tunesmith.export.changes import as_it_is, merged, same_values
from tunesmith.export.facts import facts, hub_name
from tunesmith.export.fingerprint import fingerprint
from tunesmith.export.load_back import check_loads
from tunesmith.export.model_config import (
    changed_config,
    completed,
    load_config,
    stop_tokens,
    tied_names,
)
from tunesmith.export.numbers import FLOATS, WRITTEN, Numbers
from tunesmith.export.rows import with_rows
from tunesmith.export.shards import JOURNAL, finished, write_shards
from tunesmith.export.tensor_files import PlannedTensor, StoredTensor, read_json, read_model, same_bytes
from tunesmith.models.changes import FILE, Changes, apply_keys, read_changes

SOURCE = "learned"


FOR_OLLAMA = (
    "for Ollama: --to gguf makes a GGUF with its Modelfile, of {}; Ollama's own import of safetensors "
    "refuses some models and reads others wrongly"
)


class Config(BaseConfig):
    """A merged model folder that transformers, vLLM, llama.cpp and the Hub can read."""

    max_shard_size: float = setting(
        5.0,
        zh="单个权重文件的最大大小，单位 GB（10^9 字节）；更大的模型会分成多个文件。",
        gt=0,
        label=("Largest weight file in GB", "权重文件大小上限（GB）"),
    )
    """Largest weight file in GB (10^9 bytes); larger models are split into several files."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = setting(
        "auto",
        zh="写入权重所用的数值类型；auto 为基座模型自己的类型。bfloat16 会把很小的训练改动舍入掉：float16 的精度细 8 倍，大小相同；float32 不丢失任何改动。",
        label=("Number type", "数值类型"),
    )
    """Type the weights are written in; auto: the base's own. bfloat16 rounds small changes away: float16 is 8 times finer at the same size, float32 loses nothing."""


def label(config: Config) -> str:
    """What an export with these settings is called."""
    return "hf" if config.dtype == "auto" else f"hf-{config.dtype}"


def export(
    source: Path,
    out: Path,
    config: Config,
    progress: Progress = SILENT,
    *,
    base: Path | None = None,
    stop_token_ids: Sequence[int] = (),
    chat_template: str | None = None,
    told: Sequence[str] = (),
    prove: Callable[[Path], dict[str, Any]] | None = None,
    learned_in: str | None = None,
) -> Report:
    """Write ``source`` to the new folder ``out`` as a full model.

    ``source`` is a peft adapter (merged into ``base``, or into the folder its config names), weights learned in full (put into ``base``,
    in its number types), or a full model (without ``base``: copied and completed). ``stop_token_ids`` are added to the ids that end an answer. ``chat_template`` is the template it was trained with
    (default: the adapter folder's own, else the base's). ``learned_in`` (``F32`` …): weights that were learned into are written that
    fine, and told to be served in the base's type (``export.numbers``): for a folder of which something else is made. ``told``: more lines for the model card. ``prove`` is asked about the finished folder
    before it gets its name; what it finds is added to the report. When it raises, the folder is kept as ``out`` with ``.failed``.

    Interrupted (killed, Ctrl-C, a full disk), the same call goes on after the shards that were finished. Raises ExportError; then
    ``out`` does not exist.
    """
    adapters = read_adapters(source) if (source / CONFIG).exists() else []
    learned = trained.read_trained(source) if not adapters and (base or trained.is_part(source)) else None
    named = adapters[0].base if adapters else learned.form.base if learned and learned.form else None
    folder = base_folder(source, base, named, alone=not adapters and not learned)
    changes = read_changes(source) if adapters or learned else Changes()
    stored = read_model(folder)
    adapter = combined(adapters, folder, stored) if adapters else None
    raw = changed_config(read_json(folder / "config.json"), changes.config)
    read = apply_keys(load_config(folder), changes.config)
    if raw.get("quantization_config"):
        raise ExportError(
            f"{folder} is stored quantized ({raw['quantization_config'].get('quant_method', 'unknown method')})",
            hint="give the base in its original precision (16 or 32 bit)",
        )
    numbers = Numbers(WRITTEN.get(config.dtype), learned_in)
    if learned:
        tensors, still_tied = trained.plan(stored, learned, tied_names(read), read, numbers), True
    else:
        tensors, still_tied = plan(stored, adapter, tied_names(read), changes.config.get("vocab_size"), numbers)
    total, shard = sum(tensor.nbytes for tensor in tensors), int(config.max_shard_size * 1e9)
    inputs = fingerprint(
        tensors,
        {folder / "config.json", *(t.file for t in stored.values())},
        _learned_files(adapters, learned),
        {"shard": shard, "exact": learned_in},
    )
    there = sum((partial_of(out) / name).stat().st_size for name in finished(partial_of(out), inputs))
    check_target(out, total - there + 2 * sum(p.stat().st_size for p in folder.glob("*.json")) + 2**20)
    dtype: Counter[str] = Counter()
    for tensor in tensors:
        dtype[tensor.serves or tensor.dtype] += tensor.nbytes
    settings = completed(raw, read, FLOATS.get(dtype.most_common(1)[0][0]))
    if not still_tied and tied_names(read):
        for part in [settings, settings.get("text_config")]:
            if isinstance(part, dict):
                part["tie_word_embeddings"] = False
    stops = stop_tokens(folder, stop_token_ids)
    template = (
        chat_template
        or (companions.find_template(source) if source != folder else None)
        or companions.find_template(folder)
    )

    with resumable(out) as work:
        progress.start("copy" if source == folder else "merge", total, "B")
        shards = write_shards(work, tensors, shard, progress, inputs=inputs)
        progress.finish(f"{len(shards.kept)} of {len(shards.sums)} files were there already" if shards.kept else "")
        words = source if changes.tokens else folder
        licences = [folder, *([source] if source != folder else [])]
        done = [*told, *facts(adapter, learned, changes, len(tensors), settings.get("dtype"))]
        card = companions.model_card(folder, hub_name(named, raw, folder), done, more=companions.HOW_TO_RUN)
        companions.write_beside(work, settings, folder, stops, words, template, licences, card)
        checks = check_loads(work, read, words, template)
        checks |= proved(prove, work, out) if prove is not None else {}
        (work / JOURNAL).unlink()
        companions.write_checksums(work, shards.sums)
    return Report(
        out,
        size_of(out),
        {
            "tensors": len(tensors),
            "merged": len(adapter.changes) if adapter else 0,
            **({"replaced": len(learned.tensors)} if learned else {}),
            **({"new_tokens": len(changes.tokens)} if changes.tokens else {}),
            **({"resumed": len(shards.kept)} if shards.kept else {}),
            "stop_token_ids": stops,
            **checks,
        },
        (
            FOR_OLLAMA.format(
                out if source == folder else "the run or adapter itself, so that nothing is rounded twice"
            ),
        ),
    )


def _learned_files(adapters: Sequence[Adapter], learned: trained.Trained | None) -> list[Path]:
    """The files that hold what was learned and how it is put into the base, in the order in which adapters are merged."""
    folders = [one.folder for one in adapters] or ([learned.folder] if learned else [])
    names = (CONFIG, WEIGHTS, FILE, trained.DESCRIPTION)
    found = [folder / name for folder in folders for name in names if (folder / name).is_file()]
    return found + sorted({tensor.file for tensor in learned.tensors.values()} if learned else ())


def plan(
    stored: dict[str, StoredTensor],
    adapter: Adapter | None,
    tied: dict[str, str],
    grown_to: int | None = None,
    numbers: Numbers | None = None,
) -> tuple[list[PlannedTensor], bool]:
    """What to write, in the base's order, and whether tied tensors are still tied. Raises ExportError for a wrong pair.

    A tied output layer is stored once, under the embedding's name. When the adapter changes only one of the two, both are written and the
    model is no longer tied: so it answered in training. ``grown_to``: rows of embeddings that grew in training. ``numbers``: the types to write.
    """
    numbers = numbers or Numbers()
    changes = dict(adapter.changes) if adapter else {}
    rows = dict(adapter.rows) if adapter else {}
    replaced = dict(adapter.replaced) if adapter else {}
    sources = dict(stored)
    still_tied = bool(tied)
    for output, shared in tied.items():
        if output in sources and shared in sources and same_bytes(sources[output], sources[shared]):
            del sources[output]
        changed = [name for name in (output, shared) if name in changes or name in replaced]
        if not changed and output not in sources:
            continue
        both = output in replaced and shared in replaced and same_bytes(replaced[output], replaced[shared])
        if both or (
            shared in replaced
            and output not in replaced
            and adapter is not None
            and adapter.ties
            and output not in changes
        ):
            replaced.pop(output, None)
            continue
        if shared not in sources:
            raise ExportError(f"the base has neither {output} nor {shared}")
        sources.setdefault(output, sources[shared])
        if shared in rows:
            rows.setdefault(output, rows[shared])
        still_tied = False
    unknown = [name for name in [*changes, *replaced, *rows] if name not in sources]
    if unknown and adapter is not None:
        raise ExportError(
            f"the adapter changes {len(unknown)} weights that the base does not have, first {unknown[0]}",
            hint=f"adapter and base do not belong together; the adapter was trained on {adapter.base or 'an unnamed base'}",
        )
    twice = [name for name in rows if name in replaced or name in changes]
    if twice:
        raise ExportError(
            f"{twice[0]}: one adapter of the chain changed it as a whole, another one learned rows of new tokens in it",
            hint="export the first adapter --to hf dtype=float32, train the second one on that folder, and export it from there",
        )
    for name, copy in adapter.carried.items() if adapter else ():
        if name not in sources or not same_values(copy, sources[name]):
            raise ExportError(
                f"the adapter carries its own copy of {name}, which is not the base's",
                hint="adapters with LoRA on embeddings that grew cannot be merged; or adapter and base do not belong together",
            )
    tensors, exact = [], numbers.learned is not None
    for name, tensor in sources.items():
        if name in replaced:
            over = changes.get(name, ())
            kind = numbers.of(tensor.dtype, "F32" if over else replaced[name].dtype)
            whole = _replacement(tensor, replaced[name], name, grown_to, kind)
            one = merged(replaced[name], over, name, whole.dtype, exact=exact) if over else whole
        elif name in rows:
            one = with_rows(tensor, rows[name], name, numbers.of(tensor.dtype, rows[name].values.dtype))
        elif name in changes:
            one = merged(tensor, changes[name], name, numbers.of(tensor.dtype, "F32"), exact=exact)
        else:
            one = as_it_is(tensor, name, numbers.of(tensor.dtype))
            copied = adapter is None and numbers.every is None  # of a merged model that was unrounded
            tensors.append(replace(one, serves=tensor.serves if copied else None))
            continue
        tensors.append(replace(one, serves=numbers.serves(tensor.served)))
    return tensors, still_tied


def _replacement(old: StoredTensor, new: StoredTensor, name: str, grown_to: int | None, dtype: str) -> PlannedTensor:
    grew = new.shape[0] == grown_to and new.shape[1:] == old.shape[1:]
    if old.shape != new.shape and not grew:
        raise ExportError(
            f"{name} is {list(old.shape)} in the base, the adapter holds {list(new.shape)}",
            hint="adapter and base do not belong together",
        )
    return as_it_is(new, name, dtype)


def base_folder(source: Path, base: Path | None, named: str | None, *, alone: bool) -> Path:
    """The folder of the base: ``base``, else the one that the learned weights name. ``alone``: ``source`` is a full model itself.

    Raises ExportError.
    """
    if not source.is_dir():
        raise ExportError(f"{source} is not a folder", hint="give an adapter folder or a model folder")
    if alone:
        return source
    found = base or (Path(named) if named else None)
    if found is None or not found.is_dir():
        raise ExportError(f"the adapter's base {found} is not a folder here", hint="give the base model's folder")
    if (found / CONFIG).exists() or trained.is_part(found):
        raise ExportError(f"the base {found} is itself an adapter", hint="merge that one first")
    return found
