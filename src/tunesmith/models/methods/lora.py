"""LoRA: learn a low-rank change of the linear layers, W' = W + s · B A (Hu et al., 2021, arXiv:2106.09685).

s = alpha / r, or alpha / sqrt(r) with rsLoRA (Kalajdzievski, 2023, arXiv:2312.03732). With DoRA (Liu et al., 2024,
arXiv:2402.09353) the rows of W' also get a learned length. LoRA+ (Hayou et al., 2024, arXiv:2402.12354) gives B a larger
learning rate than A. The layers are peft's; the files are peft's format.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ConfigDict, field_validator, model_validator

from tunesmith.config.base import setting
from tunesmith.config.plugins import suggestion
from tunesmith.models.adapters import chain, continued, starts, targets
from tunesmith.models.adapters.config import AdapterConfig
from tunesmith.models.adapters.files import Origin, load_state, remember, save, saved_factors

__all__ = ["Config", "adopted", "apply", "load_state", "lr_scales", "save"]

INITS = ("default", "gaussian", "orthogonal", "pissa", "pissa_niter_16", "olora")
NEEDS_DATA = "it computes its starting values from activations or gradients over data, which is not done here"
REFUSED = {
    "eva": NEEDS_DATA,
    "corda": NEEDS_DATA,
    "lora_ga": NEEDS_DATA,
    "loftq": "it replaces the base by a quantized copy of its own, so that the adapter would fit no other copy of the base",
}

FREEZES_BASE = True
"""The base's own weights stay as they are, so that it may be quantized."""


class Config(AdapterConfig):
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
    rank_pattern: dict[str, int] = setting({}, zh="个别层的秩：层名（或正则表达式）到秩，例如 {down_proj: 16}。")
    """Other ranks for single layers: name or regular expression -> rank, for example {down_proj: 16}."""
    alpha_pattern: dict[str, float] = setting({}, zh="个别层的 alpha：层名（或正则表达式）到 alpha。")
    """Other alphas for single layers: name or regular expression -> alpha."""
    rslora: bool = setting(False, zh="rsLoRA：按 alpha / √rank 缩放，大秩时更稳定。")
    """rsLoRA: scale by alpha / sqrt(rank), so that large ranks learn as fast as small ones."""
    dora: bool = setting(False, zh="DoRA：另外学习每个输出的幅度；更慢，小秩时常更好。")
    """DoRA: learn the length of every row of the weight as well; slower, often better at small ranks."""
    init: str = setting(
        "default",
        zh="起始值：default、gaussian、orthogonal、pissa、pissa_niter_N（快速近似，N 次迭代）、olora。",
        pattern=r"^(default|gaussian|orthogonal|pissa|pissa_niter_[0-9]+|olora)$",
    )
    """Starting values: default (A random, B zero), gaussian, orthogonal, pissa (from the largest singular directions of the
    weight), pissa_niter_N (the same, quickly, by N iterations; 16 is enough), olora (from its QR decomposition)."""
    lr_ratio: float = setting(1.0, zh="LoRA+：B 的学习率是 A 的多少倍；论文建议 16。", gt=0)
    """LoRA+: the learning rate of B as a multiple of A's; the paper suggests 16."""
    embedding_lr_ratio: float = setting(
        1.0, zh="嵌入层（适配器或 modules_to_save 中的嵌入与输出层）的学习率倍数。", gt=0
    )
    """Learning rate of embeddings and output layer (their adapters, or in modules_to_save) as a multiple of the others'."""
    experts: bool = setting(False, zh="混合专家模型：给融合存储的专家权重也加适配器（dropout 须为 0，不能用 DoRA）。")
    """Mixture-of-experts models: adapters on the experts too, where they are stored as one fused weight (no dropout, no
    DoRA)."""

    @field_validator("init", mode="before")
    @classmethod
    def _known_init(cls, value: Any) -> Any:
        if value in REFUSED:
            raise ValueError(f"{value} is not offered: {REFUSED[value]}; pissa is near to it")
        stem = str(value).rstrip("0123456789")
        if value not in INITS and (stem != "pissa_niter_" or stem == value):
            raise ValueError(f"there is no such start; {suggestion(str(value), INITS)}")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        rewrites = starts.takes_from_base(self.init)
        for wrong, words in (
            (rewrites and self.dora, f"init: {self.init} cannot be combined with dora: the lengths would be those of the rest"),
            (self.experts and self.dropout > 0, "experts takes no dropout: their adapters are added to the weights"),
            (self.experts and self.dora, "experts cannot be combined with dora"),
            (self.experts and self.init not in ("default", "gaussian"), f"experts cannot start from init: {self.init}"),
            (self.init == "orthogonal" and any(r % 2 for r in self._ranks()), "init: orthogonal needs an even rank"),
            (self.start_from is not None and self.init != "default", "start_from brings its own values; leave init out"),
        ):  # fmt: skip
            if wrong:
                raise ValueError(words)
        return self

    def _ranks(self) -> list[int]:
        return [self.rank, *self.rank_pattern.values()]

    @property
    def scale(self) -> float:
        """s: alpha / rank, or alpha / sqrt(rank) with rsLoRA."""
        return (self.alpha or 2 * self.rank) / (math.sqrt(self.rank) if self.rslora else self.rank)


