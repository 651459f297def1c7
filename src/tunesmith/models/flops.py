"""Arithmetic of a training step per token, and what devices can do at most: for the model FLOPs utilization."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PEAK_TFLOPS: tuple[tuple[tuple[str, ...], float], ...] = (
    (("B200",), 2250.0),  # nvidia.com, DGX B200 data sheet
    (("GH200",), 989.0),  # nvidia.com, GH200 data sheet
    (("H200",), 989.0),  # nvidia.com/data-center/h200
    (("H100", "NVL"), 835.0),  # nvidia.com/data-center/h100
    (("H100", "PCIe"), 756.0),
    (("H100",), 989.0),
    (("A100",), 312.0),  # nvidia.com/data-center/a100
    (("L40S",), 362.0),  # nvidia.com/data-center/l40s
    (("MI300X",), 1307.0),  # amd.com, Instinct MI300X data sheet
    (("MI250X",), 191.5),  # amd.com, Instinct MI250X data sheet, per die
)
"""Words of the device's name -> dense bf16 / fp16 matrix TFLOP/s without sparsity, as the vendors' data sheets give it."""


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the device in 16-bit numbers; 0 when the device or the numbers are not in the table."""
    import torch

    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return 0.0
    return peak_of(torch.cuda.get_device_name(device))


def peak_of(name: str) -> float:
    """FLOP/s of a device by its name; 0 when it is not in the table."""
    return next((tera * 1e12 for words, tera in PEAK_TFLOPS if all(word in name for word in words)), 0.0)


def flops_per_token(model: Any) -> float:
    """2 N forward, 2 N for the gradients of the activations, 2 for each learned weight's own gradient: 6 N for a whole model, about
    4 N for LoRA on a frozen base (Kaplan et al., 2020, arXiv:2001.08361). Attention scores and recomputed activations are not counted.

    N: weights of matrices that a token meets: no embedding, and of experts those that a router chooses.
    """
    import torch

    share = _expert_share(model)
    active = learned = 0.0
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Embedding) or hasattr(module, "base_layer"):
            continue
        if hasattr(module, "modules_to_save") or ".original_module" in name:  # only the learned copy computes
            continue
        meets = share if ".experts" in name else 1.0
        own = {k: p for k, p in module.named_parameters(recurse=False) if p.ndim >= 2}
        width = (getattr(module, "in_features", None), getattr(module, "out_features", None))
        if all(isinstance(size, int) for size in width):  # quantized weights hold several numbers in one
            size = float(width[0] * width[1])  # type: ignore[operator]
            active += meets * size
            learned += meets * size * any(p.requires_grad for p in own.values())
        else:
            active += meets * sum(p.numel() for p in own.values())
            learned += meets * sum(p.numel() for p in own.values() if p.requires_grad)
    return 4.0 * active + 2.0 * learned


def _expert_share(model: Any) -> float:
    config = model.config.get_text_config()
    chosen = getattr(config, "num_experts_per_tok", None) or getattr(config, "top_k_experts", None)
    for name in ("num_local_experts", "num_experts", "n_routed_experts"):
        count = getattr(config, name, None)
        if count and chosen:
            return min(1.0, float(chosen) / float(count))
    return 1.0
