"""``--to awq``: 4 bits a weight, with channels scaled by how large their inputs are on the person's own text; for vLLM, transformers and our own chat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from tunesmith.config.base import Config as BaseConfig
from tunesmith.config.base import setting
from tunesmith.config.progress import SILENT, Progress
from tunesmith.export.base import Report, check_target, size_of
from tunesmith.export.block_files import BlockFiles, fingerprint
from tunesmith.export.packed_checkpoint import check_text, full_disk_in_words, read_source, write_checkpoint
from tunesmith.models.devices import best_device

SOURCE, OUT = "merged", "folder"
FORMAT = 1
"""Counts changes that would make a finished block of an earlier version differ."""
USUAL = 0.3
"""Mean KL (nats) to the 16-bit model that an export usually stays below. Estimated: three blocks of SmolLM2-135M lose 0.02 to 0.05
(benchmarks/results/awq.md), GPTQ at 4 bits 0.02 to 0.03 there and 0.09 to 0.2 over all thirty."""


class Config(BaseConfig):
    """AWQ (Lin et al., 2023): channels with large inputs are scaled up before rounding, the scales are searched on calibration text."""

    bits: Literal[4] = setting(4, zh="每个权重的位数；AWQ 文件只有 4 位。", basic=True, label=("Bits", "位数"))
    """Bits per weight; files of this kind have 4."""
    group_size: Literal[-1, 32, 64, 128] | None = setting(
        None,
        zh="共用一个缩放系数的输入个数；-1 表示整行。默认取 128、64、32 中能整除所有层的最大值。",
        basic=True,
        label=("Group size", "分组大小"),
    )
    """Inputs that share a scale, -1 for whole rows. Default: the largest of 128, 64 and 32 that divides the width of every layer."""
    search: bool = setting(
        True,
        zh="为每组搜索误差最小的取值范围（权重截断），而不是直接取最大最小值。",
        label=("Search for each range", "搜索取值范围"),
    )
    """Choose the range of each group among several by its squared error (weight clipping) instead of taking the extremes."""
    calibration_tokens: int = setting(
        32768, zh="校准文本的词元数。", ge=1, label=("Calibration text in tokens", "校准文本词元数")
    )
    """Tokens of calibration text."""


def label(config: Config) -> str:
    """What an export with these settings is called."""
    usual, words = Config(), ["awq-4bit"]
    if config.group_size is not None:
        words.append("row" if config.group_size == -1 else f"g{config.group_size}")
    if config.search != usual.search:
        words.append("plain-scales")
    if config.calibration_tokens != usual.calibration_tokens:
        words.append(f"{config.calibration_tokens}-tokens")
    return "-".join(words)


def calibration(config: Config) -> int:
    """Tokens of calibration text that ``export`` wants."""
    return config.calibration_tokens


def usual_kl(config: Config) -> float:
    """Mean KL (nats) to the merged model that the result usually stays below."""
    return USUAL


def export(
    source: Path,
    out: Path,
    config: Config,
    progress: Progress = SILENT,
    *,
    calibration: Sequence[Sequence[int]] = (),
    told: Sequence[str] = (),
    prove: Callable[[Path], dict[str, Any]] | None = None,
) -> Report:
    """Quantize the full model folder ``source`` (16 or 32 bit) into the new folder ``out``, calibrated on rows of token ids.

    Linear layers of the blocks are quantized, norms before them take up their scales; embeddings and the output layer stay as they are. One
    block's weights are in memory at a time. Finished blocks lie beside ``out`` (``.NAME.blocks``), so that the same call goes on
    after a kill and ends in the same bytes (on a CPU); they are removed at the end. ``told``: lines for the model card.
    ``prove`` is asked about the finished folder before it gets its name; one that fails is kept as ``out`` with ``.failed``. Raises
    ExportError; then ``out`` does not exist.
    """
    stored = read_source(source)
    check_text(calibration, "AWQ")
    from tunesmith.export.awq_blocks import quantize
    from tunesmith.export.by_block import group_size, kept_note, room, with_blocks
    from tunesmith.export.gptq_solver import Grid
    from tunesmith.export.layerwise import Layerwise

    model = Layerwise(source, stored, best_device())
    rows, grid = model.cut(calibration), Grid(config.bits, group_size(model, config.group_size), False, config.search)
    check_target(out, room(model, stored, config.bits))
    folder = out.parent / f".{out.name}.blocks"
    with full_disk_in_words(out, folder):
        files = BlockFiles(folder, fingerprint(source, stored, rows, f"awq {FORMAT} {grid}"))
        done = quantize(model, rows, grid, files, progress)
        layers = sum(map(len, model.linears)) - len(done.kept)
        tokens = sum(len(row) for row in rows)
        facts = [
            *told,
            f"AWQ, {config.bits} bits, group size {grid.group}, with zero points: {layers} linear layers, calibrated on {len(rows)} texts "
            f"of together {tokens} tokens; embeddings and output layer unquantized",
        ]
        tensors = with_blocks(stored, files, len(model.blocks))
        checks = write_checkpoint(source, out, tensors, _settings(grid.group, done.kept), facts, progress, prove)
    files.remove()
    return Report(
        out,
        size_of(out),
        {"layers": layers, "block_error": done.mean_error, "group_size": grid.group, **checks},
        kept_note(done.kept),
    )


def _settings(group: int, kept: list[str]) -> dict[str, Any]:
    """``quantization_config`` as AutoAWQ wrote it, and transformers and vLLM read it."""
    settings = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}
    return settings | ({"modules_to_not_convert": kept} if kept else {})
