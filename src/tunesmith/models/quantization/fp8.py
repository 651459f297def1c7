"""fp8: 8-bit floating point (e4m3) with a scale per output row; dequantized when used, so it runs anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict

from tunesmith.config.base import Config as BaseConfig

if TYPE_CHECKING:
    import torch


class Config(BaseConfig):
    """float8 weights (e4m3, Micikevicius et al., 2022, arXiv:2209.05433), a scale per output row."""

    model_config = ConfigDict(
        json_schema_extra={"zh": "fp8：8 位浮点（e4m3）权重，每个输出行一个缩放；用时还原，任何设备都能用。"}
    )

    kind: Literal["fp8"] = "fp8"
    """float8."""


def on_load(config: Config, dtype: torch.dtype) -> Any:
    """What ``from_pretrained(quantization_config=)`` takes."""
    from tunesmith.models.quantization import _loading
    from tunesmith.models.quantization._fp8_linear import Fp8Linear

    _loading.register()
    return _loading.OnLoad(lambda inputs, outputs, bias, dtype, _: Fp8Linear(inputs, outputs, bias, dtype))
