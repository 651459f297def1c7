"""HQQ: 2, 3, 4 or 8 bits without data, the zero points found by a half-quadratic solver (Badri and Shaji, 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict

from tunesmith.config.base import Config as BaseConfig
from tunesmith.config.base import setting

if TYPE_CHECKING:
    import torch


class Config(BaseConfig):
    """Half-quadratic quantization; runs on any device without a further library."""

    model_config = ConfigDict(
        json_schema_extra={"zh": "HQQ（半二次量化）：2/3/4/8 位，不需要数据，CPU 和 GPU 都能用，不需额外安装。"}
    )

    kind: Literal["hqq"] = "hqq"
    """HQQ."""
    bits: Literal[2, 3, 4, 8] = setting(4, zh="每个权重的位数。")
    """Bits per weight."""
    group_size: int = setting(
        64, zh="共用一个步长和零点的权重个数（8 的倍数）；越小越准，也越大。", ge=8, le=1024, multiple_of=8
    )
    """Weights that share a step and a zero point, a multiple of 8. Smaller is more exact and larger in memory."""
    compress_scales: bool = setting(False, zh="步长和零点也存成 8 位：每组省 2 字节，略不准。")
    """Store steps and zero points in 8 bits too: 2 bytes less per group, slightly less exact."""


def on_load(config: Config, dtype: torch.dtype) -> Any:
    """What ``from_pretrained(quantization_config=)`` takes."""
    from tunesmith.models.quantization import _loading
    from tunesmith.models.quantization._hqq_linear import HqqLinear

    _loading.register()
    return _loading.OnLoad(
        lambda inputs, outputs, bias, dtype, _: HqqLinear(
            inputs,
            outputs,
            bias,
            dtype,
            bits=config.bits,
            group=config.group_size,
            compress_scales=config.compress_scales,
        )
    )
