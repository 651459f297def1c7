"""A model run one block at a time tells the distributions of the whole model, with the weights of one block in memory."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from families import make_family
from model_fixtures import edit_json, make_adapter
from tunesmith.chat.base import Sampling
from tunesmith.config.errors import ExportError, UserError
from tunesmith.export.blockwise import Blockwise, BlockwiseEngine
from tunesmith.export.tensor_files import read_model
from tunesmith.models.open import open_model

CPU = torch.device("cpu")
SLOW = pytest.mark.slow
DENSE = ["llama-tied", "gemma2", "cohere"]
OTHER_DENSE = [
    "llama", "gemma3", "phi3", "llama3-rope", "qwen2", "qwen3", "mistral", "gemma", "glm4", "gpt_neox", "granite", "olmo2", "smollm3",
    "stablelm", "starcoder2", "ernie4_5",
]  # fmt: skip


def texts() -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(6, 96) for _ in range(n)] for n in (20, 7, 20, 40)]


def whole(folder: Path, ids: list[int], adapter: Path | None = None) -> np.ndarray:
    model = open_model(folder, dtype=torch.float32, device=CPU, attention="eager")
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), -1).numpy()


def engine(folder: Path, adapter: Path | None = None) -> BlockwiseEngine:
    return BlockwiseEngine(Blockwise(folder, read_model(folder), CPU, adapter), texts(), "blocks")


@pytest.mark.parametrize("family", [*DENSE, *(pytest.param(name, marks=SLOW) for name in OTHER_DENSE)])
def test_distributions_are_those_of_the_whole_model(tmp_path: Path, family: str) -> None:
    """Norm, head, tied or not, scaled or capped logits: whatever the model does behind its blocks."""
    folder = make_family(tmp_path / family, family)
    blocks = engine(folder)
    for ids in texts():
        np.testing.assert_allclose(blocks.logprobs(ids), whole(folder, ids), atol=1e-5)
    blocks.close()


def test_a_lora_is_put_beside_the_weights(tmp_path: Path) -> None:
    folder = make_family(tmp_path / "llama", "llama")
    adapter = make_adapter(folder, tmp_path / "adapter", use_rslora=True, alpha_pattern={"down_proj": 3})
    ids = texts()[0]
    blocks, bare = engine(folder, adapter), whole(folder, ids)
    np.testing.assert_allclose(blocks.logprobs(ids), whole(folder, ids, adapter), atol=1e-5)
    assert np.abs(blocks.logprobs(ids) - bare).max() > 0.01


def test_what_it_cannot_do_is_said(tmp_path: Path) -> None:
    folder = make_family(tmp_path / "llama", "llama")
    blocks = engine(folder)
    with pytest.raises(UserError, match="was not opened for these 3 tokens"):
        blocks.logprobs([1, 2, 3])
    with pytest.raises(UserError, match="cannot answer"):
        list(blocks.stream([], Sampling()))
    for name, settings in (("dora", {"use_dora": True}), ("head", {"target_modules": ["lm_head"]})):
        adapter = make_adapter(folder, tmp_path / name, **settings)
        with pytest.raises(ExportError, match="no plain LoRA"):
            Blockwise(folder, read_model(folder), CPU, adapter)
    edit_json(adapter / "adapter_config.json", block_size=7)
    with pytest.raises(ExportError, match="block_size"):
        Blockwise(folder, read_model(folder), CPU, adapter)


def test_memory_is_that_of_a_block(tmp_path: Path) -> None:
    """Nothing stays but what stands behind the blocks; the estimate counts embeddings or head once, and one block."""
    folder = make_family(tmp_path / "llama", "llama", num_hidden_layers=8)
    model = Blockwise(folder, read_model(folder), CPU)
    everything = 4 * sum(p.numel() for p in model.model.parameters())
    block = 4 * sum(p.numel() for p in model.blocks[0].parameters())
    assert block < model.bytes < everything / 3
    blocks = BlockwiseEngine(model, texts(), "blocks")
    held = [name for name, p in model.model.named_parameters() if not p.is_meta]
    assert sorted(held) == ["lm_head.weight", "model.norm.weight"]
    blocks.close()
    assert all(p.is_meta for p in model.model.parameters())
