"""LoRA in all its forms: what is learned is saved so that peft alone reads it, resumes bit for bit, and merges exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from adapter_tools import config_of, largest_difference, logits, make_base, merged, open_base, train
from tunesmith.config.errors import ConfigError, UserError
from tunesmith.models.adapters import chain
from tunesmith.models.methods import lora
from tunesmith.train.masters import Masters

FORMS: dict[str, dict[str, Any]] = {
    "plain": {"dropout": 0.1},
    "rslora-patterns": {"rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.down_proj": 3}},
    "dora": {"dora": True, "dropout": 0.1, "targets": "q_proj,down_proj"},
    "gaussian": {"init": "gaussian", "targets": "re:.*self_attn.(q|v)_proj"},
    "orthogonal": {"init": "orthogonal", "targets": "q_proj", "layers": [-1]},
    "pissa": {"init": "pissa", "targets": "all", "exclude": "down_proj"},
    "pissa-fast": {"init": "pissa_niter_4", "rslora": True, "rank_pattern": {"q_proj": 4}, "alpha_pattern": {"v_proj": 3}},
    "olora": {"init": "olora", "targets": "o_proj"},
    "plus": {"lr_ratio": 16, "targets": "v_proj"},
    "embeddings": {"targets": "q_proj,embed_tokens", "embedding_lr_ratio": 0.1},
    "dora-embeddings": {"targets": "embed_tokens", "dora": True},
    "whole-modules": {"modules_to_save": ["embeddings", "norm"], "targets": "q_proj"},
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tiny_of_few_words: Path) -> Path:
    return tiny_of_few_words


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("tied") / "model", tie_word_embeddings=True)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_resumes_loads_and_merges(base: Path, tmp_path: Path, form: str) -> None:
    """6 steps = 3 + 3 bit for bit; plain peft answers as in training; our merge is peft's."""
    config = config_of("lora", FORMS[form] | {"rank": FORMS[form].get("rank", 4)})
    trained = train(base, config, tmp_path / "step-6", 6)
    train(base, config, tmp_path / "step-3", 3)
    train(base, config, tmp_path / "again", 6, resume=tmp_path / "step-3")
    for name in ("adapter_model.safetensors", "optimizer.safetensors"):
        whole, parts = load_file(tmp_path / "step-6" / name), load_file(tmp_path / "again" / name)
        assert whole.keys() == parts.keys() and all(torch.equal(whole[key], parts[key]) for key in whole), name
    expected = logits(trained)
    assert (expected - logits(open_base(base))).abs().max() > 1e-2, "nothing was learned"
    loaded = PeftModel.from_pretrained(open_base(base), str(tmp_path / "step-6"))
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-4, atol=2e-5)
    assert largest_difference(merged(base, tmp_path / "step-6", tmp_path / "out"), loaded.merge_and_unload()) <= 1e-6


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_changed_base_in_bf16(base: Path, tmp_path: Path, init: str) -> None:
    """The residual base is found again on resuming, and the saved adapter fits the untouched base but for bf16's rounding."""
    config = config_of("lora", {"init": init, "rank": 4})
    trained = train(base, config, tmp_path / "step-4", 4, dtype=torch.bfloat16)
    train(base, config, tmp_path / "step-2", 2, dtype=torch.bfloat16)
    train(base, config, tmp_path / "again", 4, resume=tmp_path / "step-2", dtype=torch.bfloat16)
    whole, parts = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("step-4", "again"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    loaded = PeftModel.from_pretrained(open_base(base, torch.bfloat16), str(tmp_path / "step-4"))
    learned = (logits(trained) - logits(open_base(base))).abs().mean()
    assert (logits(loaded) - logits(trained)).abs().mean() < 0.2 * learned
    fresh, plain = lora.apply(open_base(base, torch.bfloat16), config, base_name="x"), open_base(base, torch.bfloat16)
    Masters(fresh, torch.bfloat16)
    for mine, weight in zip(_layers(fresh), [layer.weight.float() for layer in _layers(plain)], strict=True):
        rest, a, b = (
            v.float() for v in (mine.base_layer.weight, mine.lora_A["default"].weight, mine.lora_B["default"].weight)
        )
        off = rest + mine.scaling["default"] * b @ a - weight
        assert (off.abs() <= rest.abs() * 2**-8 + 1e-6).all(), (
            "only the rest is rounded, not A and B after it was taken"
        )


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_starts_are_peft_s(base: Path, init: str) -> None:
    """The residual weight and the product B A are those of peft's own start (each factor's sign is free)."""
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    theirs = get_peft_model(open_base(base), LoraConfig(init_lora_weights=init, **settings))  # type: ignore[arg-type]
    config = config_of("lora", {"init": init, "rank": 4, "alpha": 6, "targets": "q_proj"})
    ours = lora.apply(open_base(base), config, base_name="x")
    for mine, other in zip(_layers(ours), _layers(theirs), strict=True):
        torch.testing.assert_close(mine.base_layer.weight, other.base_layer.weight, rtol=0, atol=1e-5)
        products = [m.lora_B["default"].weight @ m.lora_A["default"].weight for m in (mine, other)]
        torch.testing.assert_close(*products, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(ours), logits(open_base(base)), rtol=0, atol=1e-4)


def _layers(model: Any) -> list[Any]:
    return [module for name, module in model.named_modules() if name.endswith("q_proj")]


def test_tied_embeddings_stay_tied(tied: Path, tmp_path: Path) -> None:
    """Whichever of the two is named: one weight is learned, both layers use it, and peft and the merge agree."""
    for number, names in enumerate((["head"], ["embeddings", "head"], ["embed_tokens"])):
        config = config_of("lora", {"modules_to_save": names, "targets": "q_proj", "rank": 2})
        trained = train(tied, config, tmp_path / f"step-{number}", 2)
        whole = [n for n, p in trained.named_parameters() if p.requires_grad and "modules_to_save" in n]
        assert len(whole) == 1 and "embed_tokens" in whole[0]
        model = trained.get_base_model()
        assert (
            model.lm_head.modules_to_save["default"].weight
            is model.model.embed_tokens.modules_to_save["default"].weight
        )
    loaded = PeftModel.from_pretrained(open_base(tied), str(tmp_path / "step-2"))
    torch.testing.assert_close(logits(loaded), logits(trained), rtol=1e-4, atol=2e-5)
    ours = merged(tied, tmp_path / "step-2", tmp_path / "out")
    torch.testing.assert_close(logits(ours), logits(trained), rtol=1e-4, atol=1e-4)
    assert ours.lm_head.weight is ours.model.embed_tokens.weight
    other = make_base(tmp_path / "gpt2", "GPT2Config", n_embd=32, n_head=4, n_layer=1)
    with pytest.raises(ConfigError, match="keep the output layer tied"):
        lora.apply(open_base(other), config_of("lora", {"modules_to_save": "head"}), base_name="x")


def test_conv1d_layers(tmp_path: Path) -> None:
    """GPT-2 stores its weights [in, out]: DoRA and PiSSA on them."""
    base = make_base(tmp_path / "gpt2", "GPT2Config", n_embd=32, n_head=4, n_layer=2, tie_word_embeddings=False)
    for number, form in enumerate(({"dora": True}, {"init": "pissa"})):
        folder = tmp_path / f"step-{number}"
        trained = train(base, config_of("lora", {"rank": 4, **form}), folder, 3)
        loaded = PeftModel.from_pretrained(open_base(base), str(folder))
        torch.testing.assert_close(logits(loaded), logits(trained), rtol=1e-4, atol=1e-4)
        difference = largest_difference(merged(base, folder, tmp_path / f"out-{number}"), loaded.merge_and_unload())
        assert difference <= 1e-6


MOE: dict[str, dict[str, Any]] = {
    "Qwen3MoeConfig": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},  # a tensor per expert
    "MixtralConfig": {"num_local_experts": 4, "num_experts_per_tok": 2},  # the same, under other names
    "GptOssConfig": {"num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": ["full_attention"] * 2},  # fused
}


