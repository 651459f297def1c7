"""Freezing and block expansion: what is learned, what is kept of it, and that the model exported is the model trained."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from learned_runs import assert_same, changes_of, logits, losses, resumed, train
from model_fixtures import FAMILIES, SMALL, TOKENIZER, make_model
from tunesmith.config.errors import ConfigError, ExportError, UserError
from tunesmith.config.load import validate
from tunesmith.config.progress import SILENT
from tunesmith.export.targets import hf
from tunesmith.export.tensor_files import read_model
from tunesmith.models.changes import Changes, changed_keys, write_changes
from tunesmith.models.expansion import expand, grown
from tunesmith.models.methods import freeze
from tunesmith.models.open import open_config, open_model
from tunesmith.models.trained import load_trained
from tunesmith.runs.folder import RunFolder
from tunesmith.verbs.export import export
from tunesmith.verbs.targets import open_weights, target_of

CPU = torch.device("cpu")
OLD = ("FalconConfig", "GPT2Config")
"""Families whose configs do not take all of today's keys."""


def small(name: str, **settings: Any) -> Any:
    """A model of random weights, loud enough that every layer matters. Four layers, 300 tokens."""
    size = {key: SMALL[key] for key in ("hidden_size", "num_attention_heads")} if name in OLD else SMALL
    size = size | {"vocab_size": 300, "num_hidden_layers": 4, "bos_token_id": 1, "eos_token_id": 2}
    config = getattr(transformers, name)(**size | settings)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(15.0 if parameter.ndim > 1 else 1.0)
    return model


def learned(model: Any) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, r"layers\.[23]\."),
        ({"layers": 1}, r"layers\.3\."),
        ({"layers": -3}, r"layers\.[012]\."),
        ({"layers": 2, "modules": "mlp"}, r"layers\.[23]\.mlp"),
        ({"layers": -1, "modules": ["q_proj", "input_layernorm"]}, r"layers\.0\.(self_attn\.q_proj|input_layernorm)"),
        ({"layers": 0, "extra": "norm"}, r"model\.norm|layernorm^"),
        ({"layers": 1, "extra": ["lm_head", "embed_tokens"]}, r"layers\.3\.|lm_head|embed_tokens"),
        ({"layers": 0, "extra": r"layers\.1\..*up_proj"}, r"layers\.1\.mlp\.up_proj"),
    ],
)
def test_what_is_learned(settings: dict[str, Any], wanted: str) -> None:
    model = freeze.apply(small("LlamaConfig"), validate(freeze.Config, settings), base_name="x")
    assert learned(model) == {n for n, _ in model.named_parameters() if re.search(wanted, n)} != set()


def test_what_cannot_be_asked_for() -> None:
    model = small("LlamaConfig")
    for settings, message in (
        ({"layers": 5}, "has only 4 layers"),
        ({"expand": 5}, "has only 4 layers"),
        ({"modules": "q_prj"}, "called 'q_prj'"),
        ({"extra": "lm_hed"}, "called 'lm_hed'"),
    ):
        with pytest.raises(ConfigError, match=message):
            freeze.apply(model, validate(freeze.Config, settings), base_name="x")
    for wrong in ({"layers": 0}, {"expand": 1, "layers": 2}, {"expand": 1, "modules": "mlp"}):
        with pytest.raises(ConfigError, match="learn"):
            validate(freeze.Config, wrong)


def test_tied_output_layer_is_learned_under_either_name() -> None:
    for name in ("lm_head", "embed_tokens"):
        model = small("LlamaConfig", tie_word_embeddings=True)
        freeze.apply(model, freeze.Config(layers=0, extra=(name,)), base_name="x")
        assert learned(model) == {"model.embed_tokens.weight"}


