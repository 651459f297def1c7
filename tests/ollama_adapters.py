"""The stand-in server with adapters: it answers from the GGUF of a base it has, with the LoRA that was put on it, in llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollama_models import Answered, Runner
from ollama_server import FakeOllama, Refused, _full, recorded, serving
from tunesmith.chat.llamacpp import LlamaCppEngine
from tunesmith.export.gguf_file import read_gguf


class AdapterRunner(Runner):
    """Runs a GGUF with the ``adapter`` that the model asked for has. Several stay open."""

    adapter: Path | None = None

    def __init__(self) -> None:
        super().__init__()
        self.engines: dict[tuple[Path, Path | None], LlamaCppEngine] = {}

    def engine(self, gguf: Path) -> LlamaCppEngine:
        key = (gguf, self.adapter)
        if key not in self.engines:
            self.engines[key] = LlamaCppEngine(gguf, adapter=self.adapter, threads=1, n_ctx=256)
        return self.engines[key]

    def close(self) -> None:
        for engine in self.engines.values():
            engine.close()
        self.engines.clear()


@dataclass
class AdapterOllama(FakeOllama):
    """Faults: each is used at every request it fits."""

    forgets_adapter: bool = False
    """Create says success, and the model has no adapter."""
    ignores_adapter: bool = False
    """The model is shown with its adapter, and answers without."""
    takes_no_lora: bool = False
    """The new engine: the first question is refused."""
    adds_token: int = 0
    """So many tokens more are counted in each prompt."""
    quantizes: str | None = None
    """The level it says it made, whatever was asked."""

    def give(self, name: str, gguf: Path) -> None:
        """A model that the server has already."""
        self.blob(f"sha256:{'0' * 64}").write_bytes(gguf.read_bytes())
        self.models[_full(name)] = {
            "digest": f"sha256:{'0' * 64}", "template": "{{ .Prompt }}", "system": "", "parameters": {}, "license": "", "messages": [],
        }  # fmt: skip

    def create(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if body.get("quantize", "Q8_0").upper() not in ("F32", "F16", "Q4_K_S", "Q4_K_M", "Q8_0"):
            raise Refused(500, f"unsupported quantization type {body['quantize']}")
        if "from" not in body:
            yield from super().create(body)
            self.models[_full(body["model"])]["quantize"] = body.get("quantize")
            return
        base = self.model(body["from"], "show-unknown-model-404")
        (digest,) = body["adapters"].values()
        if not self.blob(digest).is_file():
            raise Refused(400, "invalid digest")
        kept = {key: body[key] for key in ("template", "system", "parameters", "license", "messages") if key in body}
        adapter = None if self.forgets_adapter else digest
        for line in recorded("create-adapter-gguf-all")["response"]["ndjson"]:
            if line["status"] == "success":
                self.models[_full(body["model"])] = {**base, **kept, "adapter": adapter}
            yield line

    def show(self, name: str) -> dict[str, Any]:
        model = self.model(name, "show-unknown-model-404")
        header = read_gguf(self.blob(model["digest"]))
        shown = super().show(name)
        level = self.quantizes or model.get("quantize") or "F16"
        shown["details"] |= {"family": header.metadata["general.architecture"], "quantization_level": level}
        lists = {"tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.token_type"}
        shown["model_info"] = {key: None if key in lists else value for key, value in header.metadata.items()}
        shown["tensors"] = [
            {"name": one.name, "type": one.type, "shape": list(reversed(one.shape))} for one in header.tensors.values()
        ]
        if model.get("adapter"):
            shown["modelfile"] += f"ADAPTER /models/blobs/{model['adapter'].replace(':', '-')}\n"
        return shown | self.change_shown

    def chat(self, body: dict[str, Any]) -> tuple[str, Answered | None]:
        adapter = self.model(body["model"], "chat-unknown-model-404").get("adapter")
        if adapter and self.takes_no_lora:
            raise Refused(500, "failed to initialize model: loras are not yet implemented")
        assert isinstance(self.runner, AdapterRunner)
        self.runner.adapter = None if adapter is None or self.ignores_adapter else self.blob(adapter)
        prompt, answered = super().chat(body)
        if answered is not None:
            answered.prompt_tokens += self.adds_token
        return prompt, answered


@contextmanager
def serving_adapters(folder: Path) -> Iterator[AdapterOllama]:
    """A running server of this kind."""
    with serving(folder, AdapterRunner(), kind=AdapterOllama) as state:
        assert isinstance(state, AdapterOllama)
        yield state
