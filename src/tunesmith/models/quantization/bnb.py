"""bitsandbytes: nf4 or fp4 (QLoRA: Dettmers et al., 2023, arXiv:2305.14314) and LLM.int8() (2022, arXiv:2208.07339)."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict

from tunesmith.config.base import Config as BaseConfig
from tunesmith.config.base import setting
from tunesmith.config.errors import UserError

if TYPE_CHECKING:
    import torch


class Config(BaseConfig):
    """bitsandbytes, the way of the QLoRA paper."""

    model_config = ConfigDict(
        json_schema_extra={"zh": "bitsandbytes 量化（QLoRA 论文的做法）：4 位 nf4/fp4 或 8 位整数。"}
    )

    kind: Literal["bnb"] = "bnb"
    """bitsandbytes."""
    bits: Literal[4, 8] = setting(4, zh="每个权重的位数：4（nf4/fp4）或 8（LLM.int8()）。")
    """Bits per weight: 4 (nf4 or fp4) or 8 (LLM.int8())."""
    type: Literal["nf4", "fp4"] = setting("nf4", zh="4 位数的类型；nf4 适合正态分布的权重，一般更准。")
    """The 4-bit numbers: nf4 fits normally distributed weights and is usually more exact than fp4."""
    double_quantization: bool = setting(True, zh="缩放系数也量化：每个权重约省 0.4 位（只用于 4 位）。")
    """Quantize the scales too: about 0.4 bits per weight less (4 bits only)."""


def on_load(config: Config, dtype: torch.dtype) -> Any:
    """What ``from_pretrained(quantization_config=)`` takes; it computes in ``dtype``. Raises UserError without bitsandbytes."""
    needed()
    from transformers import BitsAndBytesConfig

    if config.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=config.type,
        bnb_4bit_use_double_quant=config.double_quantization,
        bnb_4bit_compute_dtype=dtype,
    )


def keep_as_stored(model: Any) -> None:
    """Forbid the repacking that bitsandbytes does at the first evaluation on CPUs with AVX512-BF16.

    It rounds the scales to bf16 for good, so that what is trained after an evaluation would be another base than before,
    and it fails for rows that are no multiple of 64.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def needed() -> None:
    """Raises UserError when bitsandbytes is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "this base needs bitsandbytes, which is not installed",
            hint="pip install 'tunesmith[bnb]', or model.quantize=hqq, which needs no further library",
        )
