"""LoRA: learn a low-rank change of the linear layers, W' = W + (alpha / rank) * B @ A (Hu et al., 2021, arXiv:2106.09685)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, field_validator

from tunesmith.config.base import Config as BaseConfig
from tunesmith.config.base import setting
from tunesmith.config.errors import ConfigError

if TYPE_CHECKING:
    import torch

FREEZES_BASE = True
"""The base's own weights stay as they are, so that it may be quantized."""


class Config(BaseConfig):
    """LoRA adapters in peft's format."""

    model_config = ConfigDict(json_schema_extra={"zh": "LoRA 适配器（peft 格式）：只训练低秩增量，原权重不变。"})

    kind: Literal["lora"] = "lora"
    """LoRA."""
    rank: int = setting(8, zh="低秩矩阵的秩 r：越大可学的越多，也越占内存。", basic=True, ge=1)
    """Rank r of the adapters: larger can learn more and takes more memory."""
    alpha: float | None = setting(None, zh="缩放系数 alpha（默认 2 × rank）。", gt=0)
    """Scale alpha; the change is multiplied by alpha / rank. Default: 2 x rank."""
    dropout: float = setting(0.0, zh="适配器输入的 dropout 概率。", ge=0, lt=1)
    """Dropout probability on the input of the adapters."""
    targets: tuple[str, ...] = setting(("all",), zh="要加适配器的线性层名称；all 表示除输出层外的全部线性层。")
    """Names of the linear layers that get an adapter; all = every linear layer but the output."""

    @field_validator("targets", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return (self.alpha or 2 * self.rank) / self.rank


def apply(model: Any, config: Config, *, base_name: str) -> Any:
    """``model`` with fresh adapters, its own weights frozen. ``base_name`` is what the saved adapter calls its base.

    Adapters are created in fp32. Raises ConfigError when no layer has one of the target names.
    """
    from peft import LoraConfig, get_peft_model

    everything = config.targets == ("all",)
    peft_config = LoraConfig(
        r=config.rank,
        lora_alpha=config.scale * config.rank,
        lora_dropout=config.dropout,
        target_modules="all-linear" if everything else list(config.targets),
        bias="none",
        task_type="CAUSAL_LM",
    )
    try:
        adapted = get_peft_model(model, peft_config, autocast_adapter_dtype=True)
    except ValueError as error:
        linear = sorted({n.rpartition(".")[2] for n, m in model.named_modules() if type(m).__name__ == "Linear"})
        raise ConfigError(
            f"method.targets: no layer of this model is called {', '.join(config.targets)}",
            hint=f"its linear layers: {', '.join(linear)}",
        ) from error
    adapted.peft_config["default"].base_model_name_or_path = base_name
    return adapted


def save(model: Any, folder: Path, state: dict[str, torch.Tensor]) -> None:
    """Write the adapter in peft's format. ``state``: its values (fp32) by parameter name of ``model``."""
    model.save_pretrained(str(folder), state_dict=state)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty card; the export writes a real one


def load_state(folder: Path, model: Any) -> dict[str, torch.Tensor]:
    """The saved values by parameter name of ``model``: what ``save`` was given."""
    from safetensors.torch import load_file

    stored = load_file(folder / "adapter_model.safetensors")
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    state = {name: stored[name.replace(".default", "")] for name in names if name.replace(".default", "") in stored}
    assert state.keys() == names, f"{folder}: the adapter is not of this model"
    return state
