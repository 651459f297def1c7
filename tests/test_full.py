"""Full fine-tuning: the losses of a plain loop, a checkpoint that is a whole model, and what is exported is what was trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from learned_runs import SETTINGS, assert_same, logits, losses, resumed, train
from model_fixtures import SMALL, TOKENIZER, make_model
from tunesmith.config.errors import ConfigError, ExportError, UserError
from tunesmith.config.load import validate
from tunesmith.config.progress import SILENT
from tunesmith.export.targets import hf
from tunesmith.export.tensor_files import read_model
from tunesmith.models.methods import full
from tunesmith.models.open import open_model
from tunesmith.runs.folder import RunFolder
from tunesmith.train import loop
from tunesmith.train.order import Order
from tunesmith.train.schedule import learning_rate
from tunesmith.verbs.assemble import assemble
from tunesmith.verbs.export import export
from tunesmith.verbs.run_config import config_of_run, load_config
from tunesmith.verbs.targets import open_weights, target_of
from tunesmith.verbs.train import create

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tied embeddings, stored in bf16."""
    return make_model(few, tmp_path_factory.mktemp("full") / "base", "llama-tied", "bfloat16")


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Every weight but the first layer's norms, in bf16 with noise on the embeddings."""
    root = tmp_path_factory.mktemp("full-runs")
    settings = ["method.kind=full", r"method.freeze=['layers\.0\..*norm']", "precision=bf16", "train.neftune_alpha=5"]
    return train(base, root, "full", *settings)


def test_resumed_bit_for_bit(run: RunFolder) -> None:
    """Masters in fp32, the noise and the model: six steps are three and three."""
    assert_same(resumed(run), run)


def test_the_checkpoint_is_a_whole_model(base: Path, run: RunFolder) -> None:
    """transformers alone opens it; learned weights lie in it once, in fp32, tied ones under one name; the frozen are the base's."""
    folder = run.checkpoint()
    stored, before = load_file(folder / "model.safetensors"), load_file(base / "model.safetensors")
    assert stored.keys() == before.keys() and "lm_head.weight" not in stored
    frozen = {name for name in stored if "layers.0" in name and "norm" in name}
    assert {name for name, tensor in stored.items() if tensor.dtype == torch.bfloat16} == frozen and len(frozen) == 2
    assert all(torch.equal(stored[name], before[name]) for name in frozen)
    assert all(not torch.equal(stored[name], before[name].float()) for name in stored.keys() - frozen)
    assert not (folder / "model_changes.json").exists()
    model, found = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(found.values()) and model.dtype == torch.float32
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == (run.path / "chat_template.jinja").read_text()
    assert target_of(str(folder), SILENT).base.folder == folder


def test_export_is_what_was_trained(base: Path, run: RunFolder, tmp_path: Path) -> None:
    """bf16 as the base; the weights the model computed with in training, which are the masters rounded once."""
    place, words = export(str(run.path), "hf", SILENT, out=tmp_path / "out")
    stored = load_file(run.checkpoint() / "model.safetensors")
    exported = load_file(place / "model.safetensors")
    assert exported.keys() == load_file(base / "model.safetensors").keys()
    assert all(torch.equal(exported[name], stored[name].to(torch.bfloat16)) for name in stored)
    trained = open_weights(target_of(str(run.path), SILENT), precision="bf16")
    assert torch.equal(logits(trained), logits(transformers.AutoModelForCausalLM.from_pretrained(place)))
    assert json.loads((place / "config.json").read_text())["dtype"] == "bfloat16"
    card = (place / "README.md").read_text()
    assert "full fine-tuning" in card and "LoRA" not in card
    assert "replaced: 20" in words


