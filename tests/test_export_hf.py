"""The merged folder: equal to peft's own merge, complete for every reader, and nothing half-written when it cannot be."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from model_fixtures import FAMILIES, TOKENIZER, edit_json, make_adapter, make_model, peft_merge
from tunesmith.config.errors import ExportError
from tunesmith.export import lora
from tunesmith.export.changes import merged
from tunesmith.export.targets import hf
from tunesmith.export.tensor_files import BUFFER, StoredTensor, read_header, read_model

TINY_SHARDS = hf.Config(max_shard_size=0.001)


def load(folder: Path, dtype: str = "float32") -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model((torch.arange(40)[None] * 7 + 3) % model.config.vocab_size).logits[0]


def assert_nothing_left(out: Path) -> None:
    assert not out.exists()
    assert [p.name for p in out.parent.iterdir() if p.name.startswith(f".{out.name}")] == []


@pytest.fixture(scope="module")
def tied(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose output layer is its embedding."""
    return make_model(few, tmp_path_factory.mktemp("tied") / "base", "llama-tied")


@pytest.fixture(scope="module")
def adapter(tied: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tied, tmp_path_factory.mktemp("tied") / "adapter")


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_peft_in_float32(few: Path, tmp_path: Path, family: str) -> None:
    """Bit for bit, over several shards."""
    base = make_model(few, tmp_path / "base", family)
    adapter = make_adapter(base, tmp_path / "adapter", target_modules="all-linear")
    report = hf.export(adapter, tmp_path / "out", TINY_SHARDS, base=base)
    ours, theirs = load(report.out).state_dict(), peft_merge(base, adapter).state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    untouched = load(base).state_dict()
    changed = sum(not torch.equal(ours[name], untouched[name]) for name in ours)
    assert changed == report.checks["merged"] >= 8
    assert len(list(report.out.glob("model-*-of-*.safetensors"))) > 1


