"""A LoRA as a GGUF: on its base in llama.cpp it answers as base and adapter do in transformers; what it cannot hold is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_fixtures import FAMILIES, edit_json, make_adapter, make_model, peft_merge
from tunesmith.chat.llamacpp import LlamaCppEngine
from tunesmith.config.errors import ExportError, UserError
from tunesmith.config.progress import SILENT
from tunesmith.evaluate.parity import compare_distributions
from tunesmith.export import converter
from tunesmith.export.gguf_file import read_gguf
from tunesmith.export.targets import gguf, gguf_adapter
from tunesmith.models.adapters.chain import write_needed
from tunesmith.verbs.targets import open_engine

IDS = [(7 * i + 3) % 4000 for i in range(160)]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FUSED = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]


def targets(family: str) -> list[str]:
    return FUSED if family == "phi3" else ALL


def trained(base: Path, adapter: Path) -> np.ndarray:
    """The reference: base and adapter in transformers and peft, float32."""
    import torch

    with torch.no_grad():
        logits = peft_merge(base, adapter)(torch.tensor([IDS])).logits[0]
    return torch.log_softmax(logits.float(), -1).numpy()


def served(base: Path, adapter: Path | None) -> np.ndarray:
    with LlamaCppEngine(base, adapter=adapter, threads=1, n_ctx=256) as engine:
        return engine.logprobs(IDS)


@pytest.fixture(scope="module")
def pair(few: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A llama base with heads of its own for keys, an adapter on every linear layer, and the base as a GGUF."""
    root = tmp_path_factory.mktemp("pair")
    base = make_model(few, root / "base", "llama")
    adapter = make_adapter(base, root / "adapter", target_modules=ALL)
    return base, adapter, gguf.export(base, root / "base.gguf", gguf.Config(level="f32")).out


OFTEN = ("llama", "phi3")


@pytest.mark.parametrize("family", [f if f in OFTEN else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES])
def test_every_family_answers_as_trained(few: Path, tmp_path: Path, family: str) -> None:
    """Fused layers of Phi-3, permuted heads of Llama: mean KL in the order of float32 noise, where the base alone is far away."""
    base = make_model(few, tmp_path / "base", family)
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=targets(family))
    base_file = gguf.export(base, tmp_path / "base.gguf", gguf.Config(level="f32")).out
    report = gguf_adapter.export(adapter, tmp_path / "lora.gguf", gguf_adapter.Config(), base=base, base_gguf=base_file)
    found = compare_distributions(trained(base, adapter), served(base_file, report.out))
    alone = compare_distributions(trained(base, adapter), served(base_file, None))
    assert found.mean_kl < 1e-4 < 0.05 < alone.mean_kl, (found, alone)
    assert report.checks["mean_kl"] < 1e-3 and report.checks["layers"] == 2 * len(targets(family))
    assert read_gguf(report.out).metadata["adapter.lora.alpha"] == 16


def test_the_check_sees_a_layer_that_was_turned(
    pair: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads of q and k not permuted, as in Ollama's own import of adapters: the file is not kept, and the message gives the figures."""
    base, adapter, base_file = pair
    mutated = tmp_path / "converter"
    _copy_converter(mutated)
    llama = mutated / "conversion" / "llama.py"
    text = llama.read_text(encoding="utf-8")
    assert "undo_permute = True" in text
    llama.write_text(text.replace("undo_permute = True", "undo_permute = False"), encoding="utf-8")
    monkeypatch.setattr(converter, "converter_folder", lambda: mutated)
    out = tmp_path / "lora.gguf"
    with pytest.raises(
        ExportError, match=r"does not answer in llama\.cpp as the trained model does: mean KL"
    ) as caught:
        gguf_adapter.export(adapter, out, gguf_adapter.Config(), base=base, base_gguf=base_file)
    assert "merge it instead" in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["converter"]


def _copy_converter(folder: Path) -> None:
    """llama.cpp's converter as far as it is needed, to be changed."""
    original = converter.converter_folder()
    folder.mkdir()
    for name in ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py"):
        shutil.copyfile(original / name, folder / name)
    for name in ("conversion", "gguf-py"):
        shutil.copytree(original / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))


