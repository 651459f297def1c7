"""A GGUF LoRA on a model that an Ollama server has already: may it be put there, and did it arrive?

Ollama runs some architectures in an engine of its own, which takes no LoRA: it lets one be created and refuses at the first question.
Which they are: ``OllamaEngineRequired`` in its fs/ggml/ggml.go; the refusal: runner/ollamarunner/runner.go (v0.24 and later).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.config.errors import ExportError, ServerError
from tunesmith.config.progress import SILENT, Progress
from tunesmith.export.gguf_file import read_gguf
from tunesmith.export.modelfile import Modelfile
from tunesmith.export.ollama import OllamaServer
from tunesmith.export.ollama_deploy import QUESTION, give_name, unproved
from tunesmith.export.ollama_shown import differences, notes

NO_LORA = frozenset({
    "bert", "deepseek2", "deepseekocr", "gemma3", "gemma3n", "gemma4", "glm4moelite", "gpt-oss", "gptoss", "lfm2", "llama4", "mistral3",
    "mllama", "nemotron_h", "nemotron_h_moe", "nomic-bert", "olmo3", "qwen25vl", "qwen3", "qwen35", "qwen35moe", "qwen3moe", "qwen3next",
    "qwen3vl", "qwen3vlmoe",
})  # fmt: skip
REFUSAL = "loras are not yet implemented"
NO_LONGER = "adapters are no longer supported"
"""How servers say it that run no adapters at all: those of 2026 and later."""
MERGE = "deploy it without --as adapter: it is then merged, which every architecture takes"
SAME = (
    "block_count",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "rope.freq_base",
)
"""Keys of a model's form (after its architecture's name) in which base and server must agree."""


@dataclass(frozen=True)
class AdapterReport:
    """``on``: the model the adapter was put on. ``checks``: what was found as intended, in words. The rest as in ``DeployReport``."""

    name: str
    url: str
    version: str
    on: str
    on_quantization: str
    digest: str
    uploaded_bytes: int
    replaced: bool
    checks: tuple[str, ...]
    question: str
    answer: str
    notes: tuple[str, ...]


Prove = Callable[[str], str]
"""``prove(name)``: ask the model of that name on the server; what was found, in words. Raises when it is not the trained one."""


def check_architecture(architecture: str) -> None:
    """Raises ExportError for an architecture that Ollama runs without LoRA."""
    if architecture in NO_LORA:
        raise ExportError(
            f"Ollama runs {architecture} models in its own engine, which takes no adapters (“{REFUSAL}”)", hint=MERGE
        )


def check_base(shown: Mapping[str, Any], base: Mapping[str, Any], on: str) -> list[str]:
    """Is the server's model ``on`` (its ``/api/show``) the ``base`` (metadata of its GGUF) the adapter was trained on?

    Returns what is worth a warning. Raises ExportError naming each difference in form.
    """
    info: Mapping[str, Any] = shown.get("model_info") or {}
    architecture = str(base.get("general.architecture"))
    theirs = info.get("general.architecture") or (shown.get("details") or {}).get("family")
    if theirs != architecture:
        raise ExportError(
            f"{on} on the server is a {theirs} model, the adapter was trained on a {architecture} model",
            hint="name the model it was trained on with --on (`ollama list` tells which there are), or " + MERGE,
        )
    if re.search(r"^ADAPTER ", shown.get("modelfile") or "", re.MULTILINE):
        raise ExportError(f"{on} has an adapter itself", hint="name the model without it with --on")
    wrong = []
    for key in [f"{architecture}.{name}" for name in SAME] + ["tokenizer.ggml.model"]:
        mine, other = base.get(key), info.get(key)
        if mine is not None and other is not None and not isinstance(other, list) and mine != other:
            wrong.append(f"{key} is {other} there, {mine} in training")
    size, mine = _vocabulary(shown, architecture), base.get("vocabulary")
    if size is not None and mine is not None and size != mine:
        wrong.append(f"its vocabulary has {size} tokens, {mine} in training")
    if wrong:
        raise ExportError(
            f"{on} on the server is not the model the adapter was trained on: {'; '.join(wrong)}",
            hint="name the right model with --on, or " + MERGE,
        )
    found = []
    pre, other = base.get("tokenizer.ggml.pre"), info.get("tokenizer.ggml.pre")
    if pre is not None and other is not None and pre != other:
        found.append(f"{on} splits text as {other!r}, the base in training as {pre!r}: some texts become other tokens")
    level = (shown.get("details") or {}).get("quantization_level") or "unknown"
    if level not in ("F16", "F32", "BF16"):
        found.append(
            f"the adapter was trained on the base's own numbers, {on} holds them as {level}: answers differ a little from the trained ones"
        )
    return found


def put_adapter(
    server: OllamaServer,
    file: Path,
    name: str,
    on: str,
    modelfile: Modelfile,
    base: Mapping[str, Any],
    progress: Progress = SILENT,
    *,
    prove: Prove | None = None,
) -> AdapterReport:
    """Make ``name`` answer as the server's model ``on`` with the adapter ``file``, template and parameters of ``modelfile``.

    ``base``: metadata of the model it was trained on. A model called ``name`` is replaced once the new one is proved. Raises
    ExportError and ServerError; then the server is as it was.
    """
    architecture = str(read_gguf(file).metadata.get("general.architecture"))
    check_architecture(architecture)
    version, there = server.version(), server.show(on)
    if there is None:
        raise ExportError(
            f"{server.url} has no model {on}",
            hint=f"`ollama pull {on}` fetches it; it must be the model the adapter was trained on",
        )
    warnings = check_base(there, base, on)
    for line in warnings:
        progress.say(f"warning: {line}")
    replaced = server.show(name) is not None
    digest, uploaded = server.upload(file, progress)
    with unproved(server, name, progress) as trial:
        try:
            server.create(trial, from_=on, adapters={file.name: digest}, modelfile=modelfile, progress=progress)
        except ServerError as error:
            if NO_LONGER in error.message:
                raise ExportError(f"this Ollama takes no adapters any more: {error.message}", hint=MERGE) from error
            raise
        shown = server.show(trial)
        if shown is None:
            raise ExportError(f"Ollama says that it created {trial}, but does not have it")
        checks = _arrived(shown, there, modelfile, digest, name)
        answer = _first_answer(server, trial)
        if prove is not None:
            checks.append(prove(trial))
        if replaced:
            progress.say(f"{name} exists on {server.url} and is replaced")
        give_name(server, trial, name, shown)
    level = str((there.get("details") or {}).get("quantization_level") or "")
    told = (*warnings, *notes(shown, modelfile, answer))
    return AdapterReport(
        name, server.url, version, on, level, digest, uploaded, replaced, tuple(checks), QUESTION, answer, told
    )


def _arrived(
    shown: Mapping[str, Any], there: Mapping[str, Any], modelfile: Modelfile, digest: str, name: str
) -> list[str]:
    """What the new model has as intended. Raises ExportError for the rest."""
    base = re.search(r"^FROM .*?sha256[-:]([0-9a-f]{64})\s*$", there.get("modelfile") or "", re.MULTILINE)
    wrong, proved = differences(shown, modelfile, base[1] if base else "")
    if base is None:
        wrong.pop("weights", None)
    blobs = re.findall(r"^ADAPTER .*?sha256[-:]([0-9a-f]{64})\s*$", shown.get("modelfile") or "", re.MULTILINE)
    anew = len(blobs) == 1 and blobs != [digest]  # from 0.30 on servers write files anew; the proof asks it
    if len(blobs) != 1:
        told = f"its adapters are {', '.join(one[:12] + '…' for one in blobs)}" if blobs else "it has no adapter"
        wrong["adapter"] = f"{told}, not {digest[:12]}…"
    if wrong:
        raise ExportError(
            f"{name} came out otherwise than intended: {'; '.join(wrong.values())}",
            hint="it was removed again; update Ollama, or " + MERGE,
        )
    return [*proved, "adapter, in a file that the server wrote anew" if anew else "adapter"]


def _first_answer(server: OllamaServer, name: str) -> str:
    try:
        return server.chat(name, [{"role": "user", "content": QUESTION}], {"num_predict": 32}).text
    except ServerError as error:
        if REFUSAL in error.message:
            raise ExportError(f"this Ollama runs the model without adapters: {error.message}", hint=MERGE) from error
        raise


def _vocabulary(shown: Mapping[str, Any], architecture: str) -> int | None:
    for tensor in shown.get("tensors") or ():
        if tensor.get("name") == "token_embd.weight" and tensor.get("shape"):
            return int(tensor["shape"][-1])
    found = (shown.get("model_info") or {}).get(f"{architecture}.vocab_size")
    return int(found) if found else None
