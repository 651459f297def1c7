"""New tokens: rows that begin at the mean or at their pieces, that alone are learned beside LoRA, and arrive in every export."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from learned_runs import assert_same, changes_of, logits, resumed, train
from model_fixtures import make_model
from tunesmith.config.errors import ConfigError, ExportError
from tunesmith.config.progress import SILENT
from tunesmith.data.example import Chat, Message
from tunesmith.export.companions import save_tokenizer
from tunesmith.export.targets import gguf, hf
from tunesmith.models.changes import NewToken, read_changes
from tunesmith.models.open import open_model, open_tokenizer
from tunesmith.models.vocabulary import add_tokens, grow, row_layers
from tunesmith.render.identity import identity_of_renderer
from tunesmith.runs.folder import RunFolder
from tunesmith.verbs.compare import run_comparison
from tunesmith.verbs.export import export
from tunesmith.verbs.run_config import config_of_run, load_config
from tunesmith.verbs.targets import open_renderer, open_weights, renderer_of, target_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny(tiny_of_few_words: Path) -> Path:
    return tiny_of_few_words


@pytest.fixture(scope="module")
def spare(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tied, in bf16, with eight rows more than its tokenizer has tokens."""
    return make_model(few, tmp_path_factory.mktemp("spare") / "base", "llama-tied", "bfloat16", vocab_size=4104)


@pytest.fixture(scope="module")
def grown_run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """LoRA on an untied model whose embeddings and output layer grow by three rows."""
    settings = [
        "method.rank=4",
        "model.add_tokens=[Lantern Bay, 灯塔]",
        "model.add_special_tokens=<|shore|>",
        "train.lr=2e-2",
    ]
    return train(tiny, tmp_path_factory.mktemp("grown") / "runs", "grown", *settings)