def test_scales_of_every_kind_are_kept(pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """rsLoRA with ranks and alphas of their own per layer: folded into B, so that the file's one alpha gives each layer its scale."""
    base, _, base_file = pair
    adapter = make_adapter(
        base, tmp_path / "adapter", target_modules=ALL, use_rslora=True, rank_pattern={"down_proj": 8, "layers.1.self_attn.q_proj": 2},
        alpha_pattern={"v_proj": 5},
    )  # fmt: skip
    config = gguf_adapter.Config(level="f16")
    report = gguf_adapter.export(adapter, tmp_path / "lora.gguf", config, base=base, base_gguf=base_file)
    found = compare_distributions(trained(base, adapter), served(base_file, report.out))
    assert found.mean_kl < 1e-4, found
    assert "folded" in report.notes[0]
    tensors = read_gguf(report.out).tensors
    assert tensors["blk.1.attn_q.weight.lora_a"].shape == (2, 64) and tensors["blk.0.attn_q.weight.lora_a"].shape == (
        4,
        64,
    )
    assert {t.type for t in tensors.values()} == {"F16"}


def test_embeddings_and_output_of_their_own(pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """A base whose input and output are two tensors: llama.cpp can change each."""
    base, _, base_file = pair
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["embed_tokens", "lm_head", "v_proj"])
    report = gguf_adapter.export(adapter, tmp_path / "lora.gguf", gguf_adapter.Config(), base=base, base_gguf=base_file)
    found = compare_distributions(trained(base, adapter), served(base_file, report.out))
    assert found.mean_kl < 1e-4 and report.checks["layers"] == 4, found


def test_the_template_of_the_training_travels(pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, adapter, base_file = pair
    out = tmp_path / "lora.gguf"
    gguf_adapter.export(
        adapter, out, gguf_adapter.Config(check=False), base=base, chat_template="{{ messages[0].content }}!é"
    )
    with LlamaCppEngine(base_file, adapter=out, threads=1, n_ctx=256) as engine:
        assert engine.prompt([{"role": "user", "content": "Say"}]) == engine.tokenize("Say!é")
        assert engine.name == "base.gguf+lora.gguf"
    with LlamaCppEngine(base_file, threads=1, n_ctx=256) as engine:
        assert engine.prompt([{"role": "user", "content": "Say"}]) != engine.tokenize("Say!é")


def refused(pair: tuple[Path, Path, Path], adapter: Path, out: Path) -> str:
    with pytest.raises(UserError) as caught:
        gguf_adapter.export(adapter, out, gguf_adapter.Config(), base=pair[0], base_gguf=pair[2])
    assert not [p for p in out.parent.iterdir() if out.name in p.name]
    return str(caught.value)


MORE: list[tuple[str, dict[str, Any], str]] = [
    ("dora", {"use_dora": True}, "is a DoRA"),
    ("whole", {"modules_to_save": ["lm_head"]}, "trained lm_head.weight in full"),
    ("rows", {"trainable_token_indices": {"embed_tokens": [5, 6]}}, "trained model.embed_tokens.weight in full"),
]


@pytest.mark.parametrize(("settings", "words"), [pytest.param(s, w, id=i) for i, s, w in MORE])
def test_what_a_gguf_adapter_cannot_hold(
    pair: tuple[Path, Path, Path], tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    adapter = make_adapter(pair[0], tmp_path / "adapter", **settings)
    message = refused(pair, adapter, tmp_path / "lora.gguf")
    assert words in message and "merge it instead" in message


def test_what_belongs_to_another_base(few: Path, pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    wider = make_model(few, tmp_path / "wider", "llama", intermediate_size=128)
    adapter = make_adapter(wider, tmp_path / "adapter")
    assert "down_proj.weight is [64, 96] in the base, the adapter is made for [64, 128]" in refused(
        pair, adapter, tmp_path / "lora.gguf"
    )
    tied = make_model(few, tmp_path / "tied", "llama-tied")
    adapter = make_adapter(tied, tmp_path / "embeds", target_modules=["embed_tokens"])
    with pytest.raises(ExportError, match="its input and its output alike"):
        gguf_adapter.export(adapter, tmp_path / "lora.gguf", gguf_adapter.Config(), base=tied)


def test_what_was_learned_on_other_adapters_or_is_none(pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    second = tmp_path / "second"
    shutil.copytree(pair[1], second)
    write_needed(second, [pair[1]])
    assert "was learned on top of other adapters" in refused(pair, second, tmp_path / "lora.gguf")
    edit_json(second / "adapter_config.json", init_lora_weights="pissa")
    assert "pissa" in refused(pair, second, tmp_path / "lora.gguf")
    assert "holds no adapter" in refused(pair, pair[0], tmp_path / "lora.gguf")


def test_llama_cpp_says_what_it_cannot_put_together(pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, adapter, base_file = pair
    out = gguf_adapter.export(adapter, tmp_path / "lora.gguf", gguf_adapter.Config(check=False), base=base).out
    for wrong, words in ((base_file, "general.type"), (tmp_path / "none.gguf", "is not a file")):
        with pytest.raises(UserError, match=words):
            LlamaCppEngine(base_file, adapter=wrong, threads=1, n_ctx=64)
    text = f"{base_file}+{out}"
    engine = open_engine(text, SILENT)
    assert isinstance(engine, LlamaCppEngine) and engine.name == text
    engine.close()
    with pytest.raises(UserError, match="an adapter as GGUF is put on a base as GGUF"):
        open_engine(f"{base}+{out}", SILENT)


def test_an_adapter_that_would_end_the_process_is_refused(few: Path, tmp_path: Path) -> None:
    """A LoRA on the embedding of a model that ties it, as other programs write them: llama.cpp aborts when it is used."""
    from gguf import GGUFWriter

    tied = make_model(few, tmp_path / "tied", "llama-tied")
    base_file = gguf.export(tied, tmp_path / "tied.gguf", gguf.Config(level="f16")).out
    writer = GGUFWriter(tmp_path / "lora.gguf", "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 4.0)
    writer.add_tensor("token_embd.weight.lora_a", np.ones((4096, 2), np.float32))
    writer.add_tensor("token_embd.weight.lora_b", np.ones((64, 2), np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    with pytest.raises(UserError, match="uses for its output as well"):
        LlamaCppEngine(base_file, adapter=tmp_path / "lora.gguf", threads=1, n_ctx=64)