@pytest.mark.parametrize("family", MOE)
def test_experts(tmp_path: Path, family: str) -> None:
    base = make_base(tmp_path / "base", family, **MOE[family])
    config = config_of("lora", {"experts": True, "rank": 4, "rank_pattern": {"v_proj": 2}})
    trained = train(base, config, tmp_path / "step-3", 3)
    names = [n for n, p in trained.named_parameters() if p.requires_grad]
    assert sum("experts" in n for n in names) == 8, "A and B of two weights in two layers"
    loaded = PeftModel.from_pretrained(open_base(base), str(tmp_path / "step-3"))
    torch.testing.assert_close(logits(loaded), logits(trained), rtol=1e-4, atol=2e-5)
    assert largest_difference(merged(base, tmp_path / "step-3", tmp_path / "out"), loaded.merge_and_unload()) <= 1e-6
    norm = lora.apply(open_base(base), config_of("lora", {"modules_to_save": "norm", "rank": 2}), base_name="x")
    assert len([n for n, p in norm.named_parameters() if p.requires_grad and "norm" in n]) == 1, "not every layer norm"
    without = lora.apply(open_base(base), config_of("lora", {"rank": 4}), base_name="x")
    assert not [n for n, p in without.named_parameters() if p.requires_grad and "experts" in n]


