"""NEFTune: noise on the embeddings while training, which often makes answers longer and better (Jain et al., 2023, arXiv:2310.05914).

e' = e + alpha / sqrt(L * d) * u, u ~ Uniform(-1, 1) for each number of the embeddings [L, d] of one conversation. L is the length of
the conversation itself, also where several are packed in one row or a row is padded. Never in evaluation.
"""

from __future__ import annotations

import math
from typing import Any


def lengths_BT(shape: tuple[int, ...], bounds: Any, attention: Any, device: Any) -> Any:
    """For each token of a batch [B, T] the length of its conversation, as fp32 [B, T].

    ``bounds``: cumulative lengths of the conversations packed in one row, or None; ``attention``: 1 for tokens, 0 for padding.
    """
    import torch

    if bounds is not None:
        lengths = bounds[1:] - bounds[:-1]
        return lengths.repeat_interleave(lengths).to(device, torch.float32)[None]
    if attention is not None and attention.ndim == 2:
        return attention.sum(1, keepdim=True).to(device, torch.float32).expand(shape)
    return torch.full(shape, float(shape[1]), device=device)


def add_noise(model: Any, alpha: float) -> None:
    """From now on ``model`` adds the noise in training mode. It comes from torch's own generator, so a resumed run repeats it."""
    import torch

    call: dict[str, Any] = {}

    def remember(module: Any, arguments: Any, keywords: dict[str, Any]) -> None:
        call.update(bounds=keywords.get("cu_seq_lens_q"), attention=keywords.get("attention_mask"))

    def disturb(module: Any, arguments: Any, out_BTD: Any) -> Any:
        if not module.training:
            return None
        scale = alpha / math.sqrt(out_BTD.shape[-1]) / lengths_BT(out_BTD.shape[:-1], **call, device=out_BTD.device).sqrt()
        return out_BTD + torch.empty_like(out_BTD).uniform_(-1, 1) * scale.to(out_BTD.dtype)[..., None]

    model.register_forward_pre_hook(remember, with_kwargs=True)
    model.get_input_embeddings().register_forward_hook(disturb)
