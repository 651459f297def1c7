"""The merged weights equal what peft's own merge_and_unload makes of the same base and adapter, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from adapter_tools import make_base
from model_fixtures import make_adapter, peft_merge
from tunesmith.config.progress import SILENT
from tunesmith.export import changes
from tunesmith.export.adapters import combined, read_adapters
from tunesmith.export.model_config import load_config, tied_names
from tunesmith.export.shards import write_shards
from tunesmith.export.targets.hf import plan
from tunesmith.export.tensor_files import read_model
from tunesmith.models.adapters.files import Origin, remember, save

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True, "r": 5},
    "dora": {"use_dora": True},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "whole-modules": {"modules_to_save": ["norm"]},
}
SMALL_ONES = [("lora", "float32", "float32"), ("lora", "bfloat16", "float32"), ("dora", "bfloat16", "bfloat16")]
ALL = [(k, b, a) for k in KINDS for b in ("float32", "bfloat16", "float16") for a in ("float32", "bfloat16")]


def differing(base: Path, adapter: Path, dtype: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The weights in which our merge, made in blocks of a few rows, is not peft's."""
    stored = read_model(base)
    tensors, _ = plan(stored, combined(read_adapters(adapter), base, stored), tied_names(load_config(base)))
    out.mkdir()
    monkeypatch.setattr(changes, "BUFFER", 1000)  # 16 rows a block
    write_shards(out, tensors, 10**9, SILENT)
    from safetensors.torch import load_file

    ours, theirs = load_file(out / "model.safetensors"), peft_merge(base, adapter, dtype).state_dict()
    before = load_file(base / "model.safetensors")
    assert any(not torch.equal(ours[name], before[name]) for name in before), "nothing was merged"
    return [name for name in ours if not torch.equal(ours[name], theirs[name])]


def base_in(folder: Path, dtype: str) -> Path:
    made = make_base(folder)
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(made, dtype=getattr(torch, dtype)).save_pretrained(made)
    return made


@pytest.mark.parametrize(
    ("kind", "dtype", "adapter_dtype"),
    [pytest.param(*one, marks=() if one in SMALL_ONES else pytest.mark.slow) for one in ALL],
)
def test_bit_for_bit(
    tmp_path: Path, kind: str, dtype: str, adapter_dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every type of base, adapters stored in fp32 and in bf16 (peft computes with both in fp32 by default)."""
    base = base_in(tmp_path / "base", dtype)
    settings = {"target_modules": ["q_proj", "up_proj", "down_proj"], **KINDS[kind]}
    adapter = make_adapter(base, tmp_path / "adapter", dtype, **settings)
    stored_as(adapter, adapter_dtype)
    assert differing(base, adapter, dtype, tmp_path / "out", monkeypatch) == []


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_starts_from_the_base(tmp_path: Path, start: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PiSSA and OLoRA as checkpoints keep them, a plain adapter of twice the rank on the untouched base."""
    from adapter_tools import METHODS, config_of, open_base

    base = base_in(tmp_path / "base", dtype)
    model = METHODS["lora"].apply(
        open_base(base, getattr(torch, dtype)), config_of("lora", {"init": start, "rank": 4}), base_name=str(base)
    )
    assert isinstance(model.adapter_origin, Origin)
    state = {
        n: p.detach().float() + 0.05 * torch.randn(p.shape) for n, p in model.named_parameters() if p.requires_grad
    }
    save(remember(model, model.adapter_origin), tmp_path / "adapter", state)
    assert differing(base, tmp_path / "adapter", dtype, tmp_path / "out", monkeypatch) == []


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_wide_weights_in_blocks_as_they_are(tmp_path: Path, kind: str, dtype: str) -> None:
    """Widths of real models: 2048 in, 5632 out, blocks of 8 MiB."""
    from safetensors.torch import load_file

    base = make_base(tmp_path / "base", hidden_size=2048, intermediate_size=5632, num_hidden_layers=1)
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype)).save_pretrained(base)
    adapter = make_adapter(base, tmp_path / "adapter", dtype, r=16, target_modules="all-linear", **KINDS[kind])
    stored = read_model(base)
    tensors, _ = plan(stored, combined(read_adapters(adapter), base, stored), tied_names(load_config(base)))
    (tmp_path / "out").mkdir()
    write_shards(tmp_path / "out", tensors, 10**9, SILENT)
    ours = load_file(tmp_path / "out" / "model.safetensors")
    theirs = peft_merge(base, adapter, dtype).state_dict()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def stored_as(adapter: Path, dtype: str) -> None:
    from safetensors.torch import load_file, save_file

    path = adapter / "adapter_model.safetensors"
    tensors = {n: t.to(getattr(torch, dtype)) if "lora_" in n else t for n, t in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