def test_merge_first_then_learn_on_top(base: Path, tmp_path: Path) -> None:
    """base + a + b, then c on top: the checkpoint says what it needs; opening and merging put all of them together."""
    first, second, third = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    train(base, config_of("lora", {"rank": 2, "modules_to_save": ["norm"]}), first, 3)
    train(base, config_of("lora", {"rank": 4, "dora": True, "targets": "q_proj", "merge_first": str(first)}), second, 3)
    assert chain.with_needed([second]) == (first, second)
    config = config_of("oft", {"block_size": 8, "merge_first": [str(first), str(second)]})
    trained = train(base, config, third, 3)
    assert [one["path"] for one in json.loads((third / "adapters.json").read_text())["merge_first"]] == [str(first), str(second)]  # fmt: skip
    expected = logits(trained)
    torch.testing.assert_close(logits(chain.open_with_needed(open_base(base), third)), expected, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(logits(merged(base, third, tmp_path / "out")), expected, rtol=1e-4, atol=2e-5)
    alone = PeftModel.from_pretrained(open_base(base), str(third))
    assert (logits(alone) - expected).abs().max() > 1e-2, "without what it needs it is another model"
    (second / "adapter_model.safetensors").write_bytes((first / "adapter_model.safetensors").read_bytes())
    with pytest.raises(UserError, match="has changed since"):
        chain.merged_first(third)
    (second / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="not there any more"):
        chain.merged_first(third)


def test_start_from_goes_on_with_its_own_settings(base: Path, tmp_path: Path) -> None:
    train(
        base, config_of("lora", {"rank": 3, "alpha": 5, "targets": "q_proj,v_proj", "rslora": True}), tmp_path / "a", 3
    )
    asked = config_of("lora", {"start_from": str(tmp_path / "a"), "lr_ratio": 4, "targets": ["v_proj", "q_proj"]})
    config = lora.adopted(asked, tmp_path / "a")
    assert (config.rank, config.alpha, config.rslora, config.lr_ratio) == (3, 5, True, 4)
    before = train(base, config, tmp_path / "b", 0)
    a, b = (load_file(tmp_path / name / "adapter_model.safetensors") for name in "ab")
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    train(base, config, tmp_path / "step-2", 2)
    after = train(base, config, tmp_path / "step-4", 4, resume=tmp_path / "step-2")
    assert (logits(after) - logits(before)).abs().max() > 1e-3
    for wrong, words in (({"rank": 8}, "rank: 8 is asked for.* has 3"), ({"targets": "all"}, "targets"), ({"dora": True}, "dora")):  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            lora.adopted(config_of("lora", {"start_from": str(tmp_path / "a"), **wrong}), tmp_path / "a")


def test_runs_build_on_runs(tiny: Path) -> None:
    """References to runs are pinned with what those need; chat's model and the export hold the whole chain."""
    from tunesmith.config.progress import SILENT
    from tunesmith.verbs.merged import merged_folder
    from tunesmith.verbs.proof import check_merge
    from tunesmith.verbs.run_config import config_of_run, load_config
    from tunesmith.verbs.targets import target_of
    from tunesmith.verbs.train import create, execute

    common = [f"model={tiny}", "data=lantern_bay", "data.limit=4", "data.eval_share=0", "train.max_steps=1", "train.batch=4", "train.lr=0.1", "precision=fp32"]  # fmt: skip

    def trained(name: str, *settings: str) -> Any:
        return execute(create(load_config(None, [*common, f"output.name={name}", *settings])), SILENT)

    first = trained("a", "method.targets=re:.*(q|v)_proj", "method.init=olora")
    second = trained("b", f"method.merge_first=run:{first.id}", "method.kind=oft", "method.targets=q_proj")
    third = trained("c", f"method.start_from=run:{second.id}@step-1", "method.kind=oft")
    method = config_of_run(third).method
    assert method.start_from == str(second.checkpoint()) and method.targets == ("q_proj",)
    assert method.merge_first == (str(first.checkpoint()),)
    target = target_of(f"run:{third.id}", SILENT)
    folder = merged_folder(target, SILENT)
    before, after = (load_file(one / "model.safetensors") for one in (target.base.folder, folder))
    assert sum(not torch.equal(before[name], after[name]) for name in before) == 4
    check_merge(target, folder, SILENT)
    base_run = create(load_config(None, [*common, "output.name=d"]))
    with pytest.raises(UserError, match=f"run:{base_run.id}@base is no adapter|no checkpoint"):
        trained("e", f"method.merge_first=run:{base_run.id}@base")


def test_an_adapter_of_another_base(base: Path, tmp_path: Path) -> None:
    wide = make_base(tmp_path / "wide", hidden_size=64, num_attention_heads=8)
    deep = make_base(tmp_path / "deep", num_hidden_layers=3)
    for other, words in (
        (wide, "32 (in|out)puts, this model's has 64|64 (in|out)puts"),
        (deep, "layers.2.*does not have"),
    ):
        train(other, config_of("lora", {"rank": 2}), tmp_path / f"{other.name}-a", 0)
        for key in ("start_from", "merge_first"):
            config = config_of("lora", {key: str(tmp_path / f"{other.name}-a")})
            with pytest.raises(ConfigError, match=words) as caught:
                lora.apply(open_base(base), config, base_name="x")
            assert str(other) in str(caught.value), "the message names the base it was made for"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"targets": "q_porj"}, ["q_porj", "did you mean 'q_proj'", "down_proj"]),
        ({"targets": ["q_proj", "nothing"]}, ["'nothing'", "q_proj"]),
        ({"targets": "re:.*(x|y)_proj"}, ["(x|y)_proj", "model.layers.0."]),
        ({"targets": "norm"}, ["is no linear layer"]),
        ({"exclude": "nope"}, ["method.exclude", "nope"]),
        ({"layers": [2]}, ["no layer 2", "0 to 1"]),
        ({"targets": "q_proj", "exclude": "q_proj"}, ["leave no layer"]),
        ({"rank_pattern": {"z_proj": 3}}, ["method.rank_pattern", "z_proj"]),
        ({"modules_to_save": ["haed"]}, ["'haed'", "did you mean 'head'"]),
        ({"experts": True}, ["no experts"]),
        ({"init": "pissa", "rank": 40}, ["model.layers.0.self_attn.q_proj is [32, 32]", "at most 32"]),
        ({"init": "pissa", "targets": "embed_tokens"}, ["embed_tokens", "no linear layer"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_the_model_does_not_have(base: Path, settings: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        lora.apply(open_base(base), config_of("lora", settings), base_name="x")
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"init": "eva"}, "activations or gradients over data"),
        ({"init": "loftq"}, "quantized copy of its own"),
        ({"init": "piza"}, "did you mean 'pissa'"),
        ({"init": "pissa", "dora": True}, "cannot be combined with dora"),
        ({"init": "orthogonal", "rank": 3}, "even rank"),
        ({"experts": True, "dropout": 0.1}, "no dropout"),
        ({"targets": "re:.*("}, "not a regular expression"),
        ({"targets": ["all", "q_proj"]}, "takes no other names"),
        ({"start_from": "x", "init": "pissa"}, "leave init out"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config_of("lora", settings)


def test_learning_rates_of_lora_plus(base: Path) -> None:
    config = config_of("lora", {"lr_ratio": 16, "embedding_lr_ratio": 0.5, "targets": "q_proj,embed_tokens", "modules_to_save": "head"})  # fmt: skip
    model = lora.apply(open_base(base), config, base_name="x")
    scales = lora.lr_scales(model, config)
    learned = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = {name: scales.get(name, 1.0) for name in learned}
    assert {found[n] for n in learned if "q_proj.lora_A" in n} == {1} and {found[n] for n in learned if "q_proj.lora_B" in n} == {16}  # fmt: skip
    assert [found[n] for n in learned if "lora_embedding_A" in n] == [0.5]
    assert [found[n] for n in learned if "lora_embedding_B" in n] == [8]
    assert [found[n] for n in learned if "lm_head" in n] == [0.5]
