"""A model folder whose layers are stored in few bits: what may become one, and how it is written and checked.

Knows nothing of any way to quantize; a target gives the tensors and the ``quantization_config`` that tells loaders how to read them.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunesmith.config.errors import ExportError
from tunesmith.config.progress import Progress
from tunesmith.export import companions
from tunesmith.export.base import proved, whole_or_nothing
from tunesmith.export.changes import as_it_is
from tunesmith.export.facts import hub_name
from tunesmith.export.load_back import check_loads
from tunesmith.export.model_config import completed, load_config, stop_tokens
from tunesmith.export.shards import JOURNAL, write_shards
from tunesmith.export.tensor_files import PlannedTensor, StoredTensor, read_json, read_model
from tunesmith.export.trained import is_part

SHARD_BYTES = 5 * 10**9
NEEDS = {"gptq": "gptqmodel optimum", "awq": "gptqmodel", "compressed-tensors": "compressed-tensors"}
"""What transformers wants to open such a folder, as it says itself (5.17)."""


def read_source(source: Path) -> dict[str, StoredTensor]:
    """The tensors of a whole model in 16 or 32 bit. Raises ExportError for anything else."""
    if not source.is_dir():
        raise ExportError(f"{source} is not a folder", hint="give the folder of a whole model")
    if (source / "adapter_config.json").exists() or is_part(source):
        raise ExportError(
            f"{source} holds what was learned, not a whole model",
            hint="merge it first: export it --to hf dtype=float32",
        )
    raw = read_json(source / "config.json")
    settings = raw.get("quantization_config") or (raw.get("text_config") or {}).get("quantization_config")
    if settings:
        raise ExportError(
            f"{source} is stored quantized already ({settings.get('quant_method', 'unknown method')})",
            hint="give the model in its original precision (16 or 32 bit)",
        )
    return read_model(source)


def check_text(calibration: Sequence[Sequence[int]], what: str) -> None:
    """Raises ExportError when there is no text for ``what`` (GPTQ, AWQ) to calibrate with."""
    if not any(len(row) for row in calibration):
        raise ExportError(
            f"{what} needs calibration text, and there is none",
            hint="export from a run, whose data are taken, or name some text; --to fp8 needs none",
        )


@contextmanager
def full_disk_in_words(out: Path, kept: Path | None = None) -> Iterator[None]:
    """Turn "no space left" into an ExportError; ``kept``: where finished work stays."""
    try:
        yield
    except Exception as error:  # safetensors has an error of its own for it
        if getattr(error, "errno", None) != errno.ENOSPC and "No space left" not in str(error):
            raise
        stays = f"; what is finished is kept in {kept}" if kept is not None and kept.exists() else ""
        raise ExportError(
            f"the disk of {out.parent} is full{stays}",
            hint="free some space and give the same command again" + (", or remove that folder" if stays else ""),
        ) from error


def write_checkpoint(
    source: Path, out: Path, tensors: Sequence[PlannedTensor], quantization: Mapping[str, Any], facts: Sequence[str],
    progress: Progress, prove: Callable[[Path], dict[str, Any]] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write ``tensors`` to the new folder ``out``, with everything that ``source`` has beside its weights.

    ``facts`` are the sentences of the model card; base and licence are those of ``source``'s own card. Returns what was checked: our own reader finds every weight in its
    packed form, and the tokenizer is the source's. ``prove`` is asked about the finished folder before it gets its name; when it raises, the
    folder is kept with ``.failed``. Raises ExportError; then ``out`` does not exist.
    """
    raw, read = read_json(source / "config.json"), load_config(source)
    settings = completed(raw, read, None) | {"quantization_config": dict(quantization)}
    stops, template = stop_tokens(source), companions.find_template(source)
    with whole_or_nothing(out) as work, full_disk_in_words(out):
        work.mkdir()
        progress.start("write", sum(tensor.nbytes for tensor in tensors), "B")
        written = write_shards(work, tensors, SHARD_BYTES, progress)
        (work / JOURNAL).unlink()
        progress.finish()
        done = [*facts, "made with Tunesmith"]
        needs = NEEDS.get(str(quantization.get("quant_method")), "")
        how = companions.HOW_TO_RUN + (
            f"\nTransformers needs more packages for it: `pip install {needs}`.\n" if needs else ""
        )
        card = companions.model_card(source, hub_name(None, raw, source), done, more=how)
        companions.write_beside(work, settings, source, stops, source, template, [source], card)
        checks = check_loads(work, read, source, template)
        companions.write_checksums(work, written.sums)
        checks |= proved(prove, work, out) if prove is not None else {}
    return {"tensors": len(tensors), "stop_token_ids": stops, **checks}


def unchanged(tensor: StoredTensor) -> PlannedTensor:
    """``tensor`` as it is, in the type it is to be served as."""
    return as_it_is(tensor, dtype=tensor.served)
