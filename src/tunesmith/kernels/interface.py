"""Our attention as one of transformers' attention implementations: right for packed rows, padded rows and generation.

It replaces ``sdpa``, which knows neither soft caps (Gemma 2) nor sinks (gpt-oss), and ``eager``, which is slow. A model tells an
implementation two things: a mask, made once per forward pass, and for each layer its window, soft cap and sinks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from tunesmith.kernels.attention import causal_attention, eager, packed_attention

NAME = "tunesmith_varlen"


@dataclass
class Told:
    """Windows, in tokens, that a model asked of its masks and that its layers told the attention; and the chunks of its masks."""

    of_masks: set[int] = field(default_factory=set)
    of_layers: set[int] = field(default_factory=set)
    chunks: set[int] = field(default_factory=set)


_listeners: list[Told] = []


@contextmanager
def listening() -> Iterator[Told]:
    """Record what models tell the attention while the block runs."""
    told = Told()
    _listeners.append(told)
    try:
        yield told
    finally:
        _listeners.remove(told)


def register() -> str:
    """Make the attention known to transformers; returns its name. Calling it again changes nothing.

    Packed rows need ``cu_seq_lens_q`` (the bounds) among the model's keyword arguments. Without bounds and without a mask
    every row is one conversation.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, _forward)
    AttentionMaskInterface.register(NAME, _mask)
    return NAME


def _forward(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any,
    scaling: float | None = None, dropout: float = 0.0, sliding_window: int | None = None,
    softcap: float | None = None, s_aux: torch.Tensor | None = None, cu_seq_lens_q: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Shapes: query [B, H, T, D], key and value [B, K, S, D]; returns [B, T, H, D]."""
    for told in _listeners:
        if sliding_window is not None:
            told.of_layers.add(sliding_window)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if attention_mask is None and query.shape[2] == key.shape[2] and "position_bias" not in kwargs:
        extra = (scale, sliding_window, softcap, s_aux, dropout)
        if cu_seq_lens_q is not None:
            out = packed_attention(query, key, value, cu_seq_lens_q, *extra)
        else:
            out = causal_attention(query, key, value, *extra)
    elif softcap is not None or s_aux is not None:
        everything = torch.ones(1, dtype=torch.bool, device=query.device)
        sees = everything if attention_mask is None else attention_mask[..., : key.shape[2]]
        out = eager(query, key, value, sees, scale, softcap, s_aux, dropout)
    else:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scale, **kwargs
        )
    return out.transpose(1, 2).contiguous(), None


def _mask(*arguments: Any, **kwargs: Any) -> torch.Tensor | None:
    """None where ``_forward`` knows without a mask what a query sees; else the mask of sdpa (bool, [B, 1, T, S])."""
    from transformers.masking_utils import sdpa_mask

    window = kwargs.get("local_size")
    length, seen = kwargs.get("q_length"), kwargs.get("kv_length")
    # Layers tell their sliding window, but never that they attend in chunks (Llama 4).
    chunk = getattr(kwargs.get("config"), "attention_chunk_size", None)
    for told in _listeners:
        if window is not None:
            (told.chunks if window == chunk else told.of_masks).add(window)
    chunked = window is not None and window == chunk and (seen is None or seen > window)
    whole = not kwargs.get("use_vmap", False)  # else the model adds a condition of its own
    if kwargs.get("attention_mask") is None and length is not None and length == seen and whole and not chunked:
        return None
    mask: torch.Tensor | None = sdpa_mask(*arguments, **kwargs)
    return mask
