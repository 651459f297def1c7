"""Quantize while opening: transformers reads a checkpoint tensor by tensor, and each weight is packed before the next is read.

It goes through transformers' own quantizer interface, so that its renaming and reshaping of old checkpoints, tied weights and
missing keys work as for any model, and the memory needed is the packed model and one tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers.auto import (
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils.quantization_config import QuantizationConfigMixin

from tunesmith.models.quantization._linear import FrozenLinear
from tunesmith.models.quantization._stored_linear import StoredLinear

METHOD = "tunesmith"


class PackingLinear(FrozenLinear):
    """A layer that packs the weight it is given. Until then ``weight`` is an empty [out, in] on the meta device."""

    def __init__(self, in_features: int, out_features: int, bias: bool, dtype: torch.dtype) -> None:
        super().__init__(in_features, out_features, bias, dtype)
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=dtype, device="meta"), False)

    def pack(self, weight: torch.Tensor) -> torch.Tensor:
        """``weight`` [out, in] as stored (uint8); scales are registered as buffers."""
        raise NotImplementedError


Make = Callable[[int, int, bool, torch.dtype, str], FrozenLinear | None]
"""(in, out, bias, dtype, name in the model) -> the layer in the place of a linear layer, None to leave it as it is."""


@dataclass(frozen=True)
class Experts:
    """Experts that are stored one by one with scales beside them: ``scale`` ("weight_scale") says how these are called, ``weight(stored, scales)``
    is what the two stand for."""

    scale: str
    weight: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class OnLoad(QuantizationConfigMixin):
    """What ``from_pretrained(quantization_config=)`` gets; ``make`` builds the layer that takes a linear layer's place."""

    def __init__(self, make: Make, experts: Experts | None = None) -> None:
        super().__init__(quant_method=METHOD)  # type: ignore[arg-type, unused-ignore]
        self.make, self.experts = make, experts

    def to_dict(self) -> dict[str, Any]:
        return {"quant_method": METHOD}


class Quantizer(HfQuantizer):
    """Every ``nn.Linear`` but the output layer and what is tied to it becomes what ``make`` builds for it."""

    requires_calibration = False

    def update_device_map(self, device_map: dict[str, Any] | None) -> dict[str, Any] | None:
        return device_map

    def param_element_size(self, model: Any, param_name: str, param: torch.Tensor) -> float:
        """Bytes per weight that transformers reserves on a GPU before it reads: no more than the smallest kind takes."""
        return 0.25 if self.param_needs_quantization(model, param_name) else param.element_size()

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        layer, _, name = param_name.rpartition(".")
        return name == "weight" and isinstance(model.get_submodule(layer), PackingLinear)

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        kept = self.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
        replace_linears(model, kept, self.quantization_config.make)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        for module in model.modules():
            if isinstance(module, StoredLinear):
                module.settle()
        return model

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any) -> list[Any]:
        """Where transformers merges the tensors of single experts, their scales are taken in, and multiplied before."""
        experts = self.quantization_config.experts
        if experts is None:
            return weight_conversions
        changed = []
        for one in weight_conversions:
            sources = one._original_source_patterns
            if isinstance(one, WeightConverter) and all(source.endswith(".weight") for source in sources):
                with_scales = [s.removesuffix("weight") + n for s in sources for n in ("weight", experts.scale)]
                one = one.copy(
                    with_scales, one._original_target_patterns, operations=[_Scale(experts), *one.operations]
                )
            changed.append(one)
        return changed

    def get_quantize_ops(self) -> ConversionOps:
        return _Pack(self)

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return True


class _Scale(ConversionOps):
    """Pattern -> list of tensors, one for each expert; those of scales are multiplied into those of weights and left out."""

    def __init__(self, experts: Experts) -> None:
        self.experts = experts

    def convert(self, input_dict: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        found = {}
        for pattern, tensors in input_dict.items():
            if pattern.endswith(f".{self.experts.scale}"):
                continue
            scales = input_dict.get(pattern.removesuffix("weight") + self.experts.scale)
            if scales is not None:
                tensors = [self.experts.weight(q, s).to(q.dtype) for q, s in zip(tensors, scales, strict=True)]
            found[pattern] = tensors
        return found


class _Pack(ConversionOps):
    def __init__(self, hf_quantizer: Quantizer) -> None:
        self.hf_quantizer = hf_quantizer

    def convert(self, input_dict: dict[str, Any], *, model: Any = None, **kwargs: Any) -> dict[str, torch.Tensor]:
        packed = {}
        for name, value in input_dict.items():
            layer = model.get_submodule(name.rpartition(".")[0])
            layer._is_hf_initialized = True
            packed[name] = layer.pack(value[0] if isinstance(value, list) else value)
        return packed


def replace_linears(model: Any, kept: list[str], make: Make) -> None:
    """Put ``make`` in the place of every plain linear layer whose name is not ``kept``."""
    for name, module in list(model.named_modules()):
        if type(module) is not nn.Linear or not should_convert_module(name, kept):
            continue
        with torch.device("meta"):
            layer = make(module.in_features, module.out_features, module.bias is not None, module.weight.dtype, name)
        if layer is None:
            continue
        layer.requires_grad_(False)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layer)


def register() -> None:
    """Make the quantizer known to transformers. Twice does no harm."""
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(METHOD)(OnLoad)
        register_quantizer(METHOD)(Quantizer)