def test_equals_peft_in_bfloat16(few: Path, tmp_path: Path) -> None:
    """One rounding, as in peft's default merge: bit for bit. Its safe_merge rounds twice: at most one step of bfloat16 apart."""
    base = make_model(few, tmp_path / "base", "qwen3", "bfloat16")
    adapter = make_adapter(base, tmp_path / "adapter", "bfloat16", target_modules="all-linear")
    out = hf.export(adapter, tmp_path / "out", hf.Config(), base=base).out
    ours, theirs = load(out, "bfloat16").state_dict(), peft_merge(base, adapter, "bfloat16").state_dict()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    for name, safe in peft_merge(base, adapter, "bfloat16", safe_merge=True).state_dict().items():
        difference = (ours[name].float() - safe.float()).abs()
        larger = torch.maximum(ours[name].float().abs(), safe.float().abs())
        assert (difference <= larger * 2**-7 + 2**-9).all(), name


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {
            "rank_pattern": {"down_proj": 2},
            "alpha_pattern": {"layers.1.self_attn.q_proj": 3},
            "target_modules": "all-linear",
        },
        {"use_rslora": True, "rank_pattern": {"q_proj": 8}},
    ],
    ids=["rslora", "patterns", "rslora-pattern"],
)
def test_scaling_follows_peft(tied: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    adapter = make_adapter(tied, tmp_path / "adapter", **settings)
    ours = load(hf.export(adapter, tmp_path / "out", hf.Config(), base=tied).out).state_dict()
    theirs = peft_merge(tied, adapter).state_dict()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_tied_weights_are_stored_once(tied: Path, adapter: Path, tmp_path: Path) -> None:
    doubled = shutil.copytree(tied, tmp_path / "doubled")
    tensors = load_file(doubled / "model.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, doubled / "model.safetensors")
    for base in (tied, doubled):
        out = hf.export(adapter, tmp_path / f"out-{base.name}", hf.Config(), base=base).out
        assert "lm_head.weight" not in read_model(out)
        assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is True


@pytest.mark.parametrize(
    "settings",
    [
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"target_modules": ["lm_head", "q_proj"]},
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ],
    ids=["head", "embedding", "lora-on-head", "kept-tied"],
)
def test_trained_embeddings_answer_as_in_training(tied: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    """The exported model computes what base + adapter computed, also where only one of two tied layers was trained."""
    from peft import PeftModel

    adapter = make_adapter(tied, tmp_path / "adapter", **settings)
    out = hf.export(adapter, tmp_path / "out", hf.Config(), base=tied).out
    expected = logits(PeftModel.from_pretrained(load(tied), adapter))
    torch.testing.assert_close(logits(load(out)), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(load(tied)), expected, atol=1e-2)
    is_tied = json.loads((out / "config.json").read_text())["tie_word_embeddings"]
    assert is_tied is bool(settings.get("ensure_weight_tying"))


def test_folder_is_complete(few: Path, tmp_path: Path) -> None:
    base = make_model(few, tmp_path / "base", "llama3-rope")
    (base / "NOTICE.txt").write_text("notice")
    (base / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: [en]\n---\n# Base\n")
    edit_json(base / "generation_config.json", eos_token_id=2, temperature=0.5)
    adapter = make_adapter(base, tmp_path / "adapter")
    report = hf.export(adapter, tmp_path / "out", hf.Config(), base=base, stop_token_ids=[0, 2])
    out = report.out
    settings = json.loads((out / "config.json").read_text())
    assert settings["dtype"] == settings["torch_dtype"] == "float32"
    assert settings["rope_theta"] == settings["rope_parameters"]["rope_theta"] == 5e5
    assert settings["rope_scaling"]["rope_type"] == "llama3" and settings["rope_scaling"]["factor"] == 8.0
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [2, 0] and generation["temperature"] == 0.5
    assert (out / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    template = (base / "chat_template.jinja").read_text()
    assert (out / "chat_template.jinja").read_bytes() == template.encode()
    written = json.loads((out / "tokenizer_config.json").read_text())
    assert written.pop("chat_template") == template
    kept = json.loads((base / "tokenizer_config.json").read_text())
    if kept["tokenizer_class"] == "TokenizersBackend":  # transformers 4 knows that class by its older name
        kept["tokenizer_class"] = "PreTrainedTokenizerFast"
    assert written == kept
    assert (out / "LICENSE").exists() and (out / "NOTICE.txt").read_text() == "notice"
    card = (out / "README.md").read_text()
    assert "license: apache-2.0" in card and str(tmp_path) not in card
    lines = (out / "SHA256SUMS").read_text().splitlines()
    assert {line.split("  ")[1] for line in lines} == {p.name for p in out.iterdir()} - {"SHA256SUMS"}
    for line in lines:
        digest, name = line.split("  ")
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    assert report.bytes == sum(p.stat().st_size for p in out.iterdir())


def test_config_of_transformers_4_gains_the_new_spelling(tied: Path, tmp_path: Path) -> None:
    old = shutil.copytree(tied, tmp_path / "old")
    raw = json.loads((old / "config.json").read_text())
    del raw["rope_parameters"], raw["dtype"]
    raw |= {"rope_theta": 7e4, "rope_scaling": {"type": "linear", "factor": 2.0}, "torch_dtype": "float32"}
    (old / "config.json").write_text(json.dumps(raw))
    out = hf.export(old, tmp_path / "out", hf.Config()).out
    found = json.loads((out / "config.json").read_text())
    assert found["rope_parameters"]["rope_theta"] == found["rope_theta"] == 7e4
    assert found["rope_parameters"]["factor"] == found["rope_scaling"]["factor"] == 2.0
    assert AutoConfig.from_pretrained(out).rope_parameters == AutoConfig.from_pretrained(old).rope_parameters


def test_words_of_transformers_4(tmp_path: Path) -> None:
    """What transformers 5 alone could read is said in older words too; it reads them as the same."""
    from families import make_family

    found = {}
    for family in ("qwen3_moe", "gpt_neox"):
        base = make_family(tmp_path / family, family)
        out = hf.export(base, tmp_path / f"{family}-out", hf.Config()).out
        found[family] = json.loads((out / "config.json").read_text())
        tokenizer = json.loads((out / "tokenizer_config.json").read_text())
        assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert tokenizer["additional_special_tokens"] == ["<|user|>", "<|assistant|>"]
        assert "extra_special_tokens" not in tokenizer
        new, old = AutoTokenizer.from_pretrained(out), AutoTokenizer.from_pretrained(base)
        assert new.all_special_tokens == old.all_special_tokens
        assert torch.equal(logits(load(out)), logits(load(base)))
    assert found["qwen3_moe"]["num_experts"] == found["qwen3_moe"]["num_local_experts"] == 4
    assert found["gpt_neox"]["rotary_pct"] == 0.5 and found["gpt_neox"]["rotary_emb_base"] == 10000.0


def test_template_it_was_trained_with_wins(tied: Path, adapter: Path, tmp_path: Path) -> None:
    trained = shutil.copytree(adapter, tmp_path / "adapter")
    (trained / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    out = hf.export(trained, tmp_path / "out", hf.Config(), base=tied).out
    rendered = AutoTokenizer.from_pretrained(out).apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False
    )
    assert rendered == "hi!"


@pytest.mark.parametrize(
    ("settings", "edits", "words"),
    [
        ({"lora_bias": True}, {}, "lora_bias"),
        ({"bias": "all"}, {}, "bias"),
        ({}, {"peft_type": "IA3"}, "IA3"),
        ({}, {"init_lora_weights": "pissa_niter_4"}, "pissa"),
        ({}, {"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({}, {"a_key_of_next_year": True}, "a_key_of_next_year"),
        ({}, {"r": 5}, "rank"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_would_be_merged_wrongly_is_refused(
    tied: Path, tmp_path: Path, settings: dict[str, Any], edits: dict[str, Any], words: str
) -> None:
    adapter = make_adapter(tied, tmp_path / "adapter", **settings)
    edit_json(adapter / "adapter_config.json", **edits)
    with pytest.raises(ExportError, match=words):
        hf.export(adapter, tmp_path / "out", hf.Config(), base=tied)
    assert_nothing_left(tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "words"),
    [({"hidden_size": 32, "head_dim": 8}, "in the base"), ({"num_hidden_layers": 1}, "does not have")],
)
def test_wrong_base_is_one_clear_message(
    few: Path, adapter: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    other = make_model(few, tmp_path / "other", "llama-tied", **change)
    with pytest.raises(ExportError, match=words) as caught:
        hf.export(adapter, tmp_path / "out", hf.Config(), base=other)
    assert "do not belong together" in str(caught.value)
    assert_nothing_left(tmp_path / "out")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def damage_offsets(path: Path) -> None:
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    next(v for k, v in header.items() if k != "__metadata__")["shape"].append(2)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


@pytest.mark.parametrize(
    "harm", [truncate, damage_offsets, lambda p: p.write_bytes(b"x" * 5), lambda p: p.write_bytes(b"x" * 500)]
)
@pytest.mark.parametrize("which", ["base", "adapter"])
def test_damaged_weights(tied: Path, adapter: Path, tmp_path: Path, harm: Any, which: str) -> None:
    base, lora_folder = shutil.copytree(tied, tmp_path / "b"), shutil.copytree(adapter, tmp_path / "a")
    path = base / "model.safetensors" if which == "base" else lora_folder / "adapter_model.safetensors"
    harm(path)
    with pytest.raises(ExportError, match=path.name) as caught:
        hf.export(lora_folder, tmp_path / "out", hf.Config(), base=base)
    assert "damaged" in str(caught.value)
    assert_nothing_left(tmp_path / "out")


def test_missing_shard_and_index_pointing_outside(tied: Path, tmp_path: Path) -> None:
    split = hf.export(tied, tmp_path / "split", TINY_SHARDS).out
    index = json.loads((split / "model.safetensors.index.json").read_text())
    shard = next(iter(index["weight_map"].values()))
    away = tmp_path / "secret.safetensors"
    (split / shard).rename(away)
    with pytest.raises(ExportError, match=f"{shard} is missing"):
        hf.export(split, tmp_path / "out", hf.Config())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "../secret.safetensors")
    (split / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ExportError, match="outside"):
        hf.export(split, tmp_path / "out", hf.Config())


def test_pickle_and_quantized_bases_are_refused(tied: Path, adapter: Path, tmp_path: Path) -> None:
    pickled = shutil.copytree(tied, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ExportError, match="pickle"):
        hf.export(adapter, tmp_path / "out", hf.Config(), base=pickled)
    packed = shutil.copytree(tied, tmp_path / "packed")
    edit_json(packed / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(ExportError, match="bitsandbytes"):
        hf.export(adapter, tmp_path / "out", hf.Config(), base=packed)
    only_bin = shutil.copytree(adapter, tmp_path / "only-bin")
    (only_bin / "adapter_model.safetensors").rename(only_bin / "adapter_model.bin")
    with pytest.raises(ExportError, match="pickle"):
        hf.export(only_bin, tmp_path / "out", hf.Config(), base=tied)
    assert_nothing_left(tmp_path / "out")


def test_refuses_to_overwrite_and_to_fill_the_disk(
    tied: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(ExportError, match="exists already"):
        hf.export(adapter, out, hf.Config(), base=tied)
    assert [p.name for p in out.iterdir()] == ["mine.txt"]
    weights = (tied / "model.safetensors").stat().st_size
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 0, weights))
    with pytest.raises(ExportError, match="free"):
        hf.export(adapter, tmp_path / "other", hf.Config(), base=tied)
    assert_nothing_left(tmp_path / "other")


def test_a_failed_check_leaves_nothing(tied: Path, adapter: Path, tmp_path: Path) -> None:
    """The tokenizer is damaged so that only the last check, after all weights were written, can see it."""
    broken = shutil.copytree(tied, tmp_path / "broken")
    (broken / "tokenizer.json").write_text("{}")
    with pytest.raises(ExportError, match="tokenizer"):
        hf.export(adapter, tmp_path / "out", hf.Config(), base=broken)
    assert_nothing_left(tmp_path / "out")


def test_missing_weight_is_found_by_loading_back(tied: Path, tmp_path: Path) -> None:
    holed = shutil.copytree(tied, tmp_path / "holed")
    tensors = load_file(holed / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, holed / "model.safetensors")
    with pytest.raises(ExportError, match=r"layers\.1\.mlp\.up_proj"):
        hf.export(holed, tmp_path / "out", hf.Config())
    assert_nothing_left(tmp_path / "out")


def test_code_in_the_base_stays_there(tied: Path, adapter: Path, tmp_path: Path) -> None:
    hostile = shutil.copytree(tied, tmp_path / "hostile")
    (hostile / "modeling_x.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')\n")
    edit_json(hostile / "config.json", auto_map={"AutoModelForCausalLM": "modeling_x.X", "AutoConfig": "modeling_x.C"})
    edit_json(hostile / "tokenizer_config.json", auto_map={"AutoTokenizer": ["modeling_x.T", None]})
    out = hf.export(adapter, tmp_path / "out", hf.Config(), base=hostile).out
    assert not (tmp_path / "marker").exists()
    assert list(out.glob("*.py")) == []
    for name in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in (out / name).read_text()


def test_memory_is_a_block_not_a_matrix(tmp_path: Path) -> None:
    """A weight of 64 MiB is merged in pieces of at most BUFFER bytes (float32 inside), and they equal the whole product."""
    weight, a, b = torch.randn(8192, 2048), torch.randn(4, 2048), torch.randn(8192, 4)
    save_file({"w": weight, "a": a, "b": b}, tmp_path / "x.safetensors")
    stored: dict[str, StoredTensor] = read_header(tmp_path / "x.safetensors")
    plan = merged(stored["w"], [lora.Delta(stored["a"], stored["b"], 0.5, False)], "w")
    pieces = list(plan.chunks())
    assert len(pieces) == 8 and max(map(len, pieces)) <= BUFFER
    whole = torch.frombuffer(bytearray().join(pieces), dtype=torch.float32).reshape(8192, 2048)
    assert torch.equal(whole, weight + (b @ a) * 0.5)


def test_transposed_weights(tmp_path: Path) -> None:
    """fan_in_fan_out: the base stores [in, out], so the delta is (B A)ᵀ."""
    weight, a, b = torch.randn(6, 10), torch.randn(2, 6), torch.randn(10, 2)
    save_file({"w": weight, "a": a, "b": b}, tmp_path / "x.safetensors")
    stored = read_header(tmp_path / "x.safetensors")
    plan = merged(stored["w"], [lora.Delta(stored["a"], stored["b"], 2.0, True)], "w")
    whole = torch.frombuffer(bytearray().join(plan.chunks()), dtype=torch.float32).reshape(6, 10)
    torch.testing.assert_close(whole, weight + 2 * (b @ a).T)


def test_lengths_of_transposed_weights(tmp_path: Path) -> None:
    """DoRA on a weight stored [in, out]: an output is a column, whose length takes all rows."""
    weight, a, b, lengths = torch.randn(3000, 1024), torch.randn(2, 3000), torch.randn(1024, 2), torch.rand(1024)
    save_file({"w": weight, "a": a, "b": b, "m": lengths}, tmp_path / "x.safetensors")
    stored = read_header(tmp_path / "x.safetensors")
    plan = merged(stored["w"], [lora.Delta(stored["a"], stored["b"], 2.0, True, stored["m"])], "w")
    pieces = list(plan.chunks())
    assert len(pieces) == 2, "several blocks"
    whole = torch.frombuffer(bytearray().join(pieces), dtype=torch.float32).reshape(3000, 1024)
    summed = weight + 2 * (b @ a).T
    torch.testing.assert_close(whole, lengths * summed / summed.norm(dim=0), rtol=1e-4, atol=1e-6)


def test_dora_in_bfloat16(few: Path, tmp_path: Path) -> None:
    """The folder of a 16-bit base: within one rounding of peft's merge in float32; the card says what was merged."""
    base = make_model(few, tmp_path / "base", "llama", "bfloat16", vocab_size=320)
    adapter = make_adapter(base, tmp_path / "adapter", use_dora=True, modules_to_save=["norm"])
    report = hf.export(adapter, tmp_path / "out", hf.Config(), base=base)
    ours, theirs = load(report.out).state_dict(), peft_merge(base, adapter).state_dict()
    for name, whole in theirs.items():
        torch.testing.assert_close(ours[name], whole.bfloat16().float(), rtol=2**-7, atol=1e-6)
    assert report.checks["merged"] == 4
    assert "LORA adapter merged into 4 weights, 5 weights" in (report.out / "README.md").read_text()


def test_base_is_found_by_its_name_or_asked_for(tied: Path, adapter: Path, tmp_path: Path) -> None:
    assert (
        hf.export(adapter, tmp_path / "out", hf.Config()).checks["merged"] == 4
    )  # adapter_config.json names the folder
    moved = shutil.copytree(adapter, tmp_path / "moved")
    edit_json(moved / "adapter_config.json", base_model_name_or_path="org/somewhere")
    with pytest.raises(ExportError, match="org/somewhere is not a folder"):
        hf.export(moved, tmp_path / "out2", hf.Config())
    named = hf.export(moved, tmp_path / "out3", hf.Config(), base=tied).out
    assert "base_model: org/somewhere" in (named / "README.md").read_text()
    assert TOKENIZER[0] in {p.name for p in named.iterdir()}
