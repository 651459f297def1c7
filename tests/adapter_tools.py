"""A small base and short trainings of adapters on it, with the product's own masters, groups and checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch

from tunesmith.config.load import validate
from tunesmith.config.progress import SILENT
from tunesmith.export import changes
from tunesmith.export.adapters import combined, read_adapters
from tunesmith.export.model_config import load_config, tied_names
from tunesmith.export.shards import write_shards
from tunesmith.export.targets.hf import plan
from tunesmith.export.tensor_files import read_model
from tunesmith.models.methods import lora, oft
from tunesmith.train import checkpoint
from tunesmith.train.masters import Masters
from tunesmith.train.optimizers import adamw
from tunesmith.train.optimizers.base import parameter_groups

METHODS: dict[str, ModuleType] = {"lora": lora, "oft": oft}
SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip
IDS = torch.arange(48).reshape(2, 24) * 5 % 64


def make_base(folder: Path, family: str = "LlamaConfig", **settings: Any) -> Path:
    """A random model without a tokenizer, its weights loud enough that its answers differ."""
    import transformers

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, family)(**SMALL | settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6.0 if parameter.ndim > 1 else 1.0)
    model.save_pretrained(folder)
    return folder


def open_base(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def config_of(kind: str, settings: dict[str, Any]) -> Any:
    return validate(METHODS[kind].Config, settings)


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits.float()
    return found


def train(
    base: Path, config: Any, out: Path, steps: int, *, resume: Path | None = None, dtype: torch.dtype = torch.float32
) -> Any:
    """Train to step number ``steps`` and write a checkpoint ``out``; returns the model as it stands in training."""
    method = METHODS[config.kind]
    torch.manual_seed(0 if resume is None else 99)  # what is random goes on from the checkpoint, not from the seed
    model = method.apply(open_base(base, dtype), config, base_name=str(base), checkpoint=resume)
    masters = Masters(model, dtype)
    scales = method.lr_scales(model, config) if hasattr(method, "lr_scales") else {}
    groups = parameter_groups(masters.named(), lr=3e-3, weight_decay=0.01, lr_scales=scales)
    optimizer = adamw.build(groups, adamw.Config())
    done = 0
    if resume is not None:
        done = checkpoint.load(resume, masters, optimizer, method.load_state(resume, model)).step
    model.train()
    for _ in range(done, steps):
        model(IDS, labels=IDS).loss.backward()
        masters.collect()
        optimizer.step()
        optimizer.zero_grad()
        masters.publish()
    checkpoint.save(
        out, checkpoint.Position(steps), masters, optimizer, lambda to: method.save(model, to, masters.state())
    )
    return model


def merged(base: Path, adapter: Path, out: Path) -> Any:
    """The model that our own merge of ``adapter`` writes to ``out``, in blocks of a few rows."""
    stored = read_model(base)
    tensors, _ = plan(stored, combined(read_adapters(adapter), base, stored), tied_names(load_config(base)))
    out.mkdir()
    with mock.patch.object(changes, "BUFFER", 1000):  # blocks of 16 rows
        write_shards(out, tensors, 10**9, SILENT)
    shutil.copyfile(base / "config.json", out / "config.json")
    return open_base(out)


def largest_difference(ours: Any, theirs: Any) -> float:
    """Of any weight, between two models of the same kind."""
    mine, other = ours.state_dict(), theirs.state_dict()
    assert mine.keys() == other.keys()
    return max(float((mine[name].float() - other[name].float()).abs().max()) for name in mine)
