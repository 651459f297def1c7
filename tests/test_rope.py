"""RoPE scaling takes effect in every family, by the papers' formulas, and goes with the model wherever it goes."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from learned_runs import assert_same, logits, resumed, train
from model_fixtures import FAMILIES, SMALL
from tunesmith.config.errors import ConfigError
from tunesmith.config.progress import SILENT
from tunesmith.models.changes import apply_keys, read_changes
from tunesmith.models.config import ModelConfig
from tunesmith.models.rope import RopeConfig, context_length, forget_lengths, rope_changes, too_long
from tunesmith.verbs.export import export
from tunesmith.verbs.run_config import load_config
from tunesmith.verbs.targets import open_weights, target_of
from tunesmith.verbs.weights import open_begun

CPU = torch.device("cpu")
KINDS = ("linear", "dynamic", "yarn", "llama3")
PLAIN = [name for name in FAMILIES if name != "llama3-rope"]


def config_of(family: str, **changes: Any) -> Any:
    name, settings = FAMILIES[family]
    return getattr(transformers, name)(**SMALL | {"vocab_size": 300} | settings | changes)


def saved(tmp_path: Path, family: str, **changes: Any) -> Path:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config_of(family, **changes), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(15.0 if parameter.ndim > 1 else 1.0)
    model.save_pretrained(tmp_path / family)
    return tmp_path / family


def begun(folder: Path, **rope: Any) -> Any:
    config = ModelConfig(ref="x", rope=RopeConfig(**rope) if rope else None)
    return open_begun(folder, config, dtype=torch.float32, device=CPU)[0].eval()


def frequencies(model: Any) -> torch.Tensor:
    """Angle per position of each dimension pair, of the layers that see the whole text."""
    rotary = model.model.rotary_emb
    found: torch.Tensor = getattr(rotary, "full_attention_inv_freq", getattr(rotary, "inv_freq", None))
    return found


@pytest.fixture(scope="module")
def tiny(tiny_of_few_words: Path) -> Path:
    return tiny_of_few_words


@pytest.mark.parametrize("family", PLAIN)
def test_every_family_follows(tmp_path: Path, family: str) -> None:
    """All four kinds change what the model computes (dynamic only beyond its original 256 tokens), and it reads four times as far."""
    more = {"layer_types": ["full_attention", "sliding_attention"]} if family == "gemma3" else {}
    folder = saved(tmp_path, family, **more)
    plain = begun(folder)
    theta = plain.config.rope_parameters.get("full_attention", plain.config.rope_parameters)["rope_theta"]
    f_P = 1.0 / theta ** (torch.arange(0, 16, 2).float() / 16)
    assert torch.allclose(frequencies(plain), f_P)
    short, long = torch.arange(3, 43)[None], torch.arange(300)[None]
    for kind in KINDS:
        model = begun(folder, kind=kind, factor=4.0)
        assert context_length(model.config) == 1024
        assert torch.equal(logits(model, short), logits(plain, short)) == (kind == "dynamic"), kind
        assert not torch.allclose(logits(model, long), logits(plain, long), atol=1e-3), kind
        if kind == "linear":
            assert torch.allclose(frequencies(model), f_P / 4)
        if kind in (
            "yarn",
            "llama3",
        ):  # waves that turn often within 256 tokens stay, those longer than it are stretched
            waves_P = 2 * math.pi / f_P
            assert torch.allclose(frequencies(model)[waves_P < 256 / 40], f_P[waves_P < 256 / 40])
            assert torch.allclose(frequencies(model)[waves_P > 256 * 8], f_P[waves_P > 256 * 8] / 4)
        if family == "gemma3":
            assert torch.equal(
                model.model.rotary_emb.sliding_attention_inv_freq, plain.model.rotary_emb.sliding_attention_inv_freq
            )


def test_dynamic_is_a_function_of_the_text_alone(tmp_path: Path) -> None:
    """theta' = theta * (s * T / L - (s - 1)) ^ (d / (d - 2)) for a text of T > L tokens, whatever was read before it."""
    model = begun(saved(tmp_path, "llama"), kind="dynamic", factor=2.0)
    text, longer = torch.arange(280)[None], torch.arange(299)[None]
    first = logits(model, text)
    theta = 1e4 * (2 * 280 / 256 - 1) ** (16 / 14)
    assert torch.allclose(frequencies(model), 1.0 / theta ** (torch.arange(0, 16, 2).float() / 16))
    logits(model, longer)
    assert torch.equal(logits(model, text), first)
    untouched = transformers.AutoModelForCausalLM.from_config(model.config)
    forget_lengths(untouched)
    short = logits(untouched, text[:, :40])
    logits(untouched, longer)
    assert torch.equal(logits(untouched, text[:, :40]), short)


