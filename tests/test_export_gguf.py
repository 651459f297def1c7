"""The GGUF: the same distributions as the source, complete, honest about its tokens, and made without running a model's code."""

from __future__ import annotations

import json
import os
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from model_fixtures import edit_json, make_model
from tunesmith.chat.llamacpp import LlamaCppEngine
from tunesmith.config.errors import ExportError
from tunesmith.evaluate.parity import Parity, compare_distributions
from tunesmith.export.converter import _environment
from tunesmith.export.gguf_check import check_file
from tunesmith.export.gguf_file import read_gguf
from tunesmith.export.gguf_tokens import check_tokens
from tunesmith.export.targets import gguf
from tunesmith.export.tensor_files import read_model

TEXT = "In 2024, 12 quick foxes  jumped. 你好，世界！🙂\ndef f(x):\n    return x ** 2\n" * 4


def distributions(folder: Path, ids: list[int]) -> np.ndarray:
    """The reference: transformers in float32, straight from the source folder."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), -1).numpy()


def distance(folder: Path, file: Path) -> Parity:
    ids = AutoTokenizer.from_pretrained(folder)(TEXT).input_ids
    with LlamaCppEngine(file, threads=1, n_ctx=256) as engine:
        return compare_distributions(distributions(folder, ids[:200]), engine.logprobs(ids[:200]))


def field(file: Path, key: str) -> Any:
    return read_gguf(file).metadata.get(key)


def assert_nothing_left(out: Path, *, log: bool = False) -> None:
    left = sorted(p.name for p in out.parent.iterdir() if out.name in p.name)
    assert left == ([f"{out.name}.log"] if log else [])


@pytest.fixture(scope="module")
def tiny(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(few, tmp_path_factory.mktemp("tiny") / "tiny", "llama-tied")


@pytest.fixture(scope="module")
def tiny_f16(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gguf.export(tiny, tmp_path_factory.mktemp("gguf") / "tiny.gguf", gguf.Config(level="f16")).out


def test_another_model_is_far_away(few: Path, tiny: Path, tmp_path: Path) -> None:
    """What the figures look like when the wrong weights are served."""
    ids = list(range(100, 160))
    other = make_model(few, tmp_path / "other", "llama-tied", seed=5)
    found = compare_distributions(distributions(tiny, ids), distributions(other, ids))
    assert found.mean_kl > 1.0 and found.top1_agreement < 0.5


class Seen:
    """A ``Progress`` that adds up."""

    total, done, finished = 0.0, 0.0, False

    def start(self, task: str, total: float | None = None, unit: str = "") -> None:
        assert unit == "B" and total
        self.total = total

    def advance(self, amount: float = 1) -> None:
        self.done += amount

    def finish(self, note: str = "") -> None:
        self.finished = True

    def say(self, line: str) -> None: ...


@pytest.mark.parametrize(
    "kind", [pytest.param("f32", marks=pytest.mark.slow), pytest.param("bf16", marks=pytest.mark.slow), "q8_0"]
)
def test_types(tiny: Path, tmp_path: Path, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seen = Seen()
    report = gguf.export(Path(os.path.relpath(tiny)), Path("out.gguf"), gguf.Config(level=kind), seen)
    assert seen.finished and 0.5 * report.bytes < seen.total < 1.5 * report.bytes
    assert 0 < seen.done <= report.bytes
    assert report.checks["types"][kind.upper()] >= 15 and report.checks["unmapped"] == 0
    assert field(report.out, "general.name").lower() == "tiny"
    assert report.bytes == report.out.stat().st_size
    assert report.checks["numbers"]["not_compared"] == []
    assert report.checks["tokens_equal"] and report.checks["tokens_differ_in"] == []
    assert distance(tiny, report.out).mean_kl < {"f32": 1e-5, "bf16": 5e-3, "q8_0": 5e-2}[kind]


@pytest.mark.real
def test_smol_in_half_precision(smol: Path, smol_f16: Path) -> None:
    found = distance(smol, smol_f16)
    assert found.mean_kl < 1e-3 and found.top1_agreement >= 0.99, found
    assert field(smol_f16, "tokenizer.ggml.pre") == "smollm"
    assert field(smol_f16, "tokenizer.ggml.eos_token_id") == 2
    assert field(smol_f16, "tokenizer.ggml.bos_token_id") == 1
    assert field(smol_f16, "tokenizer.ggml.add_bos_token") is False
    assert field(smol_f16, "tokenizer.chat_template") == (smol / "chat_template.jinja").read_text()


@pytest.mark.slow
@pytest.mark.real
def test_smol_in_eight_bits(smol: Path, tmp_path: Path) -> None:
    report = gguf.export(smol, tmp_path / "out.gguf", gguf.Config(level="q8_0"))
    found = distance(smol, report.out)
    assert 1e-5 < found.mean_kl < 0.02, found
    assert report.bytes < 0.6 * (smol / "model.safetensors").stat().st_size


def test_no_code_of_the_model_runs(tiny: Path, tmp_path: Path) -> None:
    """Python files named by auto_map, or named like modules the converter imports, would write a marker."""
    hostile, marker = shutil.copytree(tiny, tmp_path / "hostile"), tmp_path / "marker"
    code = f"open({str(marker)!r}, 'w').close()\nclass C: ...\n"
    for name in ("evil.py", "torch.py", "conversion.py", "sitecustomize.py", "transformers.py", "gguf.py"):
        (hostile / name).write_text(code)
    remote = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.C", "AutoTokenizer": ["evil.C", "evil.C"]}
    edit_json(hostile / "config.json", auto_map=remote)
    edit_json(hostile / "tokenizer_config.json", auto_map=remote)
    (hostile / "processor_config.json").write_text(json.dumps({"auto_map": {"AutoProcessor": "evil.C"}}))
    report = gguf.export(hostile, tmp_path / "out.gguf", gguf.Config())
    assert not marker.exists()
    assert distance(tiny, report.out).mean_kl < 1e-4


def test_code_would_run_without_the_staging(tiny: Path, tmp_path: Path) -> None:
    """The hostile folder is hostile: what the converter itself calls does run its code."""
    hostile, marker = shutil.copytree(tiny, tmp_path / "hostile"), tmp_path / "marker"
    (hostile / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    edit_json(hostile / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.C", "evil.C"]})
    with pytest.raises(AttributeError):
        AutoTokenizer.from_pretrained(hostile, trust_remote_code=True)
    assert marker.exists()


def test_secrets_do_not_reach_the_converter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    found = _environment()
    assert found["HF_HUB_OFFLINE"] == "1"
    assert not {"hf_x", "sk-x"} & set(found.values())


@pytest.mark.slow
def test_every_stop_token_stops_llama_cpp(tiny: Path, tmp_path: Path) -> None:
    """A stop token whose text llama.cpp does not know as one gets a key of its own; three such do not fit and are refused."""
    model = shutil.copytree(tiny, tmp_path / "model")
    edit_json(model / "generation_config.json", eos_token_id=[2, 10, 12])
    report = gguf.export(model, tmp_path / "out.gguf", gguf.Config())
    assert field(report.out, "tokenizer.ggml.eos_token_id") == 2
    with LlamaCppEngine(report.out, threads=1, n_ctx=256) as engine:
        assert [engine.vocabulary.ends(i) for i in (2, 10, 12, 13)] == [True, True, True, False]
    edit_json(model / "generation_config.json", eos_token_id=[2, 10, 12, 13])
    with pytest.raises(ExportError, match=r"\[13\]"):
        gguf.export(model, tmp_path / "more.gguf", gguf.Config())
    assert_nothing_left(tmp_path / "more.gguf")


def test_metadata_says_what_the_tokenizer_does(tiny: Path, tmp_path: Path) -> None:
    """tokenizer_config.json says eos is <|im_start|> (1), generation_config.json says <|im_end|> (2): answers end at 2. The tokenizer
    puts <|im_start|> before every text, so llama.cpp must. The template stands in tokenizer_config.json only."""
    model = shutil.copytree(tiny, tmp_path / "model")
    template = "{% for m in messages %}{{ m['content'] + '<|im_end|>' }}{% endfor %}"
    (model / "chat_template.jinja").unlink()
    edit_json(model / "tokenizer_config.json", eos_token="<|im_start|>", chat_template=template)
    path = model / "tokenizer.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    raw["post_processor"]["single"].insert(0, {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}})
    raw["post_processor"]["special_tokens"] = {
        "<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}
    }
    path.write_text(json.dumps(raw), encoding="utf-8")
    out = gguf.export(model, tmp_path / "out.gguf", gguf.Config()).out
    assert field(out, "tokenizer.chat_template") == template
    assert field(out, "tokenizer.ggml.eos_token_id") == 2
    assert field(out, "tokenizer.ggml.add_bos_token") is True
    with LlamaCppEngine(out, threads=1, n_ctx=256) as engine:
        assert engine.vocabulary.ends(2) and not engine.vocabulary.ends(1)
        assert (
            engine.tokenize("Hello 42", add_special=True) == AutoTokenizer.from_pretrained(model)("Hello 42").input_ids
        )


def test_unknown_tokenizer_is_one_message(tiny: Path, tmp_path: Path) -> None:
    """Known before the converter is started: nothing is written, not even its log."""
    model = shutil.copytree(tiny, tmp_path / "model")
    path = model / "tokenizer.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    split = {"type": "Split", "pattern": {"Regex": "[aeiou]"}, "behavior": "Isolated", "invert": False}
    raw["pre_tokenizer"]["pretokenizers"].insert(0, split)
    path.write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(ExportError, match=r"does not know this tokenizer's way of splitting text.*aeiou"):
        gguf.export(model, tmp_path / "out.gguf", gguf.Config())
    assert_nothing_left(tmp_path / "out.gguf")


def test_unknown_architecture(tiny: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny, tmp_path / "model")
    edit_json(model / "config.json", architectures=["FancyForCausalLM"])
    with pytest.raises(ExportError, match="does not know the architecture FancyForCausalLM") as caught:
        gguf.export(model, tmp_path / "out.gguf", gguf.Config())
    log = tmp_path / "out.gguf.log"
    assert str(log) in str(caught.value) and "FancyForCausalLM" in log.read_text()
    assert_nothing_left(tmp_path / "out.gguf", log=True)


def test_other_tokens_are_noticed(tiny: Path, tiny_f16: Path, tmp_path: Path) -> None:
    """The tokenizer as a GGUF import leaves it, without the splitting of digits: the file's tokens for numbers differ."""
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    assert check_tokens(tiny_f16, tokenizer, [2]) == ([], [])
    assert check_tokens(tiny_f16, tokenizer, [2, 10]) == ([10], [])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny / name, tmp_path / name)
    raw = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    raw["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(ExportError, match="other tokens than the model was trained on"):
        check_tokens(tiny_f16, AutoTokenizer.from_pretrained(tmp_path), [2])


def test_incomplete_files_are_noticed(smol: Path, smol_f16: Path) -> None:
    stored = read_model(smol)
    expected = {"tokenizer.ggml.eos_token_id": 2}
    assert check_file(smol_f16, stored, expected)["tensors"] == 272
    with pytest.raises(ExportError, match="eos_token_id = 2, it must be 0"):
        check_file(smol_f16, stored, {"tokenizer.ggml.eos_token_id": 0})
    name = "model.layers.3.mlp.up_proj.weight"
    with pytest.raises(ExportError, match="lacks 1"):
        check_file(smol_f16, stored | {"model.layers.3.self_attn.q_proj.bias": stored[name]}, expected)
    with pytest.raises(ExportError, match="up_proj"):
        check_file(smol_f16, stored | {name: replace(stored[name], shape=(576, 1536))}, expected)
    with pytest.raises(ExportError, match="numbers"):
        check_file(smol_f16, stored | {"model.unknown": stored[name]}, expected)


def test_header_as_the_official_reader_sees_it(tiny_f16: Path, tmp_path: Path) -> None:
    from gguf import GGUFReader

    ours, theirs = read_gguf(tiny_f16), GGUFReader(tiny_f16)
    assert {n: (t.type, t.shape) for n, t in ours.tensors.items()} == {
        t.name: (t.tensor_type.name, tuple(int(n) for n in reversed(t.shape))) for t in theirs.tensors
    }
    for key, value in ours.metadata.items():
        official = theirs.fields[key].contents()
        assert value == (len(official) if isinstance(official, list) else official), key
    cut = tmp_path / "cut.gguf"
    for size, words in (
        (tiny_f16.stat().st_size - 100, "its tensors need"),
        (3000, "cannot be read"),
        (7, "cannot be read"),
    ):
        with tiny_f16.open("rb") as file:
            cut.write_bytes(file.read(size))
        with pytest.raises(ExportError, match=words):
            read_gguf(cut)


def test_refusals_before_any_work(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.gguf"
    cut = shutil.copytree(tiny, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:-10])
    with pytest.raises(ExportError, match="its header describes"):
        gguf.export(cut, out, gguf.Config())
    (cut / "adapter_config.json").write_text("{}")
    with pytest.raises(ExportError, match="holds an adapter"):
        gguf.export(cut, out, gguf.Config())
    out.write_text("mine")
    with pytest.raises(ExportError, match="exists already"):
        gguf.export(tiny, out, gguf.Config())
    assert out.read_text() == "mine"
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 0, 2**22))
    with pytest.raises(ExportError, match="free"):
        gguf.export(tiny, tmp_path / "other.gguf", gguf.Config())
    assert_nothing_left(tmp_path / "other.gguf")
