"""OFT: turn the inputs of the linear layers, W' = W Rᵀ with a block-diagonal rotation R (Qiu et al., 2023, arXiv:2306.07280).

Each block is the Cayley transform of a learned skew-symmetric matrix; by default its inverse is a short Neumann series
(OFTv2, Qiu et al., 2025, arXiv:2506.19847). Angles between neurons stay as they were. The layers are peft's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ConfigDict, model_validator

from tunesmith.config.base import setting
from tunesmith.config.errors import ConfigError
from tunesmith.models.adapters import chain, continued, targets
from tunesmith.models.adapters.config import AdapterConfig
from tunesmith.models.adapters.files import Origin, load_state, remember, save

__all__ = ["Config", "adopted", "apply", "load_state", "save"]
FREEZES_BASE = True
"""The base's own weights stay as they are, so the base may be quantized."""


class Config(AdapterConfig):
    """OFT adapters in peft's format."""

    model_config = ConfigDict(json_schema_extra={"zh": "OFT 适配器（peft 格式）：学习对层输入的正交旋转，原权重不变。"})

    kind: Literal["oft"] = "oft"
    """OFT."""
    block_size: int | None = setting(None, zh="每个旋转块的大小；必须整除层的输入宽度（默认 32）。", basic=True, ge=2)
    """Size of the rotated blocks; it must divide the input width of every target. Default: 32, unless blocks is given."""
    blocks: int | None = setting(None, zh="每层的块数，代替 block_size（块数越多参数越少）。", ge=1)
    """Number of blocks per layer, in place of block_size: more blocks, fewer weights to learn."""
    dropout: float = setting(0.0, zh="训练时把旋转块换成单位阵的概率。", ge=0, lt=1)
    """Share of the blocks that are left unturned in a training step."""
    block_share: bool = setting(False, zh="一层中的所有块共用同一个旋转。")
    """One rotation for all blocks of a layer."""
    constrained: bool = setting(False, zh="COFT：把旋转限制在离单位阵 epsilon 以内。")
    """COFT: keep the rotation within epsilon of none."""
    epsilon: float = setting(6e-5, zh="COFT 允许的最大偏离。", gt=0)
    """How far the constrained rotation may go."""
    neumann_terms: int | None = setting(5, zh="Cayley 变换用 Neumann 级数的项数；null 为精确求逆（较慢）。", ge=2)
    """Terms of the series for the Cayley transform; null = the exact inverse, slower."""

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.block_size is not None and self.blocks is not None:
            raise ValueError("block_size and blocks say the same thing in two ways; give one of them")
        return self

    @property
    def size(self) -> int:
        """The block size, 0 when the number of blocks is given instead."""
        return 0 if self.blocks is not None else self.block_size or 32


def adopted(config: Config, folder: Path) -> Config:
    """``config`` with the settings of the adapter in ``folder``. Raises ConfigError for a given setting that differs."""
    its = chain.read_config(folder)
    return continued.adopted(config, folder, "OFT", {
        "block_size": its.get("oft_block_size") or None, "blocks": its.get("r") or None,
        "dropout": its.get("module_dropout", 0.0), "block_share": bool(its.get("block_share")),
        "constrained": bool(its.get("coft")), "epsilon": its.get("eps", 6e-5),
        "neumann_terms": its.get("num_cayley_neumann_terms", 5) if its.get("use_cayley_neumann", True) else None,
    })  # fmt: skip


def apply(
    model: Any, config: Config, *, base_name: str, checkpoint: Path | None = None, new_rows: tuple[int, ...] = ()
) -> Any:
    """``model`` with rotations on its layers (fp32), its own weights frozen. As ``lora.apply``. Raises ConfigError."""
    from peft import OFTConfig

    if new_rows:
        raise ConfigError(
            "model.add_tokens: the rows of new tokens cannot be learned beside rotations",
            hint="take method.kind: lora, which learns these rows as well",
        )
    merged = tuple(Path(folder) for folder in config.merge_first)
    model = chain.merge(model, merged)
    if config.start_from is not None:
        adapted = chain.open_adapter(model, checkpoint or Path(config.start_from), trainable=True)
        adapted.peft_config["default"].base_model_name_or_path = base_name
        return remember(adapted, Origin(merged))
    save_whole, tie = targets.saved_modules(model, config.modules_to_save)
    if tie:
        raise ConfigError(
            "method.modules_to_save: this model ties embeddings and output layer, which oft cannot learn as one",
            hint="leave them out, or take method.kind: lora",
        )
    peft_config = OFTConfig(
        r=config.blocks or 0,
        oft_block_size=config.size,
        module_dropout=config.dropout,
        block_share=config.block_share,
        coft=config.constrained,
        eps=config.epsilon,
        use_cayley_neumann=config.neumann_terms is not None,
        num_cayley_neumann_terms=config.neumann_terms or 5,
        target_modules=targets.target_modules(model, config),
        modules_to_save=save_whole,
        bias="none",
        task_type="CAUSAL_LM",
    )
    adapted = targets.adapt(model, peft_config, base_name)
    _check_sizes(adapted, config)
    return remember(adapted, Origin(merged))


def _check_sizes(model: Any, config: Config) -> None:
    """peft takes the nearest size that divides; here a size that does not is an error. Raises ConfigError."""
    for name, module in model.named_modules():
        if not hasattr(module, "oft_block_size") or "default" not in module.oft_block_size:
            continue
        width = module.in_features
        key, wanted = ("blocks", config.blocks) if config.blocks else ("block_size", config.size)
        if not wanted or width % wanted:
            sizes = [size for size in range(2, min(width, 257)) if width % size == 0]
            raise ConfigError(
                f"method.{key}: {wanted} does not divide the {width} inputs of {name.removeprefix('base_model.model.')}",
                hint=f"these do: {', '.join(map(str, sizes))}",
            )
