"""A GGUF LoRA on a base that Ollama has: what may be put where, and that the server answers with it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learned_runs import train
from model_fixtures import make_model
from ollama_adapters import AdapterOllama, serving_adapters
from ollama_server import recorded
from tunesmith.config.errors import ExportError, UserError
from tunesmith.config.progress import SILENT
from tunesmith.evaluate.top_tokens import Asked, distances
from tunesmith.export.modelfile import Modelfile, parse
from tunesmith.export.ollama_adapter import check_architecture, check_base
from tunesmith.export.ollama_quantize import check_quantize
from tunesmith.export.targets import gguf
from tunesmith.runs.folder import RunFolder
from tunesmith.verbs.beside import NO_BASE
from tunesmith.verbs.deploy_adapter import deploy_adapter
from tunesmith.verbs.export import export


@pytest.fixture(scope="module")
def run(few: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A LoRA trained loudly enough that the model answers otherwise than its base."""
    root = tmp_path_factory.mktemp("deploy-adapter")
    base = make_model(few, root / "base", "llama")
    return train(
        base, root / "runs", "lora", "method.alpha=64", "train.lr=5e-2", "train.max_steps=3", "train.save_every=3"
    )


@pytest.fixture(scope="module")
def base_file(run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = run.path.parent.parent / "base"
    return gguf.export(base, tmp_path_factory.mktemp("gguf") / "base.gguf", gguf.Config(level="f16")).out


@pytest.fixture
def server(tmp_path: Path, run: RunFolder, base_file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AdapterOllama]:
    monkeypatch.setenv("TUNESMITH_RUNS", str(run.path.parent))
    with serving_adapters(tmp_path / "blobs") as state:
        state.give("small-base", base_file)
        yield state


def test_the_base_is_not_replaced_by_its_adapted_self(server: AdapterOllama, run: RunFolder) -> None:
    with pytest.raises(UserError, match="is the base itself"):
        deploy_adapter(run.id, "Small-Base:latest", "small-base", SILENT, url=server.url)
    assert sorted(server.models) == ["small-base:latest"] and server.uploads() == 0


def test_the_adapter_answers_on_the_server(server: AdapterOllama, run: RunFolder) -> None:
    """Created as recorded with a real server, asked, compared with the trained model; nothing but the adapter is sent."""
    done = deploy_adapter(run.id, "tuned", "small-base", SILENT, url=server.url)
    assert done.report is not None
    assert {"weights", "template", "stop", "adapter"} <= set(done.report.checks)
    assert "log-probabilities differ from the trained model's by" in done.report.checks[-1]
    assert done.made.checks["mean_kl"] < 1e-3 < done.made.checks["base_kl"]
    assert done.report.uploaded_bytes == done.made.file.stat().st_size and server.uploads() == 1
    assert sorted(server.models) == ["small-base:latest", "tuned:latest"]
    sent = next(body for method, path, body in server.requests if path == "/api/create")
    theirs = recorded("create-adapter-gguf-all")["request"]["body"]
    assert sent.keys() >= theirs.keys() and list(sent["adapters"]) == [done.made.file.name]
    modelfile = parse(done.made.modelfile.read_text(encoding="utf-8"))
    assert modelfile.from_ == "small-base" and modelfile.adapters == (f"./{done.made.file.name}",)
    card = (done.made.file.parent / "README.md").read_text(encoding="utf-8")
    assert "- lora\n" in card and f"--lora {done.made.file.name}" in card and "stage sft, method lora" in card
    report = json.loads((run.artifacts / "deploy_adapter_report.json").read_text(encoding="utf-8"))
    assert report["server"]["on"] == "small-base" and report["checks"]["architecture"] == "llama"


def _quantized(server: AdapterOllama) -> None:
    server.quantizes = "Q4_K_M"


def test_a_quantized_base_is_a_warning(server: AdapterOllama, run: RunFolder) -> None:
    _quantized(server)
    done = deploy_adapter(run.id, "tuned", "small-base", SILENT, url=server.url)
    assert done.report is not None and any("holds them as Q4_K_M" in note for note in done.report.notes)


FAULTS: list[tuple[str, Callable[[AdapterOllama], Any], str]] = [
    ("forgets", lambda s: setattr(s, "forgets_adapter", True), "it has no adapter, not"),
    ("ignores", lambda s: setattr(s, "ignores_adapter", True), "answers as its base does, not as the trained one"),
    ("refuses", lambda s: setattr(s, "takes_no_lora", True), "runs the model without adapters: .*loras are not yet implemented"),
    ("adapters-gone", lambda s: s.refuses.update(adapters="LoRA adapters are no longer supported"), "takes no adapters any more: .*LoRA adapters"),
    ("counts", lambda s: setattr(s, "adds_token", 1), "reads a question as \\d+ tokens, in training it was"),
    ("template", lambda s: s.change_shown.update(template="{{ .Prompt }}"), "came out otherwise than intended: its template"),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "words"), [pytest.param(f, w, id=i) for i, f, w in FAULTS])
