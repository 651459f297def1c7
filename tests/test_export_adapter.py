"""``--to adapter``: the adapter alone, as peft's own tools read it, and as it was learned."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapter_tools import logits, make_base, open_base
from model_fixtures import edit_json, make_adapter, make_model
from tunesmith.config.errors import ExportError
from tunesmith.export.targets import adapter as target
from tunesmith.models.adapters.chain import merge, write_needed


@pytest.fixture
def base(tmp_path: Path) -> Path:
    from families import save_tokenizer

    made = make_base(tmp_path / "base", vocab_size=96)
    save_tokenizer(made)
    (made / "LICENSE").write_text("Apache License 2.0, of the base\n")
    (made / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return made


def as_checkpoint(folder: Path) -> Path:
    for name in ("optimizer.safetensors", "trainer.json"):
        (folder / name).write_text("state of the training")
    return folder


@pytest.mark.parametrize(
    "settings",
    [{}, {"use_dora": True, "target_modules": "all-linear"}, {"modules_to_save": ["lm_head"]}],
    ids=["lora", "dora", "whole-modules"],
)
def test_peft_alone_opens_it(base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    from peft import PeftModel

    learned = as_checkpoint(make_adapter(base, tmp_path / "step-6", **settings))
    report = target.export(learned, tmp_path / "out", target.Config(), base=base, told=["seen 5 rows"])
    out = report.out
    names = {p.name for p in out.iterdir()}
    assert names == {
        "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
        "LICENSE", "README.md", "SHA256SUMS",
    }  # fmt: skip
    assert torch.equal(
        logits(PeftModel.from_pretrained(open_base(base), out)),
        logits(PeftModel.from_pretrained(open_base(base), learned)),
    )
    for line in (out / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    card = (out / "README.md").read_text()
    assert "library_name: peft" in card and "license: apache-2.0" in card and "seen 5 rows" in card
    assert str(tmp_path) not in card
    refused = [note for note in report.notes if "vLLM" in note]
    assert bool(refused) is bool(settings)


def test_base_is_named_as_on_its_hub(base: Path, tmp_path: Path) -> None:
    """A base in the cache of Hugging Face: its name and commit, no path of this machine."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "hub" / "models--org--name" / "snapshots" / commit
    shutil.copytree(base, cached)
    learned = make_adapter(cached, tmp_path / "step-6")
    out = target.export(learned, tmp_path / "out", target.Config(), base=cached).out
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/name" and config["revision"] == commit
    card = (out / "README.md").read_text()
    assert "base_model: org/name" in card and f"base: org/name, revision {commit}" in card
    assert all(str(tmp_path) not in (out / name).read_text() for name in ("README.md", "adapter_config.json"))


def test_chain_becomes_one_adapter(base: Path, tmp_path: Path) -> None:
    """Learned on top of another one: the exported adapter alone on the untouched base answers as both did."""
    from peft import PeftModel

    first = make_adapter(base, tmp_path / "first", use_rslora=True)
    second = make_adapter(base, tmp_path / "second", seed=2, r=2, target_modules=["q_proj", "o_proj"])
    write_needed(second, [first])
    report = target.export(second, tmp_path / "out", target.Config(), base=base)
    assert report.checks["joined"] == 1 and not (report.out / "adapters.json").exists()
    as_trained = PeftModel.from_pretrained(merge(open_base(base), [first]), second)
    alone = PeftModel.from_pretrained(open_base(base), report.out)
    torch.testing.assert_close(logits(alone), logits(as_trained), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(PeftModel.from_pretrained(open_base(base), second)), logits(alone), atol=1e-2)


def test_refusals(base: Path, tmp_path: Path) -> None:
    first = make_adapter(base, tmp_path / "first", use_dora=True)
    second = make_adapter(base, tmp_path / "second", seed=2)
    write_needed(second, [first])
    with pytest.raises(ExportError, match=r"DoRA[\s\S]*--to hf"):
        target.export(second, tmp_path / "out", target.Config(), base=base)
    part = tmp_path / "part"
    part.mkdir()
    (part / "trained_weights.json").write_text('{"base": "x"}')
    for source, words in ((part, "some weights"), (base, "all weights"), (tmp_path / "none", "not a folder")):
        with pytest.raises(ExportError, match=words) as caught:
            target.export(source, tmp_path / "out", target.Config(), base=base)
        assert "--to hf" in str(caught.value.hint)
    changed = make_adapter(base, tmp_path / "changed")
    (changed / "model_changes.json").write_text('{"config": {"max_position_embeddings": 512}, "tokens": []}')
    with pytest.raises(ExportError, match="stretched"):
        target.export(changed, tmp_path / "out", target.Config(), base=base)
    other = make_base(tmp_path / "other", num_hidden_layers=1)
    with pytest.raises(ExportError, match="does not have"):
        target.export(make_adapter(base, tmp_path / "fits"), tmp_path / "out", target.Config(), base=other)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_what_peft_would_read_otherwise_is_found(base: Path, tmp_path: Path) -> None:
    """A rank in the config that is not that of the weights, a tensor too many: nothing is left."""
    wrong = make_adapter(base, tmp_path / "wrong")
    path = wrong / "adapter_model.safetensors"
    tensors = load_file(path)
    key = next(name for name in tensors if "lora_A" in name)
    twin = key.replace("layers.0", "layers.0.0")
    save_file(tensors | {twin: tensors[key].clone(), twin.replace("lora_A", "lora_B"): torch.zeros(32, 4)}, path)
    with pytest.raises(ExportError):
        target.export(wrong, tmp_path / "out", target.Config(), base=base)
    edit_json(make_adapter(base, tmp_path / "rank") / "adapter_config.json", target_modules=["q_proj"])
    with pytest.raises(ExportError, match="peft"):
        target.export(tmp_path / "rank", tmp_path / "out", target.Config(), base=base)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_tied_with_lora_on_the_embedding(few: Path, tmp_path: Path) -> None:
    base = make_model(few, tmp_path / "base", "llama-tied")
    learned = make_adapter(base, tmp_path / "step-6", target_modules=["embed_tokens", "q_proj"])
    out = target.export(learned, tmp_path / "out", target.Config(), base=base).out
    assert not any(".base_layer." in name for name in load_file(out / "adapter_model.safetensors"))
    from peft import PeftModel

    mine, theirs = (PeftModel.from_pretrained(open_base(base), folder) for folder in (out, learned))
    assert torch.equal(logits(mine), logits(theirs))
