"""``--to gguf``: one file for llama.cpp and Ollama, converted by llama.cpp's own converter and checked afterwards."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import Literal

from tunesmith.config.base import Config as BaseConfig
from tunesmith.config.base import setting
from tunesmith.config.errors import ExportError
from tunesmith.config.progress import SILENT, Progress
from tunesmith.export.base import Report, check_target, whole_or_nothing
from tunesmith.export.converter import convert
from tunesmith.export.gguf_check import check_file
from tunesmith.export.gguf_job import prepare
from tunesmith.export.gguf_tokens import EOM, EOT, check_tokens
from tunesmith.export.load_back import load_tokenizer
from tunesmith.export.model_config import load_config, stop_tokens
from tunesmith.export.staging import stage
from tunesmith.export.tensor_files import read_model
from tunesmith.export.trained import is_part
from tunesmith.models.rope import is_dynamic

BYTES_PER_WEIGHT = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32}
LEVELS = tuple(BYTES_PER_WEIGHT)
"""Every level there is, finest first."""


class Config(BaseConfig):
    """A GGUF file in full or 8-bit precision."""

    level: Literal["f32", "f16", "bf16", "q8_0"] = setting(
        "f16",
        zh="权重的存储类型：f32、f16、bf16 或 q8_0（8 位，体积约为 f16 的一半）。",
        basic=True,
    )
    """How weights are stored: f32, f16, bf16, or q8_0 (8 bit, about half the size of f16)."""


def export(source: Path, out: Path, config: Config, progress: Progress = SILENT) -> Report:
    """Convert the full model folder ``source`` into the new file ``out``.

    The file is kept only if every tensor arrived in its shape, llama.cpp's tokens equal the tokenizer's on the probes, and bos,
    eos, chat template and every stop token of generation_config.json are what llama.cpp will use. Code in ``source`` is never run.
    Raises ExportError; then ``out`` does not exist, and when the converter failed its report is kept as ``out`` + ``.log``.
    """
    if (source / "adapter_config.json").exists() or is_part(source):
        raise ExportError(
            f"{source} holds an adapter, not a whole model",
            hint="merge it first: export it --to hf, then that folder --to gguf",
        )
    stored, settings, tokenizer = read_model(source), load_config(source), load_tokenizer(source)
    if is_dynamic(settings.get_text_config()):
        progress.say(
            "warning: llama.cpp knows no dynamic RoPE scaling; this GGUF reads only the model's original "
            f"{settings.get_text_config().max_position_embeddings} tokens (yarn or linear scaling is carried over)"
        )
    stops = stop_tokens(source)
    prepared = prepare(source.resolve().name, stored, settings, tokenizer, stops)
    for line in prepared.warnings:
        progress.say(line)
    wanted = dict(prepared.metadata)
    expected = int(sum(math.prod(t.shape) for t in stored.values()) * BYTES_PER_WEIGHT[config.level])
    check_target(out, expected + 2**25)
    staging = out.parent / f".{out.name}.staging"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with whole_or_nothing(out) as work:
            staged = stage(source, staging / "model", settings)
            job = prepared.job | {"type": config.level, "metadata": wanted}
            log = out.with_name(out.name + ".log")
            convert(staged, work, job, expected, log, progress)
            missed, rare = check_tokens(work, tokenizer, stops)
            if missed:  # llama.cpp finds most stop tokens by their text; the others need a key, and there are two
                wanted |= dict(zip((EOT, EOM), missed))
                work.unlink()
                convert(staged, work, job | {"metadata": wanted}, expected, log, progress)
                missed, rare = check_tokens(work, tokenizer, stops)
            if missed:
                raise ExportError(
                    f"llama.cpp would not stop at the tokens {missed}, which end this model's answers",
                    hint="a GGUF can name three such tokens; give generation_config.json fewer",
                )
            figures = check_file(work, stored, wanted)
            with work.open("rb+") as file:
                os.fsync(file.fileno())
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    for line in prepared.told(rare):
        progress.say(line)
    checks = {"stop_token_ids": stops, "tokens_equal": True, "tokens_differ_in": rare, "warnings": prepared.warnings}
    return Report(out, out.stat().st_size, {**figures, **checks})
