"""Every architecture becomes a GGUF that answers as its source, or is refused with the reason why llama.cpp cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
from safetensors.torch import load_file, save_file

import families
import gguf_families
from tunesmith.config.errors import ExportError
from tunesmith.config.progress import Silent
from tunesmith.export.gguf_check import is_turned
from tunesmith.export.gguf_file import read_gguf
from tunesmith.export.gguf_settings import predicts_ahead, settings_for
from tunesmith.export.targets import gguf

OFTEN = ("llama", "qwen3", "gemma3", "phi3", "falcon", "mixtral", "gpt_bigcode", "falcon_h1")
"""The others run with the slow tests."""


class Heard(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)


def config(family: str, **changes: Any) -> Any:
    name, settings = families.FAMILIES[family] if family in families.FAMILIES else gguf_families.MORE[family]
    return getattr(transformers, name)(**families.SIZES | settings | changes)


@pytest.mark.parametrize(
    "family",
    [
        f if f in OFTEN else pytest.param(f, marks=pytest.mark.slow)
        for f in gguf_families.FAMILIES
        if f not in gguf_families.REFUSED
    ],
)
def test_every_architecture_answers_as_its_source(tmp_path: Path, family: str) -> None:
    """Stored in bfloat16, exported to F32: nothing is rounded, so the distributions are those of transformers."""
    base, heard = gguf_families.make(tmp_path / "model", family, dtype="bfloat16"), Heard()
    report = gguf.export(base, tmp_path / "out.gguf", gguf.Config(level="f32"), heard)
    found = gguf_families.distance(base, report.out)
    assert found.mean_kl < 1e-5 and found.top1_agreement > 0.97, found
    assert report.checks["warnings"] == []
    left = gguf_families.NOT_COMPARED.get(family, [])
    assert report.checks["numbers"]["not_compared"] == left
    notes = [line.split(" could not be compared")[0] for line in heard.said if "could not be compared" in line]
    assert notes == [f"note: the numbers of {', '.join(left)}"] * bool(left)


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("falcon-alibi", {}, "this model has ALiBi"),
        ("falcon", {"parallel_attn": False}, "one after the other"),
        ("smollm3", {}, r"every fourth layer .* no_rope_layers are \[1, 0\]"),
        ("llama4", {}, "no_rope_layers"),
        ("qwen3_moe", {}, "always makes the weights of the chosen experts sum to 1"),
        ("qwen2_moe", {"norm_topk_prob": True}, "never makes"),
        ("gemma3", {}, "query_pre_attn_scalar"),
        ("gemma2", {"query_pre_attn_scalar": 16, "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] + ["sliding_attention"] * 2}, "regular distances"),
        ("mamba", {}, "twice as wide"),
        ("deepseek_v2", {"topk_method": "group_limited_greedy"}, "by their best two"),
    ],
)  # fmt: skip
def test_what_llama_cpp_computes_otherwise_is_refused(family: str, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ExportError, match=f"llama.cpp would compute something else than this model: .*{reason}"):
        settings_for(config(family, **changes))


@pytest.mark.parametrize("family", ["mistral", "phi3", "starcoder2"])
def test_windows_that_llama_cpp_does_not_have_bound_the_context(family: str) -> None:
    found = settings_for(config(family))
    assert found.metadata["{arch}.context_length"] == families.WINDOW
    assert "declared as reading 8 tokens and not 128" in found.warnings[0]
    assert settings_for(config(family, sliding_window=None)).warnings == []
    assert settings_for(config(family, sliding_window=128)).warnings == []


@pytest.mark.slow
def test_a_bounded_model_answers_as_its_source_within_its_window(tmp_path: Path) -> None:
    base = gguf_families.make(tmp_path / "model", "mistral", sliding_window=64)
    heard = Heard()
    report = gguf.export(base, tmp_path / "out.gguf", gguf.Config(level="f32"), heard)
    assert read_gguf(report.out).metadata["llama.context_length"] == 64 and "sliding window of 64" in heard.said[0]
    assert gguf_families.distance(base, report.out, 64).mean_kl < 1e-5
    assert gguf_families.distance(base, report.out, 200).mean_kl > 1e-4  # what the bound keeps from being served


def test_gpt2_as_it_was_published(tmp_path: Path) -> None:
    """Names without ``transformer.``; its linear layers are turned all the same, those of GPTBigCode never are."""
    base = gguf_families.make(tmp_path / "model", "gpt2")
    tensors = load_file(base / "model.safetensors")
    save_file(
        {n.removeprefix("transformer."): t for n, t in tensors.items()}, base / "model.safetensors", {"format": "pt"}
    )
    numbers = gguf.export(base, tmp_path / "out.gguf", gguf.Config(level="f16")).checks["numbers"]
    assert numbers == {"compared": len(tensors), "not_compared": []}
    assert is_turned("transformer.h.1.attn.c_attn.weight", {"general.architecture": "gpt2"})
    assert not is_turned("transformer.h.1.attn.c_attn.weight", {"general.architecture": "starcoder"})


def test_words_that_transformers_no_longer_writes() -> None:
    assert settings_for(config("gpt_neox")).words["rotary_pct"] == 0.5
    assert settings_for(config("falcon")).words["num_kv_heads"] == 1
    assert settings_for(config("falcon-alibi", alibi=False)).words["num_kv_heads"] == 4
    assert settings_for(config("deepseek_v3")).words["scoring_func"] == "sigmoid"
    assert settings_for(config("deepseek_v2")).words["n_group"] is None
    assert settings_for(config("llama", rope_parameters={"rope_type": "default", "rope_theta": 5e5})).metadata == {
        "{arch}.rope.freq_base": 5e5
    }


def test_layers_for_predicting_ahead_are_found_by_their_tensors() -> None:
    text = config("llama")
    assert not predicts_ahead(["model.layers.1.mlp.up_proj.weight"], text)
    assert predicts_ahead(["model.layers.2.mlp.up_proj.weight"], text) and predicts_ahead(["mtp.fc.weight"], text)
