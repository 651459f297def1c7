"""The whole-run config: what one YAML file says. Each part belongs to its room; here they only meet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.base import Config, setting
from tunesmith.config.errors import ConfigError
from tunesmith.config.load import Source, apply_overrides, read_yaml, validate
from tunesmith.config.plugins import kind_union
from tunesmith.data.config import DataConfig
from tunesmith.models.config import ModelConfig, Precision
from tunesmith.runs.config import OutputConfig, TrackingConfig
from tunesmith.runs.folder import RunFolder
from tunesmith.train.config import TrainConfig

STAGES, METHODS, OPTIMIZERS = "tunesmith.stages", "tunesmith.models.methods", "tunesmith.train.optimizers"
if TYPE_CHECKING:
    Stage = Any
    Method = Any
else:
    Stage = kind_union(STAGES, "sft")
    Method = kind_union(METHODS, "lora")


class TrainRun(Config):
    """A training run. ``model`` and ``data`` alone are a valid config."""

    model: ModelConfig = setting(..., zh="从哪个模型开始。", basic=True)
    """The model to start from."""
    data: DataConfig = setting(..., zh="用什么数据训练。", basic=True)
    """The data to learn from."""
    stage: Stage = setting({"kind": "sft"}, zh="训练阶段（学什么目标）。")
    """The training stage: what is learned."""
    method: Method = setting({"kind": "lora"}, zh="训练方法（哪些权重会变）。")
    """The method: which weights change."""
    train: TrainConfig = setting(TrainConfig, zh="训练循环。")
    """The training loop."""
    precision: Precision = setting(
        "auto",
        zh="计算用的数值精度；auto 按设备选择最快的。bf16 与 fp16 在 fp32 主权重上学习（fp16 带损失缩放）；pure_bf16 的权重与优化器状态都只存 bf16，用随机舍入，内存最省。",
    )
    """Numbers to compute in; auto takes the fastest the device has. bf16 and fp16 learn in fp32 masters (fp16 with loss
    scaling); pure_bf16 keeps weights and optimizer states in bf16 alone, rounded stochastically: the least memory."""
    output: OutputConfig = setting(OutputConfig, zh="运行文件夹。")
    """The run folder."""
    tracking: TrackingConfig = setting(TrackingConfig, zh="同时把指标发送给跟踪服务。")
    """Trackers that get the figures as well."""


SHORT = {"model": ModelConfig.shorthand, "data": DataConfig.shorthand}


def load_config(path: Path | None, overrides: Sequence[str]) -> TrainRun:
    """A config from a YAML file (optional) and ``key=value`` overrides. Raises ConfigError."""
    values: dict[str, Any] = {}
    source: Source | None = None
    if path is not None:
        values, source = read_yaml(path)
    for key, long in SHORT.items():
        if isinstance(values.get(key), (str, list)):
            values[key] = {long: values[key]}
    written = [_long(text) for text in overrides]
    merged = apply_overrides(values, written)
    keys = [tuple(text.partition("=")[0].strip().split(".")) for text in written]
    source = Source(source.name if source else "command line", source.lines if source else {}, keys)
    for key in ("model", "data"):
        if key not in merged and merged.keys() <= TrainRun.model_fields.keys():
            what = f"{path}: " if path is not None else ""
            raise ConfigError(
                f"{what}{key!r} is missing", hint="for example: tunesmith train model=demo data=lantern_bay"
            )
    return validate(TrainRun, merged, source)


def _long(override: str) -> str:
    """``model=…`` and ``data=…`` set the reference and keep the other keys of the file."""
    key, equals, value = override.partition("=")
    long = SHORT.get(key.strip())
    return f"{key.strip()}.{long}={value}" if equals and long and not value.lstrip().startswith("{") else override


def config_of_run(run: RunFolder) -> TrainRun:
    """The config a run was started with."""
    values, source = read_yaml(run.config_path)
    return validate(TrainRun, values, source)