def test_what_went_wrong_there_is_found_and_taken_back(
    server: AdapterOllama, run: RunFolder, fault: Callable[[AdapterOllama], Any], words: str
) -> None:
    fault(server)
    with pytest.raises(ExportError, match=words) as caught:
        deploy_adapter(run.id, "tuned", "small-base", SILENT, url=server.url)
    assert "without --as adapter" in str(caught.value) or "merge it instead" in str(caught.value)
    assert sorted(server.models) == ["small-base:latest"], "nothing half-made is left"
    record = json.loads((run.artifacts / "deploy_adapter_report.json").read_text(encoding="utf-8"))
    assert record["server"] is None and re.search(words, record["failed"]) and record["checks"]


def test_a_server_that_tells_no_probabilities(server: AdapterOllama, run: RunFolder) -> None:
    server.tells_logprobs = False
    done = deploy_adapter(run.id, "tuned", "small-base", SILENT, url=server.url)
    assert done.report is not None and done.report.checks[-1].startswith("numbers not compared")


def test_no_such_base_and_no_server(server: AdapterOllama, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="has no model other-base") as caught:
        deploy_adapter(run.id, "tuned", "other-base", SILENT, url=server.url)
    assert "ollama pull other-base" in str(caught.value) and server.uploads() == 0
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    done = deploy_adapter(run.id, "tuned", "small-base", SILENT)
    assert done.report is None and done.command.startswith("ollama create tuned -f ")
    place, lines = export(
        run.id, "gguf-adapter", SILENT, settings=["check=false"], out=done.made.file.parent.parent / "by-hand"
    )
    modelfile = (place.parent / "Modelfile").read_text(encoding="utf-8")
    assert modelfile.startswith(f"# In place of {NO_BASE}: the name that base has in Ollama")
    assert parse(modelfile).from_ == NO_BASE and parse(modelfile).adapters == (f"./{place.name}",)
    assert any(f"tunesmith deploy {run.id} --as adapter --on NAME" in line for line in lines)
    assert "alpha: 64" in lines and not any("{" in line for line in lines), lines
    with pytest.raises(UserError, match="nothing learned"):
        deploy_adapter(f"{run.id}@base", "tuned", "small-base", SILENT)


TRAINED: dict[str, Any] = {
    "general.architecture": "llama", "llama.block_count": 30, "llama.embedding_length": 576, "llama.rope.freq_base": 100000.0,
    "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "vocabulary": 49152,
}  # fmt: skip


