"""Several adapters with weights: the sum of their changes, in chat as in the merged folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from adapter_tools import logits, make_base, merged, open_base
from families import make_family
from model_fixtures import edit_json, make_adapter, peft_merge
from tunesmith.config.errors import UserError
from tunesmith.config.progress import SILENT
from tunesmith.export.targets import hf
from tunesmith.models.adapters.combine import combine
from tunesmith.verbs.targets import open_weights, target_of

FIRST: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]}
SECOND: dict[str, Any] = {
    "r": 3, "lora_alpha": 5, "use_rslora": True, "target_modules": ["q_proj", "up_proj"], "rank_pattern": {"up_proj": 2},
    "alpha_pattern": {"layers.1.self_attn.q_proj": 9},
}  # fmt: skip


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "base")


def test_is_the_weighted_sum_of_the_changes(base: Path, tmp_path: Path) -> None:
    """W + 0.7 ΔW₁ - 0.5 ΔW₂, with ΔWᵢ = what peft's merge of that adapter alone adds to W; other ranks, scales and layers."""
    one, two = make_adapter(base, tmp_path / "one", **FIRST), make_adapter(base, tmp_path / "two", seed=2, **SECOND)
    sums = combine([(one, 0.7), (two, -0.5)], tmp_path / "sum")
    plain = open_base(base).state_dict()
    alone = [peft_merge(base, adapter).state_dict() for adapter in (one, two)]
    ours = merged(base, sums, tmp_path / "out").state_dict()
    theirs = peft_merge(base, sums).state_dict()
    for name, weight in plain.items():
        expected = weight + 0.7 * (alone[0][name] - weight) - 0.5 * (alone[1][name] - weight)
        torch.testing.assert_close(ours[name], expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(theirs[name], ours[name]), "peft reads the sum as we do"
    touched = {n for n, w in plain.items() if not torch.equal(ours[n], w)}
    assert len(touched) == 6, "q, up and down of two layers"


def test_equals_peft_cat(base: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    same = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}
    one, two = make_adapter(base, tmp_path / "one", **same), make_adapter(base, tmp_path / "two", seed=2, **same)
    model = PeftModel.from_pretrained(open_base(base), one, adapter_name="one")
    model.load_adapter(two, adapter_name="two")
    model.add_weighted_adapter(["one", "two"], [0.7, 0.5], "both", combination_type="cat")
    model.set_adapter("both")
    sums = combine([(one, 0.7), (two, 0.5)], tmp_path / "sum")
    torch.testing.assert_close(logits(merged(base, sums, tmp_path / "out")), logits(model), rtol=1e-4, atol=1e-4)


def test_embeddings(base: Path, tmp_path: Path) -> None:
    settings = {"target_modules": ["embed_tokens", "q_proj"]}
    one, two = (
        make_adapter(base, tmp_path / "one", **settings),
        make_adapter(base, tmp_path / "two", seed=2, **settings),
    )
    sums = combine([(one, 0.5), (two, 1.0)], tmp_path / "sum")
    ours, plain = merged(base, sums, tmp_path / "out").state_dict(), open_base(base).state_dict()
    name = "model.embed_tokens.weight"
    alone = [peft_merge(base, adapter).state_dict()[name] - plain[name] for adapter in (one, two)]
    torch.testing.assert_close(ours[name], plain[name] + 0.5 * alone[0] + alone[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["qwen3_moe", pytest.param("mixtral", marks=pytest.mark.slow)])
def test_experts(family: str, tmp_path: Path) -> None:
    base = make_family(tmp_path / "base", family)
    settings = {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
    one, two = (
        make_adapter(base, tmp_path / "one", **settings),
        make_adapter(base, tmp_path / "two", seed=2, **settings),
    )
    sums = combine([(one, 0.5), (two, -1.0)], tmp_path / "sum")
    out = hf.export(sums, tmp_path / "out", hf.Config(), base=base).out
    ours, plain = open_base(out).state_dict(), open_base(base).state_dict()
    alone = [peft_merge(base, adapter).state_dict() for adapter in (one, two)]
    for name, weight in plain.items():
        expected = weight + 0.5 * (alone[0][name] - weight) - (alone[1][name] - weight)
        torch.testing.assert_close(ours[name], expected, rtol=1e-4, atol=1e-4)
    assert any("experts" in n and not torch.equal(ours[n], w) for n, w in plain.items())


def test_reference_opens_and_merges_the_same_model(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``base+one*0.5+two``: what chat opens answers as the merged folder; another weight is another model."""
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
    one, two = make_adapter(tiny, tmp_path / "one"), make_adapter(tiny, tmp_path / "two", seed=2)
    text = f"{tiny}+{one}*0.5+{two}"
    target = target_of(text, SILENT)
    assert target.learned is not None and target.learned == target_of(text, SILENT).learned
    folder = hf.export(target.learned, tmp_path / "out", hf.Config(), base=target.base.folder).out
    opened, whole = open_weights(target, precision="fp32"), open_base(folder)
    torch.testing.assert_close(logits(opened), logits(whole), rtol=1e-4, atol=1e-3)
    other = open_weights(target_of(f"{tiny}+{one}*0.25+{two}", SILENT), precision="fp32")
    assert not torch.allclose(logits(other), logits(whole), atol=1e-2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"use_dora": True}, "DoRA"), ({"modules_to_save": ["norm"]}, "modules_to_save"), ({"bias": "all"}, "bias")],
)
def test_changes_that_do_not_add_up_are_refused(
    base: Path, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    plain, other = make_adapter(base, tmp_path / "plain"), make_adapter(base, tmp_path / "other", **settings)
    with pytest.raises(UserError, match=words) as caught:
        combine([(plain, 1.0), (other, 1.0)], tmp_path / "sum")
    assert "plain LoRA" in str(caught.value.hint)
    assert not (tmp_path / "sum").exists()


def test_adapters_of_other_bases_are_refused(base: Path, tmp_path: Path) -> None:
    wide = make_base(tmp_path / "wide", hidden_size=64)
    one, two = make_adapter(base, tmp_path / "one"), make_adapter(wide, tmp_path / "two")
    with pytest.raises(UserError, match="different shapes"):
        combine([(one, 1.0), (two, 1.0)], tmp_path / "sum")
    edit_json(two / "adapter_config.json", peft_type="OFT")
    with pytest.raises(UserError, match="OFT"):
        combine([(one, 1.0), (two, 1.0)], tmp_path / "sum")
    assert not (tmp_path / "sum").exists()
    assert load_file(one / "adapter_model.safetensors")
