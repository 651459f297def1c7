"""Put a GGUF on an Ollama server under a name, and prove that what the server has is what was sent.

The way: upload, create under a name of its own, read back, prove, and only then give it the name people use. A model that
already has this name answers until then, and goes on answering when the proof fails. It knows nothing of how the GGUF was made.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.chat import ollama_api
from tunesmith.config.errors import ExportError, ServerError
from tunesmith.config.progress import SILENT, Progress
from tunesmith.export.gguf_file import read_gguf
from tunesmith.export.modelfile import Modelfile
from tunesmith.export.ollama import OllamaServer
from tunesmith.export.ollama_quantize import MADE_THERE, differs
from tunesmith.export.ollama_shown import differences, notes

QUESTION = "Answer in one short sentence: who are you?"
UNPROVED = "-unproved"
"""Ends the tag of a model that is not proved yet."""


@dataclass(frozen=True)
class DeployReport:
    """What was deployed and what was proved.

    ``digest`` is the GGUF's SHA-256 in hex, ``uploaded_bytes`` 0 when the server had the file, ``replaced`` whether a
    model of that name was there before. ``checks`` are the fields read back and found as intended. ``answer`` is the
    reply to ``question`` with the model's own parameters, after ``seconds`` (loading included).
    """

    name: str
    url: str
    version: str
    digest: str
    size_bytes: int
    uploaded_bytes: int
    replaced: bool
    capabilities: tuple[str, ...]
    checks: tuple[str, ...]
    question: str
    answer: str
    seconds: float
    notes: tuple[str, ...] = ()


Prove = Callable[[str, Mapping[str, Any], dict[str, str]], None]
"""``prove(name, shown, wrong)``: the name to ask, what ``/api/show`` tells, what of it differs from what was meant; raises when it fails."""


def deploy(
    server: OllamaServer,
    gguf: Path,
    name: str,
    modelfile: Modelfile,
    progress: Progress = SILENT,
    *,
    prove: Prove | None = None,
    quantize: str | None = None,
) -> DeployReport:
    """Make ``name`` answer from ``gguf`` with ``modelfile``'s template, system prompt, parameters and messages.

    A model of that name is replaced once the new one is proved. Without ``prove`` anything that came out otherwise than
    intended is an error. ``quantize``: the server makes this level of the file (``export.ollama_quantize``). Raises UserError (name), ExportError (the file, or what came out) and ServerError.
    """
    ollama_api.check_name(name)
    size = check_gguf(gguf)
    version = server.version()
    if server.warning:
        progress.say(f"warning: {server.warning}")
    replaced = server.show(name) is not None
    digest, uploaded = server.upload(gguf, progress)
    with unproved(server, name, progress) as trial:
        server.create(trial, files={"model.gguf": digest}, quantize=quantize, modelfile=modelfile, progress=progress)
        shown = server.show(trial)
        if shown is None:
            raise ExportError(f"Ollama says that it created {trial}, but does not have it")
        wrong, proved = differences(shown, modelfile, digest if quantize is None else None)
        if quantize is not None:
            wrong |= differs(shown, quantize)
        if prove is not None and "weights" not in wrong:
            prove(trial, shown, wrong)
        elif wrong:
            raise ExportError(
                f"{name} came out otherwise than intended: {'; '.join(wrong.values())}",
                hint="it was removed again; update Ollama and deploy again",
            )
        progress.start(f"asking {trial}")
        began = time.monotonic()
        answer = server.chat(trial, [{"role": "user", "content": QUESTION}], {"num_predict": 32}).text
        seconds = time.monotonic() - began
        progress.finish(answer)
        if replaced:
            progress.say(f"{name} exists on {server.url} and is replaced")
        server.copy(trial, name)
    return DeployReport(
        name=name,
        url=server.url,
        version=version,
        digest=digest,
        size_bytes=size,
        uploaded_bytes=uploaded,
        replaced=replaced,
        capabilities=tuple(shown.get("capabilities") or ()),
        checks=proved,
        question=QUESTION,
        answer=answer,
        seconds=seconds,
        notes=(*notes(shown, modelfile, answer), *(() if quantize is None else (MADE_THERE.format(quantize),))),
    )


@contextmanager
def unproved(server: OllamaServer, name: str, progress: Progress = SILENT) -> Iterator[str]:
    """A name of its own for a model on trial, of the same model with another tag; whatever happens, it is removed at the end.

    A server that is gone by then may keep it: that is said.
    """
    trial = trial_name(name)
    try:
        yield trial
    finally:
        try:
            server.remove(trial)
        except ServerError as error:  # mostly the server is gone, and an error on its way says so
            progress.say(
                f"warning: the model on trial, {trial}, may be left on {server.url} ({error.message}); "
                f"`ollama rm {trial}` removes it, and so does the next deployment of {name}"
            )


def trial_name(name: str) -> str:
    """What a model is called while it is on trial: ``me/m:v1`` -> ``me/m:v1-unproved``."""
    head, _, last = name.rpartition("/")
    model, _, tag = last.partition(":")
    return f"{head + '/' if head else ''}{model}:{(tag or 'latest')[: 80 - len(UNPROVED)]}{UNPROVED}"


def check_gguf(path: Path) -> int:
    """Size in bytes of a whole GGUF file. Raises ExportError for anything else, before a byte is sent: Ollama does not look.

    Whole: no part of a split file, no shorter than its tensors, with an embedding and with tensors of every layer it says it has.
    """
    if not path.is_file():
        raise ExportError(f"there is no file {path}", hint="export the model with `--to gguf` first")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ExportError(f"{path} is not a GGUF file", hint="export the model with `--to gguf` first")
    if re.search(r"-\d{5}-of-\d{5}\.gguf$", path.name):
        raise ExportError(
            f"{path.name} is one part of a split GGUF, which Ollama cannot load",
            hint="join the parts first: `llama-gguf-split --merge FIRST-PART OUT`",
        )
    header = read_gguf(path)
    layers = int(header.metadata.get(f"{header.metadata.get('general.architecture')}.block_count") or 0)
    there = {name.split(".")[1] for name in header.tensors if name.startswith("blk.")}
    missing = [str(i) for i in range(layers) if str(i) not in there]
    if "token_embd.weight" not in header.tensors:
        missing.insert(0, "token_embd.weight")
    if missing:
        raise ExportError(
            f"{path.name} is not a whole model: it lacks {'the layers ' if missing[0].isdigit() else ''}{', '.join(missing[:4])}",
            hint="export the model with `--to gguf` again; Ollama would take the file and answer nonsense",
        )
    return path.stat().st_size
