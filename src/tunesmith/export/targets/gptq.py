"""``--to gptq``: 8, 4, 3 or 2 bits a weight, calibrated on the person's own text, for transformers, vLLM and our own chat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
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
USUAL = {8: 0.02, 4: 0.2, 3: 1.0, 2: 4.0}
"""Mean KL (nats) to the 16-bit model that an export with so many bits usually stays below (SmolLM2-135M: 0.0004, 0.09, 0.27, 1.0)."""
FORMAT = 1
"""Counts changes that would make a finished block of an earlier version differ."""


class Config(BaseConfig):
    """GPTQ (Frantar et al., 2022): the weights that follow make up for the rounding of each, measured on calibration text."""

    bits: Literal[2, 3, 4, 8] = setting(
        4,
        zh="每个权重的位数：8 几乎无损，4 是常用选择，3 和 2 损失明显（请看质量报告）。",
        basic=True,
        label=("Bits per weight", "每个权重的位数"),
    )
    """Bits per weight: 8 is nearly exact, 4 the usual choice, 3 and 2 cost much (see the quality report)."""
    group_size: Literal[-1, 32, 64, 128] | None = setting(
        None,
        zh="共用一个缩放系数的输入个数；-1 表示整行。默认取 128、64、32 中能整除所有层的最大值。",
        basic=True,
        label=("Inputs that share a scale", "共用缩放系数的输入数"),
    )
    """Inputs that share a scale, -1 for whole rows. Default: the largest of 128, 64 and 32 that divides the width of every layer."""
    sym: bool | None = setting(
        None,
        zh="零点固定在中间。默认：4 位和 8 位为真（vLLM 需要），3 位和 2 位为假（更准）。",
        label=("Zero in the middle", "零点固定在中间"),
    )
    """Zero fixed in the middle of the range. Default: yes at 4 and 8 bits, as vLLM demands; no at 3 and 2, where it costs much."""
    act_order: Literal["none", "static", "activation"] = setting(
        "static",
        zh="各列的处理顺序：none 按原顺序；static 先处理输入大的列，分组不变（推理不变慢）；activation 分组也按此顺序（即 desc_act，推理较慢）。",
        label=("Order of columns", "列的处理顺序"),
    )
    """Order of columns: as they are, largest inputs first in unchanged groups, or groups in that order too (desc_act; slower to run)."""
    search: bool = setting(
        True, zh="为每组搜索误差最小的缩放系数，而不是直接取最大值。", label=("Search for each scale", "搜索缩放系数")
    )
    """Choose each scale among several by its squared error instead of taking the extremes."""
    damp: float = setting(
        0.01, zh="加在 Hessian 对角线上的阻尼，占其均值的比例。", gt=0, lt=1, label=("Damping", "阻尼")
    )
    """Damping of the Hessian, as a part of the mean of its diagonal."""
    calibration_tokens: int = setting(
        32768, zh="校准文本的词元数。", ge=1, label=("Calibration text in tokens", "校准文本词元数")
    )
    """Tokens of calibration text."""


def label(config: Config) -> str:
    """What an export with these settings is called."""
    usual = Config(bits=config.bits)
    words = [f"gptq-{config.bits}bit"]
    if config.group_size is not None:
        words.append("row" if config.group_size == -1 else f"g{config.group_size}")
    if config.sym is not None:
        words.append("sym" if config.sym else "asym")
    if config.act_order != usual.act_order:
        words.append(f"order-{config.act_order}")
    if config.search != usual.search:
        words.append("plain-scales")
    if config.damp != usual.damp:
        words.append(f"damp-{config.damp:g}")
    if config.calibration_tokens != usual.calibration_tokens:
        words.append(f"{config.calibration_tokens}-tokens")
    return "-".join(words)


def calibration(config: Config) -> int:
    """Tokens of calibration text that ``export`` wants."""
    return config.calibration_tokens


def usual_kl(config: Config) -> float:
    """Mean KL (nats) to the merged model that the result usually stays below."""
    return USUAL[config.bits]


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

    Linear layers of the blocks are quantized; embeddings, norms and the output layer stay as they are. One block's weights are in memory at
    a time. Finished blocks lie beside ``out`` (``.NAME.blocks``), so that the same call goes on after a kill and ends in the same
    bytes (on a CPU); they are removed at the end. ``told``: lines for the model card. ``prove`` is asked
    about the finished folder before it gets its name; one that fails is kept as ``out`` with ``.failed``. Raises ExportError; then ``out`` does
    not exist.
    """
    stored = read_source(source)
    check_text(calibration, "GPTQ")
    from tunesmith.export.by_block import group_size, kept_note, room, with_blocks
    from tunesmith.export.gptq_blocks import Gptq, quantize
    from tunesmith.export.gptq_solver import Grid
    from tunesmith.export.layerwise import Layerwise

    model = Layerwise(source, stored, best_device())
    rows, group = model.cut(calibration), group_size(model, config.group_size)
    check_target(out, room(model, stored, config.bits))
    sym = config.bits in (4, 8) if config.sym is None else config.sym
    how = Gptq(Grid(config.bits, group, sym, config.search), config.act_order, config.damp)
    folder = out.parent / f".{out.name}.blocks"
    with full_disk_in_words(out, folder):
        files = BlockFiles(folder, fingerprint(source, stored, rows, f"gptq {FORMAT} {how}"))
        done = quantize(model, rows, how, files, progress)
        settings = _settings(how, done.kept)
        tokens = sum(len(row) for row in rows)
        facts = [
            *told,
            f"GPTQ, {config.bits} bits, group size {group}, {'symmetric' if sym else 'asymmetric'}: {len(done.errors)} linear layers, "
            f"calibrated on {len(rows)} texts of together {tokens} tokens; embeddings and output layer unquantized",
        ]
        checks = write_checkpoint(
            source, out, with_blocks(stored, files, len(model.blocks)), settings, facts, progress, prove
        )
    files.remove()
    return Report(
        out,
        size_of(out),
        {"layers": len(done.errors), "layer_error": done.mean_error, "group_size": group, "sym": sym, **checks},
        (*_for_vllm(config.bits, sym), *kept_note(done.kept)),
    )


def _settings(how: Any, kept: list[str]) -> dict[str, Any]:
    """``quantization_config`` as AutoGPTQ, GPTQModel, transformers and vLLM read it."""
    desc_act = how.order == "activation" and how.grid.group > 0
    settings = {
        "quant_method": "gptq", "bits": how.grid.bits, "group_size": how.grid.group, "sym": how.grid.symmetric, "desc_act": desc_act,
        "checkpoint_format": "gptq", "pack_dtype": "int32", "lm_head": False, "damp_percent": how.damp, "true_sequential": True,
        "static_groups": how.order == "static", "meta": {"quantizer": [f"tunesmith:{version('tunesmith')}"]},
    }  # fmt: skip
    if kept:
        settings["dynamic"] = {f"-:^{name.replace('.', chr(92) + '.')}$": {} for name in kept}
    return settings


def _for_vllm(bits: int, sym: bool) -> tuple[str, ...]:
    if bits in (4, 8) and sym:
        return ()
    return ("vLLM loads GPTQ with 4 or 8 bits and sym=true only; transformers and Tunesmith load this one",)
