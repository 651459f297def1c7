"""Small GGUFs without a vocabulary, with the names and key figures of an architecture: enough for llama.cpp's quantizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

MODELS: dict[str, dict[str, Any]] = {
    "llama": {"layers": 8},
    "llama-tied": {"layers": 17, "tied": True, "heads": 8, "shared": 2},
    "llama-70b": {"layers": 80, "heads": 64, "shared": 8},
    "gemma3": {"arch": "gemma3", "layers": 9, "tied": True, "heads": 4, "shared": 1},
    "falcon": {"arch": "falcon", "layers": 16, "fused": True},
    "phi3": {"arch": "phi3", "layers": 16, "fused": True, "tied": True},
    "mixtral": {"layers": 8, "experts": 8, "heads": 8, "shared": 2},
    "qwen3moe": {"arch": "qwen3moe", "layers": 9, "experts": 4, "heads": 8, "shared": 1},
    "width-288": {"layers": 8, "width": 288},
    "width-48": {"layers": 8, "width": 48},
}
"""Name -> what differs from a llama of width 256."""


def write_model(
    path: Path, *, arch: str = "llama", layers: int = 8, width: int = 256, heads: int = 4, shared: int = 4, experts: int = 0,
    tied: bool = False, fused: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Write random weights as F32 into ``path``; tensor -> numbers. ``shared``: heads of keys and values. Weights have few rows."""
    import gguf

    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(layers)
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(width)
    writer.add_head_count(heads)
    writer.add_head_count_kv(shared)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    writer.add_sliding_window(32)
    writer.add_vocab_size(8)
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(width)
    data: dict[str, Any] = {}

    def add(name: str, *shape: int) -> None:
        data[name] = (random.standard_t(4, shape) * 0.05).astype(np.float32)
        writer.add_tensor(name, data[name])

    add("token_embd.weight", 8, width)
    add("output_norm.weight", width)
    if not tied:
        add("output.weight", 8, width)
    for i in range(layers):
        add(f"blk.{i}.attn_norm.weight", width)
        for part in ("qkv",) if fused else ("q", "k", "v"):
            add(f"blk.{i}.attn_{part}.weight", 4, width)
            add(f"blk.{i}.attn_{part}.bias", 4)
        add(f"blk.{i}.attn_output.weight", 4, width)
        if experts:
            add(f"blk.{i}.ffn_gate_inp.weight", experts, width)
            for part in ("gate", "up", "down"):
                add(f"blk.{i}.ffn_{part}_exps.weight", experts, 2, width)
        else:
            for part in ("gate", "up", "down"):
                add(f"blk.{i}.ffn_{part}.weight", 4, width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return data


def importances(data: dict[str, Any], seed: int = 1) -> dict[str, Any]:
    """Random means for the weights in layers, [matrices, width]."""
    random = np.random.default_rng(seed)
    return {
        name: random.random((w.shape[0] if w.ndim == 3 else 1, w.shape[-1]), dtype=np.float32) + 0.01
        for name, w in data.items()
        if name.startswith("blk.") and w.ndim > 1
    }


def tensors_of(path: Path) -> dict[str, tuple[str, bytes]]:
    """Tensor -> type and bytes, as the official reader sees them."""
    import gguf

    return {t.name: (t.tensor_type.name, t.data.tobytes()) for t in gguf.GGUFReader(path).tensors}