def test_new_layers_stand_after_equal_groups() -> None:
    """32 layers and 8 new ones, as in the paper: every fifth is new, a copy of the one before."""
    growth = grown("layers", 32, 8)
    assert growth.new == tuple(range(4, 40, 5))
    assert all(growth.origins[place] == growth.origins[place - 1] for place in growth.new)
    assert [o for i, o in enumerate(growth.origins) if i not in growth.new] == list(range(32))
    assert grown("layers", 5, 2).origins == (0, 1, 1, 2, 3, 4, 4)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("LlamaConfig", {}),
        ("Qwen3Config", {"tie_word_embeddings": True, "layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 8,
                         "use_sliding_window": True}),
        ("Phi3Config", {}),
        ("GptOssConfig", {"num_local_experts": 4, "num_experts_per_tok": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
        ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
        ("SmolLM3Config", {}),
        ("CohereConfig", {}),
        ("GPTNeoXConfig", {}),
        ("FalconConfig", {}),
        ("GPT2Config", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_an_expanded_model_computes_what_its_base_does(tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    """The same logits, bit for bit, also when transformers opens what was saved; parallel residuals too."""
    model = small(name, **settings)
    before = logits(model)
    kinds = getattr(model.config, "layer_types", None)
    growth = expand(model, 2)
    assert torch.equal(logits(model), before) and growth.origins == (0, 1, 1, 2, 3, 3)
    assert model.config.num_hidden_layers == 6
    if kinds is not None:
        assert model.config.layer_types == [kinds[i] for i in growth.origins]
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(transformers.AutoModelForCausalLM.from_pretrained(tmp_path)), before)
    cached = model.generate(torch.arange(3, 9)[None], max_new_tokens=4, do_sample=False, use_cache=True)
    assert torch.equal(
        cached, model.generate(torch.arange(3, 9)[None], max_new_tokens=4, do_sample=False, use_cache=False)
    )


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("Gemma2Config", {}, "normalized once more"),
        ("Gemma3TextConfig", {}, "normalized once more"),
        ("Olmo2Config", {}, "normalized once more"),
        ("Glm4Config", {}, "normalized once more"),
        ("Qwen3MoeConfig", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "mlp_only_layers": [1]}, "a layer's number decides"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.endswith("Config") else "",
)  # fmt: skip
def test_families_that_cannot_be_expanded_say_so(name: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        expand(small(name, **settings), 2)


@pytest.fixture(scope="module")
def tiny(tiny_of_few_words: Path) -> Path:
    return tiny_of_few_words


@pytest.fixture(scope="module")
def base(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(few, tmp_path_factory.mktemp("freeze") / "base", "qwen3", "bfloat16", max_position_embeddings=100)


@pytest.fixture(scope="module")
def frozen(base: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    root = tmp_path_factory.mktemp("freeze-runs")
    return train(
        base, root, "frozen", "method.kind=freeze", "method.layers=-1", "method.extra=[norm]", "precision=bf16"
    )


@pytest.fixture(scope="module")
def expanded(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """One new layer, new tokens and stretched positions at once."""
    settings = [
        "method.kind=freeze",
        "method.expand=1",
        "model.add_tokens=[lantern]",
        "model.rope={kind: linear, factor: 2}",
    ]
    return train(tiny, tmp_path_factory.mktemp("expand-runs"), "expanded", *settings)


def test_frozen_run_keeps_what_it_learned_and_no_more(base: Path, frozen: RunFolder, tmp_path: Path) -> None:
    assert_same(resumed(frozen), frozen)
    assert "made for 100 tokens" in frozen.log_path.read_text()
    folder = frozen.checkpoint()
    kept, before = load_file(folder / "trained_weights.safetensors"), load_file(base / "model.safetensors")
    assert kept.keys() == {n for n in before if "layers.0." in n or n == "model.norm.weight"}
    assert all(tensor.dtype == torch.float32 for tensor in kept.values())
    assert json.loads((folder / "trained_weights.json").read_text()) == {"base": str(base)}
    place, _ = export(str(frozen.path), "hf", SILENT, out=tmp_path / "out")
    exported = load_file(place / "model.safetensors")
    assert exported.keys() == before.keys()
    for name, tensor in exported.items():
        assert torch.equal(tensor, kept[name].bfloat16() if name in kept else before[name]), name
    assert sum(not torch.equal(exported[n], before[n]) for n in kept) > 5
    assert f"{len(kept)} weights trained in full, the others as in the base" in (place / "README.md").read_text()
    with pytest.raises(UserError, match="only the weights that were learned"):
        target_of(str(folder), SILENT)
    beside = target_of(f"{base}+{folder}", SILENT)
    assert torch.equal(
        logits(open_weights(beside, precision="bf16")), logits(transformers.AutoModelForCausalLM.from_pretrained(place))
    )


def test_expanded_run_is_exported_with_its_new_layer(tiny: Path, expanded: RunFolder, tmp_path: Path) -> None:
    assert_same(resumed(expanded), expanded)
    assert losses(expanded)[1][2] != losses(expanded)[-1][2]
    kept = load_file(expanded.checkpoint() / "trained_weights.safetensors")
    rest = {"model.embed_tokens.weight", "lm_head.weight"}  # they hold the new token
    assert {n for n in kept if n not in rest} == {n for n in kept if n.startswith("model.layers.2.")}
    assert float(kept["model.layers.2.mlp.down_proj.weight"].abs().max()) > 0
    assert changes_of(expanded)["config"].keys() == {
        "num_hidden_layers", "vocab_size", "rope_parameters", "max_position_embeddings",
    }  # fmt: skip
    place, _ = export(str(expanded.path), "hf", SILENT, out=tmp_path / "out")
    again = transformers.AutoModelForCausalLM.from_pretrained(place)
    assert (again.config.num_hidden_layers, again.config.vocab_size) == (3, 4097)
    assert again.config.rope_parameters["rope_type"] == "linear" and again.config.max_position_embeddings == 512
    ids = torch.tensor([[5, 4096, 77, 12] * 9])
    assert torch.equal(logits(again, ids), logits(open_weights(target_of(str(expanded.path), SILENT)), ids))
    assert "1 new layer trained between the base's 2" in (place / "README.md").read_text()


def test_weights_of_another_model_are_refused(
    base: Path, tiny: Path, frozen: RunFolder, expanded: RunFolder, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"the model has no model\.layers\.0\.self_attn\.k_norm\.weight"):
        open_weights(target_of(f"{tiny}+{frozen.checkpoint()}", SILENT))
    with pytest.raises(ExportError, match=r"k_norm\.weight was learned, but the base has no such weight"):
        hf.export(frozen.checkpoint(), tmp_path / "out", hf.Config(), base=tiny)
    plain = freeze.apply(open_model(tiny, dtype=torch.float32, device=CPU), freeze.Config(layers=1), base_name="x")
    with pytest.raises(UserError, match=r"holds no model\.layers\.1\."):
        freeze.load_state(expanded.checkpoint(), plain)
    damaged = shutil.copytree(frozen.checkpoint(), tmp_path / "damaged")
    (damaged / "trained_weights.json").write_text("{")
    with pytest.raises(UserError, match=r"trained_weights\.json cannot be read"):
        open_weights(target_of(f"{base}+{damaged}", SILENT))


def test_new_layers_with_joined_experts(smol: Path, tmp_path: Path) -> None:
    """Mixtral's experts are one tensor per layer in the model and many in its files: new layers are written as the old ones are."""
    base, folder = tmp_path / "base", tmp_path / "trained"
    small("MixtralConfig", num_local_experts=4, num_experts_per_tok=2).bfloat16().save_pretrained(base)
    for file in TOKENIZER:
        shutil.copyfile(smol / file, base / file)
    folder.mkdir()
    model = freeze.apply(
        open_model(base, dtype=torch.float32, device=CPU), freeze.Config(expand=2), base_name=str(base)
    )
    state = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in state.values():
            parameter.copy_((parameter + torch.randn_like(parameter) * 0.3).bfloat16())
    freeze.save(model, folder, state)
    write_changes(folder, Changes(changed_keys(open_config(base), model.config)))
    out = hf.export(folder, tmp_path / "out", hf.Config(), base=base).out
    again = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert again.config.num_hidden_layers == 6 and torch.equal(logits(again), logits(model))
    assert {re.sub(r"\d+", "N", name) for name in read_model(out)} == {
        re.sub(r"\d+", "N", name) for name in read_model(base)
    }
    beside = load_trained(open_model(base, dtype=torch.float32, device=CPU), folder)
    assert torch.equal(logits(beside), logits(model))


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("llama", "qwen3")])
def test_frozen_in_every_family(family: str) -> None:
    """The layers are found, whatever the family calls them."""
    name, settings = FAMILIES[family]
    model = freeze.apply(small(name, **settings), freeze.Config(layers=1), base_name="x")
    assert learned(model) == {n for n, _ in model.named_parameters() if ".layers.3." in n} != set()