def test_equals_a_plain_transformers_loop(tiny: Path) -> None:
    """The loss of every step is that of a loop anybody would write, padded, on the same rows."""
    chosen = load_config(None, [f"model={tiny}", *SETTINGS, "method=full", "data.eval_share=0", "train.save_every=9"])
    ours = create(chosen)
    setup, _ = assemble(ours, config_of_run(ours), SILENT)
    loop.train(setup)
    config, rows = setup.config, setup.train
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=0.0)
    theirs = []
    order = Order([row.length for row in rows], config.batch, config.seed)
    for step in range(1, 7):
        batch = [rows[i] for i in order.rows(step)]
        longest = max(row.length for row in batch)
        ids = torch.tensor([[*row.ids.tolist(), *[2] * (longest - row.length)] for row in batch])
        attention = torch.tensor([[1] * row.length + [0] * (longest - row.length) for row in batch])
        learned = torch.tensor([[*map(bool, row.mask), *[False] * (longest - row.length)] for row in batch])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, 6, config.lr, config.schedule, config.warmup)
        loss = model(input_ids=ids, attention_mask=attention, labels=ids.masked_fill(~learned, -100)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad()
        theirs.append(float(loss.detach()))
    found = [loss for kind, _, loss in losses(ours) if kind == "step"]
    assert found == pytest.approx(theirs, abs=1e-5 * max(theirs)) and len(found) == 6


def test_what_freeze_names(tiny: Path) -> None:
    model = open_model(tiny, dtype=torch.float32, device=CPU)
    full.apply(model, full.Config(freeze=("embed_tokens", r"layers\.0\.")), base_name="x")
    still = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert still == {n for n, _ in model.named_parameters() if "embed_tokens" in n or "layers.0." in n}
    for words, message in (
        (("nothing_like_it",), "no weight of this model is called 'nothing_like_it'"),
        (("(",), "no regular expression"),
        ((".",), "no weight to learn"),
    ):
        with pytest.raises(ConfigError, match=message):
            full.apply(model, full.Config(freeze=words), base_name="x")
    with pytest.raises(ConfigError, match="new rows"):
        full.apply(model, full.Config(freeze=("embed_tokens",)), base_name="x", new_rows=(5,))
    assert validate(full.Config, {"freeze": "lm_head"}).freeze == ("lm_head",)


def test_a_checkpoint_of_something_else_is_refused(base: Path, run: RunFolder, tiny: Path, tmp_path: Path) -> None:
    untied = full.apply(open_model(tiny, dtype=torch.float32, device=CPU), full.Config(), base_name="x")
    with pytest.raises(UserError, match=r"holds no lm_head\.weight"):
        full.load_state(run.checkpoint(), untied)
    other = shutil.copytree(run.checkpoint(), tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(tensors | {name: torch.zeros(3, 64)}, other / "model.safetensors")
    model = full.apply(open_model(base, dtype=torch.float32, device=CPU), full.Config(), base_name="x")
    with pytest.raises(UserError, match=r"up_proj\.weight is \[3, 64\], the model has \[96, 64\]"):
        full.load_state(other, model)
    with pytest.raises(ExportError, match=r"up_proj\.weight is \[96, 64\] in the base and \[3, 64\]"):
        hf.export(other, tmp_path / "out", hf.Config(), base=base)
    (other / "model.safetensors").write_bytes(b"half a file")
    with pytest.raises(UserError, match="damaged"):
        full.load_state(other, model)


def test_all_weights_go_on_no_other_base(base: Path, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_RUNS", str(run.path.parent))
    with pytest.raises(UserError, match="learned all weights"):
        target_of(f"{base}+run:{run.id}", SILENT)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
        ("Qwen3MoeConfig", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}),
        ("GPTNeoXConfig", {}),
    ],
    ids=["mixtral", "qwen3-moe", "gpt-neox"],
)
def test_names_that_transformers_changes(smol: Path, tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    """Experts that are joined when a model is opened, a renamed output layer: the export has the base's names again."""
    config = getattr(transformers, name)(**SMALL | {"vocab_size": 300} | settings)
    base, folder = tmp_path / "base", tmp_path / "trained"
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(base)
    for file in TOKENIZER:
        shutil.copyfile(smol / file, base / file)
    folder.mkdir()
    model = full.apply(open_model(base, dtype=torch.float32, device=CPU), full.Config(), base_name=str(base))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter * 1.5).bfloat16())
    full.save(model, folder, {n: p for n, p in model.named_parameters() if p.requires_grad})
    state = full.load_state(folder, model)
    assert all(torch.equal(state[n], p) for n, p in model.named_parameters())
    out = hf.export(folder, tmp_path / "out", hf.Config(), base=base).out
    assert read_model(out).keys() == read_model(base).keys()
    again = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert torch.equal(logits(again), logits(model))
