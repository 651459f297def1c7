"""Bytes that each memory-saving optimizer keeps and the most gradient bytes alive at once, per learned weight, on one model.

    python benchmarks/memory_savers.py

A random llama (8 layers of width 512, vocabulary 4096), one step in fp32. State bytes are those of the checkpoint; gradient
bytes are counted from the ``.grad`` of all weights each time one is ready. Weights (4 bytes in fp32; 2 + 4 with bf16 and fp32
masters) come on top.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tunesmith.config.plugins import load
from tunesmith.train import optimizer_state
from tunesmith.train.active import only_active
from tunesmith.train.backward import backward_and_step
from tunesmith.train.masters import Masters
from tunesmith.train.optimizers.base import parameter_groups

ROWS: list[tuple[str, dict[str, Any], bool]] = [
    ("adamw", {"kind": "adamw"}, False),
    ("adamw, in backward", {"kind": "adamw"}, True),
    ("adam_mini", {"kind": "adam_mini", "head_dim": 64}, False),
    ("galore, rank 64", {"kind": "galore", "rank": 64}, False),
    ("galore, rank 64, in backward", {"kind": "galore", "rank": 64}, True),
    ("apollo, rank 64", {"kind": "apollo", "rank": 64}, False),
    ("apollo, mini, in backward", {"kind": "apollo", "mini": True}, True),
    ("badam, layer", {"kind": "badam"}, False),
    ("badam, ratio 0.05", {"kind": "badam", "mode": "ratio"}, False),
    ("lomo", {"kind": "lomo"}, True),
    ("lomo, adaptive", {"kind": "lomo", "adaptive": True}, True),
]


def measure(settings: dict[str, Any], fused: bool) -> tuple[float, float, float]:
    """State bytes and peak gradient bytes per weight, seconds of the second step."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=4096, hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8
        )
    )
    masters = Masters(model, torch.float32)
    weights = sum(p.numel() for p in masters.parameters())
    plugin = load("tunesmith.train.optimizers", settings["kind"])
    optimizer = plugin.build(parameter_groups(masters.named(), lr=1e-4, weight_decay=0.0), plugin.Config(**settings))
    peak = 0

    def count(_: torch.Tensor) -> None:
        nonlocal peak
        peak = max(peak, sum(p.grad.numel() * 4 for p in masters.parameters() if p.grad is not None))

    for parameter in masters.parameters():
        parameter.register_post_accumulate_grad_hook(count)
    ids = torch.randint(4096, (1, 64))
    clock = 0.0
    for _ in range(2):
        clock = time.monotonic()
        with only_active(masters, optimizer):
            loss = model(input_ids=ids, labels=ids).loss
            if fused:
                backward_and_step(loss, masters, optimizer, math.inf)
            else:
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
    tensors, _ = optimizer_state.dump(optimizer, masters.named())
    state = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return state / weights, peak / weights, time.monotonic() - clock


if __name__ == "__main__":
    print(
        "| optimizer | state, bytes per weight | gradients, bytes per weight | seconds of a step |\n|---|---|---|---|"
    )
    for name, settings, fused in ROWS:
        state, gradients, seconds = measure(settings, fused)
        print(f"| {name} | {state:.2f} | {gradients:.2f} | {seconds:.2f} |")