@pytest.fixture(scope="module")
def spare_run(spare: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """LoRA on a tied model with rows to spare."""
    settings = ["method.rank=4", "model.add_tokens=[Lantern Bay]", "model.new_token_init=pieces", "precision=bf16"]
    return train(spare, tmp_path_factory.mktemp("spared") / "runs", "spare", *settings)


@pytest.mark.parametrize("how", ["mean", "pieces"])
def test_where_new_rows_begin(tiny: Path, how: str) -> None:
    """By hand: the mean of all 4096 old rows, or of the rows of the token's three old pieces; in both layers."""
    tokenizer, model = open_tokenizer(tiny), open_model(tiny, dtype=torch.float32, device=CPU)
    before = {name: model.get_submodule(name).weight.clone() for name in ("model.embed_tokens", "lm_head")}
    pieces = tokenizer("lantern", add_special_tokens=False).input_ids
    (token,) = add_tokens(tokenizer, ["lantern"], [])
    assert token == NewToken("lantern", 4096, False, tuple(pieces)) and len(pieces) == 3
    grow(model, [token], how)
    assert row_layers(model) == list(before) and model.config.vocab_size == 4097
    for name, old in before.items():
        now = model.get_submodule(name).weight
        wanted = (old if how == "mean" else old[pieces]).double().mean(0).float()
        assert now.shape[0] == 4097 and torch.equal(now[:4096], old) and torch.equal(now[4096], wanted)


def test_spare_rows_come_first_and_tied_rows_stay_tied(spare: Path) -> None:
    model = open_model(spare, dtype=torch.float32, device=CPU)
    tokens = [NewToken("a", 4096, False), NewToken("b", 4097, True)]
    old = model.model.embed_tokens.weight.clone()
    grow(model, tokens, "mean")
    assert model.config.vocab_size == 4104 and row_layers(model) == ["model.embed_tokens"]
    assert torch.equal(model.model.embed_tokens.weight[4098:], old[4098:])
    assert torch.equal(model.lm_head.weight[4097], old[:4096].double().mean(0).float())
    grow(model, [NewToken("c", 4104, False)], "mean")
    assert model.lm_head.weight.shape == model.model.embed_tokens.weight.shape == (4105, 64)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.add_tokens=['']"], "is empty"),
        (["model.add_special_tokens=['  ']"], "is empty"),
        (["model.add_tokens=[a1, a1]"], "'a1' is named twice"),
        (["model.add_tokens=[a1]", "model.add_special_tokens=[a1]"], "'a1' is named twice"),
        (["model.new_token_init=zero"], "'zero'"),
    ],
)
def test_settings_that_make_no_sense(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config(None, ["model=demo", "data=x", *overrides])


def test_tokens_that_are_there_already(tiny: Path) -> None:
    for plain, special, words in (
        (["the"], [], r"add_tokens: 'the' is a token of this model already \(id \d+\)"),
        ([], ["<|im_end|>"], "add_special_tokens: '<|im_end|>' is a token of this model already"),
    ):
        with pytest.raises(ConfigError, match=words.replace("|", r"\|")):
            add_tokens(open_tokenizer(tiny), plain, special)


def test_rendering_uses_them(grown_run: RunFolder) -> None:
    """Rows are encoded with the new tokens, which makes them other rows for the cache; special ones are not shown."""
    config = config_of_run(grown_run)
    _, renderer = open_renderer(config.model, config.data, SILENT, run=grown_run)
    chat = Chat((Message("user", "Where is Lantern Bay?"), Message("assistant", "On<|shore|>, 灯塔.")))
    found = renderer.render(chat)
    assert {4096, 4097, 4098} < set(found.ids)
    assert renderer.tokenizer.decode(found.ids, skip_special_tokens=True).endswith("On, 灯塔.\n")
    _, plain = open_renderer(
        config.model.model_copy(update={"add_tokens": (), "add_special_tokens": ()}), config.data, SILENT
    )
    assert identity_of_renderer(renderer) != identity_of_renderer(plain)
    saved = renderer_of(target_of(str(grown_run.path), SILENT))
    assert (
        saved.render(chat).ids == found.ids
        and identity_of_renderer(saved)["tokenizer"] == identity_of_renderer(renderer)["tokenizer"]
    )


def test_only_the_new_rows_are_learned_beside_lora(tiny: Path, grown_run: RunFolder) -> None:
    assert_same(resumed(grown_run), grown_run)
    stored = load_file(grown_run.checkpoint() / "adapter_model.safetensors")
    rows = {name: tensor for name, tensor in stored.items() if "lora" not in name}
    assert {tuple(tensor.shape) for tensor in rows.values()} == {(3, 64)} and len(rows) == 2
    base = load_file(tiny / "model.safetensors")
    for name, tensor in rows.items():
        start = base["model.embed_tokens.weight" if "embed" in name else "lm_head.weight"].double().mean(0).float()
        assert not torch.equal(tensor[0], start), f"{name}: the token of the data was not learned"
    assert changes_of(grown_run)["config"] == {"vocab_size": 4099}
    assert [(t.text, t.id, t.special) for t in read_changes(grown_run.checkpoint()).tokens] == [
        ("Lantern Bay", 4096, False), ("灯塔", 4097, False), ("<|shore|>", 4098, True),
    ]  # fmt: skip


def test_exported_and_converted(tiny: Path, grown_run: RunFolder, tmp_path: Path) -> None:
    """Embeddings and vocab_size grow, everything old stays; logits as trained, new rows included; llama.cpp reads the same tokens."""
    place, words = export(str(grown_run.path), "hf", SILENT, out=tmp_path / "out")
    assert "new tokens: 3" in words
    ours = transformers.AutoModelForCausalLM.from_pretrained(place)
    assert ours.config.vocab_size == 4099
    before, after = load_file(tiny / "model.safetensors"), load_file(place / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(after[name][:4096], before[name]) and after[name].shape[0] == 4099
    ids = torch.tensor([[4096, 9, 4098, 30, 4097] * 5])
    trained = open_weights(target_of(str(grown_run.path), SILENT), precision="fp32")
    torch.testing.assert_close(logits(ours, ids), logits(trained, ids), rtol=1e-4, atol=1e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    assert tokenizer("at Lantern Bay<|shore|>灯塔").input_ids[-3:] == [4096, 4098, 4097]
    assert "`<|shore|>`" in (place / "README.md").read_text()
    report = gguf.export(place, tmp_path / "out.gguf", gguf.Config(level="f16"))
    assert report.checks["tokens_equal"]


def test_before_and_after_are_asked_the_same(grown_run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base of the run has the rows too, as they began, so that held-out rows with new tokens can be measured on both."""
    monkeypatch.setenv("TUNESMITH_RUNS", str(grown_run.path.parent))
    result, _ = run_comparison([f"run:{grown_run.id}", f"run:{grown_run.id}@base"], SILENT, limit=1, max_tokens=2)
    after, before = result.candidates
    evals = [r["eval_loss"] for r in grown_run.metrics() if r["kind"] == "eval"]
    assert before.loss == pytest.approx(evals[0], abs=1e-3) and after.loss == pytest.approx(evals[-1], abs=1e-3)


def test_tied_rows_in_bf16(spare: Path, spare_run: RunFolder, tmp_path: Path) -> None:
    """The spare row is learned once for both layers; the export keeps the base's size, type and tie."""
    assert_same(resumed(spare_run), spare_run)
    assert changes_of(spare_run)["config"] == {}
    learned = load_file(spare_run.checkpoint() / "adapter_model.safetensors")
    row, *copies = [tensor for name, tensor in learned.items() if "trainable_tokens" in name]
    assert all(torch.equal(row, copy) for copy in copies), "tied layers: one row under both names, as peft reads it"
    out = hf.export(spare_run.checkpoint(), tmp_path / "out", hf.Config(), base=spare).out
    before, after = load_file(spare / "model.safetensors"), load_file(out / "model.safetensors")
    assert (
        "lm_head.weight" not in after and json.loads((out / "config.json").read_text())["tie_word_embeddings"] is True
    )
    now, old = after["model.embed_tokens.weight"], before["model.embed_tokens.weight"]
    assert torch.equal(now[4096], row[0].bfloat16()) and not torch.equal(now[4096], old[4096])
    now[4096] = old[4096]
    assert torch.equal(now, old)


def test_rows_that_do_not_fit_the_base(spare: Path, tiny: Path, grown_run: RunFolder, tmp_path: Path) -> None:
    adapter = shutil.copytree(grown_run.checkpoint(), tmp_path / "adapter")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    settings["trainable_token_indices"] = {name: [4096, 4097, 4099] for name in settings["trainable_token_indices"]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ExportError, match="rows 4096, 4097, 4099"):
        hf.export(adapter, tmp_path / "out", hf.Config(), base=tiny)
    settings["trainable_token_indices"] = None
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ExportError, match="which rows"):
        hf.export(adapter, tmp_path / "out", hf.Config(), base=tiny)


def test_tokenizer_files_keep_all_else(few: Path, tmp_path: Path) -> None:
    """tokenizer.json gains the tokens and nothing else changes; added_tokens_decoder is kept where there is one."""
    source = shutil.copytree(few, tmp_path / "source")
    settings = json.loads((source / "tokenizer_config.json").read_text())
    entry = {
        "content": "<|endoftext|>",
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": True,
    }
    (source / "tokenizer_config.json").write_text(json.dumps(settings | {"added_tokens_decoder": {"0": entry}}))
    (tmp_path / "out").mkdir()
    save_tokenizer(source, tmp_path / "out", "{{ 1 }}", [NewToken("<tool>", 4096, True)])
    before, after = (json.loads((f / "tokenizer.json").read_text()) for f in (source, tmp_path / "out"))
    new: dict[str, Any] = after["added_tokens"].pop()
    assert after == before and (new["id"], new["content"], new["special"]) == (4096, "<tool>", True)
    written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert written["added_tokens_decoder"].keys() == {"0", "4096"} and written["chat_template"] == "{{ 1 }}"
    with pytest.raises(ExportError, match="does not read '<tool>' as the token 7"):
        save_tokenizer(
            source, tmp_path / "out", "{{ 1 }}", [NewToken("<tool>", 4096, True), NewToken("<tool>", 7, True)]
        )
