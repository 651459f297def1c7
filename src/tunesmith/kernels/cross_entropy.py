"""Cross entropy summed over learned tokens, in fp32 whatever the logits are."""

from __future__ import annotations

import torch
import torch.nn.functional as F

IGNORE = -100
"""Label of a token that is not learned (the convention of torch and transformers)."""


def summed_cross_entropy(logits_NV: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    """sum over n of -log softmax(logits_n)[label_n], labels of ``IGNORE`` left out; a float32 scalar."""
    return F.cross_entropy(logits_NV.float(), labels_N, reduction="sum", ignore_index=IGNORE)