def test_the_base_there_against_the_recorded_one() -> None:
    shown = recorded("show-gguf-model-info")["response"]["json"]
    (warning,) = check_base(shown, TRAINED, "smol")
    assert "holds them as Q4_1" in warning
    for changes, words in (
        ({"llama.block_count": 16}, "llama.block_count is 30 there, 16 in training"),
        ({"vocabulary": 49153}, "its vocabulary has 49152 tokens, 49153 in training"),
        ({"llama.rope.freq_base": 10000.0}, "rope.freq_base is 100000 there, 10000.0 in training"),
        ({"general.architecture": "qwen2"}, "is a llama model, the adapter was trained on a qwen2 model"),
    ):
        with pytest.raises(ExportError, match=words):
            check_base(shown, {**TRAINED, **changes}, "smol")
    first, _ = check_base(shown, {**TRAINED, "tokenizer.ggml.pre": "llama-bpe"}, "smol")
    assert "splits text as 'smollm', the base in training as 'llama-bpe'" in first
    with_adapter = shown | {"modelfile": "FROM x\nADAPTER /models/blobs/sha256-1\n"}
    with pytest.raises(ExportError, match="has an adapter itself"):
        check_base(with_adapter, TRAINED, "smol")


@pytest.mark.parametrize("architecture", ["gemma3", "qwen3", "gpt-oss"])
def test_architectures_that_take_no_adapter(architecture: str) -> None:
    with pytest.raises(ExportError, match="takes no adapters") as caught:
        check_architecture(architecture)
    assert "without --as adapter" in str(caught.value)
    check_architecture("llama")


def test_distances_by_hand() -> None:
    """Two of three tokens have a text of their own. Server ln 0.5 and ln 0.25; trained 0.5, 0.25; base 0.25, 0.5: 0 and ln 2 apart."""
    asked = Asked("", 1, np.log([0.5, 0.25, 0.25]), np.log([0.25, 0.5, 0.25])).with_pieces(["a", "b", "c"].__getitem__)
    told = [(b"a", float(np.log(0.5))), (b"b", float(np.log(0.25))), (b"?", -1.0)]
    trained, base, between = distances(asked, told)
    assert trained == pytest.approx([0, 0]) and base == pytest.approx([np.log(2)] * 2) and between == base
    twins = Asked("", 1, asked.trained, asked.base).with_pieces(["a", "a", "c"].__getitem__)
    assert distances(twins, told) == ([], [], [])


def test_quantizing_there_is_checked_before_anything_is_sent() -> None:
    assert check_quantize("q4_K_M", "f16") == "Q4_K_M"
    with pytest.raises(ExportError, match="does not make 'q6_k', only q8_0, q4_k_m"):
        check_quantize("q6_k", "f16")
    with pytest.raises(ExportError, match="files of 16 or 32 bits only, not q8_0"):
        check_quantize("q4_k_m", "q8_0")


def test_quantizing_there(server: AdapterOllama, base_file: Path) -> None:
    from tunesmith.export.ollama import OllamaServer
    from tunesmith.export.ollama_deploy import deploy

    with OllamaServer(server.url) as client:
        proved: list[str] = []
        done = deploy(
            client,
            base_file,
            "small",
            Modelfile("./x.gguf"),
            quantize="Q4_K_M",
            prove=lambda name, *_: proved.append(name),
        )
        assert [name[:-8] for name in proved] == ["small:latest-unproved-"], (
            "the numbers are asked for here as everywhere"
        )
        assert any("the server made Q4_K_M" in note for note in done.notes) and "weights" not in done.checks
        sent = next(body for _, path, body in server.requests if path == "/api/create")
        assert sent["quantize"] == "Q4_K_M"
        server.quantizes = "F16"
        with pytest.raises(ExportError, match="the server calls it F16, Q4_K_M was asked for"):
            deploy(client, base_file, "small", Modelfile("./x.gguf"), quantize="Q4_K_M")
        server.refuses = {"quantize": "create-time quantization is only supported for safetensors imports"}
        with pytest.raises(ExportError, match="quantizes no GGUF any more") as caught:
            deploy(client, base_file, "small", Modelfile("./x.gguf"), quantize="Q4_K_M")
        assert "--level q4_k_m" in str(caught.value.hint)