def test_what_is_written_into_the_config() -> None:
    yarn = rope_changes(config_of("llama"), RopeConfig(kind="yarn", factor=4))
    assert yarn == {
        "rope_parameters": {
            "rope_theta": 1e4,
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 256,
        },
        "max_position_embeddings": 1024,
    }
    dynamic = rope_changes(config_of("llama"), RopeConfig(kind="dynamic", factor=4))
    assert (
        dynamic["max_position_embeddings"] == 256
        and "original_max_position_embeddings" not in dynamic["rope_parameters"]
    )
    phi = rope_changes(config_of("phi3"), RopeConfig(kind="yarn", factor=2, original_max=200))
    assert phi["original_max_position_embeddings"] == 200 and phi["max_position_embeddings"] == 400
    gemma = rope_changes(
        config_of("gemma3", layer_types=["full_attention", "sliding_attention"]), RopeConfig(kind="linear", factor=8)
    )
    assert gemma["rope_parameters"]["full_attention"]["rope_type"] == "linear"
    assert gemma["rope_parameters"]["sliding_attention"]["rope_type"] == "default"
    stretched = config_of("llama3-rope", max_position_embeddings=512)  # made for 64 tokens, stretched eight times
    again = rope_changes(stretched, RopeConfig(kind="yarn", factor=16))
    assert (
        again["rope_parameters"]["original_max_position_embeddings"] == 64 and again["max_position_embeddings"] == 1024
    )
    linear = apply_keys(config_of("llama"), rope_changes(config_of("llama"), RopeConfig(kind="linear", factor=2)))
    assert rope_changes(linear, RopeConfig(kind="yarn", factor=4))["max_position_embeddings"] == 1024


def test_what_cannot_be_stretched() -> None:
    factor = RopeConfig(kind="yarn", factor=2)
    with pytest.raises(ConfigError, match="no rotary positions"):
        rope_changes(transformers.GPT2Config(), factor)
    with pytest.raises(ConfigError, match="of its own"):
        tables = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "rope_theta": 1e4}
        rope_changes(config_of("phi3", rope_parameters=tables), factor)
    with pytest.raises(
        ConfigError, match=r"2 x 64 = 128 positions, but the model has 512 already\nhint: a factor above 8"
    ):
        rope_changes(config_of("llama3-rope", max_position_embeddings=512), factor)
    for override, words in (
        ("kind: yarm, factor: 2", "did you mean 'yarn'"),
        ("factor: 1", "more than 1"),
        ("kind: yarn", "factor"),
    ):
        with pytest.raises(ConfigError, match=words):
            load_config(None, ["model=demo", "data=x", f"model.rope={{{override}}}"])


def test_rows_longer_than_the_model_reads() -> None:
    config = config_of("llama")
    assert too_long(config, 256) is None
    said = too_long(config, 1000) or ""
    assert "data.max_length is 1000" in said and "256 tokens" in said and "factor: 4" in said
    apply_keys(config, rope_changes(config, RopeConfig(kind="dynamic", factor=4)))
    assert too_long(config, 1000) is None and "factor" in str(too_long(config, 1100))
    assert "model.rope" not in str(too_long(transformers.GPT2Config(n_positions=128), 256))


def test_a_stretched_run_stays_stretched(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LoRA with dynamic scaling and rows beyond the original length: resumed bit for bit, opened and exported as trained."""
    settings = [
        "method.rank=4",
        "model.rope={kind: dynamic, factor: 3, original_max: 96}",
        "data.max_length=200",
        "train.micro_tokens=400",
    ]
    run = train(small_context(tiny, tmp_path), tmp_path / "runs", "long", *settings)
    assert "data.max_length" not in run.log_path.read_text()
    assert_same(resumed(run), run)
    assert read_changes(run.checkpoint()).config["rope_parameters"]["factor"] == 3.0
    place, _ = export(str(run.path), "hf", SILENT, out=tmp_path / "out")
    raw = json.loads((place / "config.json").read_text())
    assert raw["rope_scaling"]["rope_type"] == "dynamic" and raw["max_position_embeddings"] == 96
    trained, ours = (
        open_weights(target_of(str(run.path), SILENT)),
        transformers.AutoModelForCausalLM.from_pretrained(place),
    )
    for length in (90, 150):
        ids = torch.arange(length)[None]
        torch.testing.assert_close(logits(ours, ids), logits(trained, ids), rtol=1e-4, atol=1e-4)
    monkeypatch.setenv("TUNESMITH_RUNS", str(run.path.parent))
    before = open_weights(target_of(f"run:{run.id}@base", SILENT))
    assert before.config.rope_parameters["rope_type"] == "default", "the base of a run is the model as it was"


def small_context(tiny: Path, tmp_path: Path) -> Path:
    folder = shutil.copytree(tiny, tmp_path / "base")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"max_position_embeddings": 96}))
    return folder
