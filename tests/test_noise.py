"""NEFTune: the size of the noise by hand, per conversation also when packed, and never in evaluation."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tunesmith.models.noise import add_noise, lengths_BT
from tunesmith.models.open import open_model
from tunesmith.train.config import TrainConfig


def embedded(model: torch.nn.Module, **inputs: torch.Tensor) -> torch.Tensor:
    """What the first layer is given, less the embeddings themselves."""
    seen: list[torch.Tensor] = []
    handle = model.model.layers[0].register_forward_pre_hook(
        lambda _, a, k: seen.append(a[0] if a else k["hidden_states"]), with_kwargs=True
    )
    with torch.no_grad():
        model(**inputs, use_cache=False)
    handle.remove()
    return seen[0] - model.model.embed_tokens.weight[inputs["input_ids"]].detach()


def test_noise_of_each_conversation(tiny: Path) -> None:
    """|noise| < alpha / sqrt(L d), close to it at the largest of many numbers, and its mean square is a third of that squared."""
    model = open_model(tiny, dtype=torch.float32, device=torch.device("cpu"), attention="varlen")
    add_noise(model, 5.0)
    ids, lengths = torch.arange(105)[None], [100, 5]
    bounds = torch.tensor([0, 100, 105], dtype=torch.int32)
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    model.train()
    torch.manual_seed(0)
    noise = embedded(model, input_ids=ids, position_ids=positions, cu_seq_lens_q=bounds, cu_seq_lens_k=bounds)[0]
    for part, length in ((noise[:100], 100), (noise[100:], 5)):
        most = 5.0 / math.sqrt(length * 64)
        assert 0.9 * most < float(part.abs().max()) <= most * 1.0001
        assert float(part.square().mean()) == pytest.approx(most**2 / 3, rel=0.15)
    padded = embedded(
        model, input_ids=ids.reshape(3, 35), attention_mask=(torch.arange(35) < torch.tensor([[35], [35], [9]])).long()
    )
    assert float(padded[2].abs().max()) > 5.0 / math.sqrt(35 * 64) > float(padded[0].abs().max())
    torch.manual_seed(0)
    again = embedded(model, input_ids=ids, position_ids=positions, cu_seq_lens_q=bounds, cu_seq_lens_k=bounds)[0]
    assert torch.equal(again, noise), "a resumed run draws the same noise"
    model.eval()
    assert float(embedded(model, input_ids=ids).abs().max()) == 0.0


def test_lengths_of_a_batch() -> None:
    bounds = torch.tensor([0, 2, 5], dtype=torch.int32)
    assert lengths_BT((1, 5), bounds, None, "cpu").tolist() == [[2, 2, 3, 3, 3]]
    attention = torch.tensor([[1, 1, 1], [1, 0, 0]])
    assert lengths_BT((2, 3), None, attention, "cpu").tolist() == [[3, 3, 3], [1, 1, 1]]
    assert lengths_BT((2, 3), None, None, "cpu").tolist() == [[3, 3, 3], [3, 3, 3]]


def test_none_unless_asked_for() -> None:
    assert TrainConfig().neftune_alpha is None
    with pytest.raises(ValueError):
        TrainConfig(neftune_alpha=0.0)
