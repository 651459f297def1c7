"""Put a GGUF on an Ollama server under a name, and prove that what the server has is what was sent.

The way: upload, create under a name of its own, read back, prove, and only then give it the name people use. A model that
already has this name answers until then, and goes on answering when the proof fails. It knows nothing of how the GGUF was made.
"""

from __future__ import annotations

import re
import secrets
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
from tunesmith.export.ollama_quantize import MADE_THERE, NO_LONGER, differs
from tunesmith.export.ollama_shown import REWRITTEN, WRITTEN_ANEW, differences, notes

QUESTION = "Answer in one short sentence: who are you?"
UNPROVED = "-unproved-"
"""In the tag of a model that is not proved yet, before 8 hex digits that no other deployment has."""


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
    trial: str | None = None,
) -> DeployReport:
    """Make ``name`` answer from ``gguf`` with ``modelfile``'s template, system prompt, parameters and messages.

    A model of that name is replaced once the new one is proved. Without ``prove`` anything that came out otherwise than
    intended is an error. ``quantize``: the server makes this level of the file (``export.ollama_quantize``).
    ``trial``: what the model is called until it is proved (``trial_name``). Raises UserError (name), ExportError (the file, or what came out) and ServerError.
    """
    ollama_api.check_name(name)
    size = check_gguf(gguf)
    version = server.version()
    if server.warning:
        progress.say(f"warning: {server.warning}")
    replaced = server.show(name) is not None
    digest, uploaded = server.upload(gguf, progress)
    with unproved(server, name, progress, trial) as trial:
        try:
            server.create(
                trial, files={"model.gguf": digest}, quantize=quantize, modelfile=modelfile, progress=progress
            )
        except ServerError as error:
            if quantize is not None and NO_LONGER in error.message:
                raise ExportError(
                    f"this Ollama quantizes no GGUF any more: {error.message}",
                    hint=f"make the level here: --level {quantize.lower()} without --quantize-on-server",
                ) from error
            raise
        shown = server.show(trial)
        if shown is None:
            raise ExportError(f"Ollama says that it created {trial}, but does not have it")
        wrong, proved = differences(shown, modelfile, digest if quantize is None else None, read_gguf(gguf))
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
        give_name(server, trial, name, shown)
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
        notes=(
            *notes(shown, modelfile, answer),
            *(() if quantize is None else (MADE_THERE.format(quantize),)),
            *((WRITTEN_ANEW,) if REWRITTEN in proved else ()),
        ),
    )


@contextmanager
def unproved(server: OllamaServer, name: str, progress: Progress = SILENT, trial: str | None = None) -> Iterator[str]:
    """A name of its own (``trial``, else a new one) for a model on trial; whatever happens, it is removed at the end.

    A server that is gone by then may keep it: that is said, and so is what other deployments of ``name`` have left.
    """
    trial = trial or trial_name(name)
    for other in _others(server, trial):
        progress.say(
            f"warning: {server.url} has {other}, on trial for {name}; if no other deployment of {name} runs, it was left behind: "
            f"`ollama rm {other}` removes it"
        )
    try:
        yield trial
    finally:
        try:
            server.remove(trial)
        except ServerError as error:  # mostly the server is gone, and an error on its way says so
            progress.say(
                f"warning: the model on trial, {trial}, may be left on {server.url} ({error.message}); "
                f"`ollama rm {trial}` removes it"
            )


def trial_name(name: str) -> str:
    """What a model is called while it is on trial, another at each call: ``me/m:v1`` -> ``me/m:v1-unproved-1f0c22ab``.

    So two deployments of one name have a trial each, and neither gives its name to the other's model.
    """
    head, _, last = name.rpartition("/")
    model, _, tag = last.partition(":")
    end = UNPROVED + secrets.token_hex(4)
    return f"{head + '/' if head else ''}{model}:{(tag or 'latest')[: 80 - len(end)]}{end}"


def _others(server: OllamaServer, trial: str) -> list[str]:
    """Models on trial for the same name as ``trial``: of deployments that run, or that were killed. Which, a server cannot tell."""
    try:
        names = server.names()
    except ServerError:  # a server that does not list its models may well take one
        return []
    ours = re.compile(rf"{UNPROVED}[0-9a-f]{{8}}")
    return [one for one in names if ours.search(one[-18:]) and ollama_api.same_model(one[:-8], trial[:-8])]


def give_name(server: OllamaServer, trial: str, name: str, proved: Mapping[str, Any]) -> None:
    """``name`` answers as ``trial`` from now on, if that still is the model whose ``/api/show`` was ``proved``; else ExportError."""
    now = server.show(trial)
    if now is None or _identity(now) != _identity(proved):
        raise ExportError(
            f"{trial} on {server.url} is no longer the model that was proved: {'it is gone' if now is None else 'it was changed'}",
            hint=f"see what else writes models there, then deploy again; {name} is as it was",
        )
    server.copy(trial, name)


def _identity(shown: Mapping[str, Any]) -> tuple[Any, ...]:
    """Files, adapters, template, system prompt and settings. A server lists parameters in another order each time (Go's maps)."""
    lines = (sorted((shown.get(key) or "").splitlines()) for key in ("modelfile", "parameters"))
    return *lines, shown.get("template"), shown.get("system")


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