def adopted(config: Config, folder: Path) -> Config:
    """``config`` with the settings of the adapter in ``folder``, which ``start_from`` names: its own hold.

    Raises ConfigError for a setting that was given and says something else.
    """
    its = chain.read_config(folder)
    return continued.adopted(config, folder, "LORA", {
        "rank": its.get("r", 8), "alpha": its.get("lora_alpha", 8), "dropout": its.get("lora_dropout", 0.0),
        "rslora": bool(its.get("use_rslora")), "dora": bool(its.get("use_dora")),
        "rank_pattern": its.get("rank_pattern") or {}, "alpha_pattern": its.get("alpha_pattern") or {},
        "experts": bool(its.get("target_parameters")),
    })  # fmt: skip


def apply(
    model: Any, config: Config, *, base_name: str, checkpoint: Path | None = None, new_rows: tuple[int, ...] = ()
) -> Any:
    """``model`` with adapters on it, its own weights frozen. ``base_name`` is what the saved adapter calls its base.

    ``new_rows``: token ids that the base did not have; their rows of embeddings and output layer are learned too.
    Adapters are created in fp32. ``checkpoint``: of the run that is resumed; starting values that also changed the base are
    taken from there. ``start_from`` and ``merge_first`` are folders by now. Raises ConfigError.
    """
    from peft import LoraConfig

    from tunesmith.models.vocabulary import row_layers

    merged = tuple(Path(folder) for folder in config.merge_first)
    model = chain.merge(model, merged)
    if config.start_from is not None:
        adapted = chain.open_adapter(model, checkpoint or Path(config.start_from), trainable=True)
        adapted.peft_config["default"].base_model_name_or_path = base_name
        return remember(adapted, Origin(merged))
    save_whole, tie = targets.saved_modules(model, config.modules_to_save)
    rewrites = starts.takes_from_base(config.init)
    peft_config = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha or 2 * config.rank,  # peft computes with any number
        lora_dropout=config.dropout,
        target_modules=targets.target_modules(model, config),
        target_parameters=targets.expert_parameters(model, config) if config.experts else None,
        modules_to_save=save_whole,
        ensure_weight_tying=tie,
        rank_pattern=targets.checked_pattern(model, config.rank_pattern, "method.rank_pattern"),
        alpha_pattern=targets.checked_pattern(model, config.alpha_pattern, "method.alpha_pattern"),
        use_rslora=config.rslora,
        use_dora=config.dora,
        init_lora_weights=True if rewrites or config.init == "default" else config.init,
        trainable_token_indices={name: list(new_rows) for name in row_layers(model)} if new_rows else None,
        bias="none",
        task_type="CAUSAL_LM",
    )
    adapted = targets.adapt(model, peft_config, base_name)
    factors = None
    if rewrites:
        names = [name for name, p in adapted.named_parameters() if p.requires_grad]
        factors = starts.start(adapted, config.init, saved_factors(checkpoint, names) if checkpoint else None)
    return remember(adapted, Origin(merged, factors))


def lr_scales(model: Any, config: Config) -> dict[str, float]:
    """Parameter name -> factor on the learning rate, where it is not 1 (LoRA+, and embeddings)."""
    base = model.get_base_model()
    ends = {id(module) for module in (base.get_input_embeddings(), base.get_output_embeddings())}
    inside = [f"{name}." for name, module in model.named_modules() if id(module) in ends]
    found = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        factor = config.lr_ratio if ".lora_B." in name or ".lora_embedding_B." in name else 1.0
        if any(name.startswith(prefix) for prefix in inside):
            factor *= config.embedding_lr_ratio
        if factor != 1:
            found[name] = factor
    return found
